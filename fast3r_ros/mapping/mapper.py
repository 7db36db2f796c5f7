"""The mapper: frames in, one consistent map out.  `Mapper.process_window` is the method on one screen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from fast3r_ros.errors import UserError
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import (
    Float64,
    Frame,
    Keyframe,
    MapperStatus,
    PoseEstimate,
    WindowNetwork,
    WindowResult,
    descriptor_limits,
)
from fast3r_ros.mapping.edges import EdgeStore, window_edges
from fast3r_ros.mapping.expectation import (
    InitialPose,
    expected_poses,
    odometry_edges,
    odometry_step,
    placed_by_odometry,
    to_the_plane,
)
from fast3r_ros.mapping.gravity import extrinsics, known_extrinsics, level_origin
from fast3r_ros.mapping.inbox import FrameCounts, FrameIntake, OdometryBuffer
from fast3r_ros.mapping.localization import EMPTY_MAP, Localizer
from fast3r_ros.mapping.loops import LoopCloser
from fast3r_ros.mapping.map import Map
from fast3r_ros.mapping.map_update import Fusion, fuse_window
from fast3r_ros.mapping.scale import MetricScale
from fast3r_ros.mapping.storage import SavedMap, read_map, write_map
from fast3r_ros.mapping.tracking import Knowledge, SubmapStart, Track, encode_all, submap_start, track
from fast3r_ros.mapping.window import SlidingWindow, WindowView
from fast3r_ros.mapping.window_result import Clock, Context, pose_of, predict, up_to_date, window_result

_POSE_TRIES = 3  # windows that are looked for near a given pose while only localising
_UNIT_VOXEL = 0.01  # default voxel, as a share of the median depth of the first window
Result = TypeVar("Result")


def _every_frame_counted(method: Callable[[Mapper], Result]) -> Callable[[Mapper], Result]:
    """Frames that a method has taken and lost in an exception are dropped as `window_failed`."""

    @wraps(method)
    def counted(mapper: Mapper) -> Result:
        try:
            return method(mapper)
        except BaseException:
            mapper._intake.lose("window_failed", kept=len(mapper._pending))
            raise

    return counted


class Mapper:
    """Selects keyframes, looks at windows of them, registers each window to the map and fuses it.

    `add_frame`, `add_odometry`, `newest_pose` and `frame_counts` may be called from any thread, the rest from
    one only.
    """

    def __init__(self, network: WindowNetwork, config: MapperConfig | None = None) -> None:
        self.config = (config or MapperConfig()).for_network(descriptor_limits(network))
        self._network = network
        self._base_from_camera: dict[str, Float64] = {}
        self._map_from_first_base: Float64 | None = None
        self._odometry = OdometryBuffer()
        self._loops = LoopCloser(self.config.loop)
        self._intake = FrameIntake(self.config.keyframes, self._capacity)
        self._localizer = Localizer()
        self.localizing = False
        self.reset()

    def reset(self) -> None:
        """Forget everything but the cameras' extrinsics, and start anew."""
        self._intake.reset(self.config.keyframes, self._capacity)
        self._odometry.clear()
        self._loops.shutdown()
        self._loops = LoopCloser(self.config.loop)
        self.map = Map(self.config.map, self.config.map.voxel_size or _UNIT_VOXEL)
        self._window = SlidingWindow(self.config.window)
        self._left: list[int] = []  # keyframes of windows that are not continued, until they are final
        self._pending: list[WindowView] = []  # seen but not placed: looked at again with the next window
        self._next_id = self._submap = self._submaps = 0
        self._windows = self._rejected = self._rejected_in_a_row = 0
        self._scale = MetricScale(self._odometry, self._base_from_camera)
        self._scale.map_from_first_base = self._map_from_first_base
        self._known = Knowledge()
        self._localizer.forget()
        self._timings: dict[str, float] = {}
        self._last_error = ""
        self._initial_pose: InitialPose | None = None
        self._pose_tries = 0

    # ---------------------------------------------------------------- in

    def add_frame(self, frame: Frame) -> str:
        """Offer a frame: it waits for a window as a keyframe (""), or is dropped for the returned reason."""
        known = known_extrinsics(self._base_from_camera, frame)
        return self._intake.offer(frame if known is None else replace(frame, base_from_camera=known))

    def add_odometry(self, stamp_ns: int, odom_from_base: Float64) -> None:
        """A pose (4, 4) of the robot's base in its odometry frame, metres.  UserError if it is no pose."""
        self._odometry.add(stamp_ns, odom_from_base)

    def set_extrinsics(self, camera: str, base_from_camera: Float64) -> None:
        """Where a camera (optical frame) sits on the robot, (4, 4) metres; by default it looks ahead.

        A frame's own `base_from_camera` comes first.
        """
        self._base_from_camera[camera] = np.asarray(base_from_camera, np.float64)

    def set_first_pose(self, map_from_base: Float64) -> None:
        """Pose (4, 4) of the robot's base at the start in an empty map: gravity, heading, and place.

        The place, in metres, is used when the map becomes metric.
        """
        self._map_from_first_base = np.asarray(map_from_base, np.float64)
        self._scale.map_from_first_base = self._map_from_first_base

    def set_initial_pose(self, pose: InitialPose) -> None:
        """Somebody says where the base is: start there, or look there for what the next images show.

        In an empty map it is the base's first pose.  Otherwise the track is left, and the next window is
        registered to keyframes near the pose; where none fits, a submap starts at the pose, or, where the map
        stays as it is, the next few windows are looked for there, too.  Raises UserError for a map that is
        not in metres.
        """
        if not self.map.keyframes:
            self.set_first_pose(pose.map_from_base)
            return
        if not self.map.metres:
            raise UserError("the map is not in metres yet, so a pose in metres says nothing; drive on")
        self._initial_pose, self._pose_tries = pose, _POSE_TRIES
        self._leave_track()

    def set_config(self, config: MapperConfig) -> None:
        """Change parameters that are marked dynamic, from the next frame and window on."""
        config = self.config = config.for_network(descriptor_limits(self._network))
        self._intake.set_config(config.keyframes, self._capacity)
        self._loops.config = config.loop
        self._window.config = config.window  # a smaller window, when memory runs out
        self.map.config = config.map

    def set_localizing(self, localizing: bool) -> None:
        """True: place frames in the map, which stays as it is.  False: extend it again, from the next place
        on that is recognised.
        """
        if localizing == self.localizing:
            return
        self._leave_track()
        self._drop_pending("not_connected")
        self._localizer.forget()
        self._loops.apply(self.map)
        self.map.fuse_moved()
        self.localizing = localizing

    # ---------------------------------------------------------------- the method

    def window_ready(self, standing: bool = False) -> bool:
        """Whether enough keyframes wait: `stride` of them; to start a submap `overlap` more, if they fit.

        standing: the camera stands and no more will come soon; one is enough then, unless a submap starts.
        """
        if self.localizing:
            return self._intake.waiting > 0
        needed = self.config.window.stride
        if not self._window.ids:
            needed += max(0, self.config.window.overlap - len(self._pending))
        elif standing:
            needed = 1
        return self._intake.waiting >= min(needed, self._capacity)

    @_every_frame_counted
    def process_window(self) -> WindowResult | None:
        """Look at the waiting keyframes with known ones; register, fuse, close loops, find the scale.

        None when there was nothing new to look at: all that waited was redundant or unusable.  What the
        network raises (out of memory) passes through; the map stays, the new keyframes are lost.
        """
        clock = Clock()
        if self.localizing:
            return self._localize_waiting(clock)
        self._loops.apply(self.map, wait=False)
        live = self._window.ids
        if self._scale.correct(self.map, self._submap, live, self.config.scale):
            self._loops.edges.accept(live, {k.id: k.map_from_local for k in self.map.keyframes.values()})
        new = self._encode_waiting()
        retrieved = self._retrieve(new)
        views = self._window.compose(new, retrieved)
        clock.lap("encode")
        if not new:
            return None
        if len(views) < 2:
            return self._reject(new, None, "fewer than two usable views", clock)
        known = {view.keyframe_id for view in retrieved if view.keyframe_id is not None}
        start = self._submap_start(new[0], new)
        tracked = track(
            self._network, views, known, self.map.keyframes, start, self._known, self.config, clock.lap
        )
        if tracked.reason:
            return self._reject(new, tracked, tracked.reason, clock)
        if self.config.registration.planar:
            tracked = self._on_the_plane(tracked)
        fusion, disagrees = self._fuse(tracked, known)
        clock.lap("fuse")
        loop_closed = self._close_loop(tracked, disagrees)
        clock.lap("loop")
        rescaled = self._scale.find(self.map, self._submap, self.config.scale)
        if rescaled is not None:
            self._loops.discard()
        clock.lap("scale")
        return self._accept(tracked, fusion, loop_closed, rescaled or Sim3.identity(), clock)

    def loops(self) -> list[tuple[int, int]]:
        """Ids of the keyframes that loop closures connect, both in the map's main submap."""
        held = self.map.part()
        return [(e.i, e.j) for e in self._loops.edges if e.robust and e.i in held and e.j in held]

    def finish(self) -> WindowResult | None:
        """The last, partial window of a source and all work that was put off; None if no keyframe waits."""
        result = self.process_window() if self._intake.waiting else None
        if self.localizing:
            return result
        self._drop_pending("not_connected")
        self._loops.apply(self.map)
        if self._scale.find(self.map, self._submap, self.config.scale, last=True) is not None:
            self._loops.discard()
        left = self._take_left()
        self.map.refine(final=left, provisional=self._window.ids)
        self.map.fuse([*left, *self._window.ids])
        self.map.fuse_moved()
        self.map.follow()
        return result

    # ---------------------------------------------------------------- its steps

    @property
    def _capacity(self) -> int:
        """Keyframes that may wait: as many as fit into one window beside the overlap."""
        return self.config.window.size - self.config.window.overlap

    def _encode_waiting(self) -> list[WindowView]:
        """The pending views and the waiting frames'; none without a new one.  Unusable frames are counted."""
        fresh: list[WindowView] = []
        frames = self._intake.take()
        for frame, encoded in zip(frames, encode_all(self._network, frames), strict=True):
            if isinstance(encoded, UserError) or not np.isfinite(encoded.descriptor).all():
                known = isinstance(encoded, UserError)
                self._last_error = str(encoded) if known else "the encoder's tokens are not finite"
                self._intake.drop("unusable")
                continue
            view = placed_by_odometry(WindowView.of(frame, encoded), self._odometry, self._base_from_camera)
            if self._redundant(view, [*self._window.views, *self._pending, *fresh]):
                self._intake.drop("redundant")
            else:
                fresh.append(view)
        if not fresh:
            return []
        views, self._pending = [*self._pending, *fresh], []
        most = self._capacity if self._window.ids else self.config.window.size
        self._intake.drop("not_connected", len(views[:-most]))
        return views[-most:]

    def _redundant(self, view: WindowView, others: Sequence[WindowView]) -> bool:
        """Whether the tokens of a view are too much alike those of its camera's last keyframe."""
        last = next((other for other in reversed(others) if other.camera == view.camera), view)
        alike = float(view.encoded.descriptor @ last.encoded.descriptor)
        return last is not view and alike > self.config.keyframes.max_similarity

    def _retrieve(self, new: Sequence[WindowView]) -> list[WindowView]:
        """Known keyframes that may show what the new views show, encoded again from their images."""
        if not new:
            return []
        room = self.config.window.size - len(new) - (self.config.window.overlap if self._window.ids else 0)
        live = [self.map.keyframes[i] for i in self._window.ids]
        descriptors = np.stack([view.encoded.descriptor for view in new])
        if self._initial_pose is not None:
            mount = extrinsics(self._base_from_camera, new[0])
            far = self.map.keyframes.keys() - self._initial_pose.near(self.map.keyframes.values(), mount)
            return self._views_of(self._loops.index.search(descriptors, room, far, -1.0))
        found = self._loops.candidates(descriptors, live, self._submap, self.map, room)
        return self._views_of(found)

    def _localize_waiting(self, clock: Clock) -> WindowResult | None:
        """Place the waiting keyframes in the map without changing it."""
        new = self._encode_waiting() if self.map.keyframes else []
        if not self.map.keyframes:
            self._intake.drop("rejected", len(self._intake.take()))
            return self._not_placed(None, EMPTY_MAP, clock)
        if not new:
            return None
        near = None
        if self._initial_pose is not None:
            mount = extrinsics(self._base_from_camera, new[0])
            near = self._initial_pose.near(self.map.keyframes.values(), mount)
        found = self._localizer.locate(
            self._network,
            new,
            self.map,
            self._loops.index,
            self._views_of,
            self._next_id,
            self._submap_start(new[0]),
            self._known,
            self.config,
            clock.lap,
            near,
        )
        self._pose_tries -= near is not None
        if self._pose_tries <= 0 or not found.reason:
            self._initial_pose = None  # found there; or the pose was wrong, and everywhere is looked at again
        if found.reason:
            self._intake.drop("rejected", len(new))
            return self._not_placed(found.tracked, found.reason, clock)
        assert found.tracked is not None
        self._known = found.tracked.known
        self._intake.drop("not_connected", found.left_out)
        self._intake.use(len(found.estimates))
        self._next_id += len(found.estimates)
        self._submap = found.submap
        self._windows += 1
        self._timings = clock.laps
        context = Context(self._submap, self.map.version, False, Sim3.identity(), dict(clock.laps))
        return window_result(found.tracked, "", found.estimates, context)

    def _not_placed(self, tracked: Track | None, reason: str, clock: Clock) -> WindowResult:
        """The result of a window that is nowhere in the map; the map stays."""
        self._rejected += 1
        self._last_error = reason
        self._timings = clock.laps
        context = Context(self._submap, self.map.version, False, Sim3.identity(), dict(clock.laps))
        return window_result(tracked, reason, (), context)

    def _drop_pending(self, reason: str) -> None:
        self._intake.drop(reason, len(self._pending))
        self._pending = []

    def _views_of(self, found: Sequence[int]) -> list[WindowView]:
        """Keyframes as views, without those that this network sees in another size than the map's did."""
        keyframes, frames, views = [self.map.keyframes[i] for i in found], [], []
        for keyframe in keyframes:
            assert keyframe.image is not None
            frames.append(
                Frame(
                    keyframe.stamp_ns,
                    keyframe.camera,
                    keyframe.image,
                    keyframe.intrinsics,
                    base_from_camera=keyframe.base_from_camera,
                )
            )
        encoded = encode_all(self._network, frames)
        for keyframe, frame, view in zip(keyframes, frames, encoded, strict=True):
            if isinstance(view, UserError):
                self._last_error = str(view)
            elif view.image.shape == frame.image.shape:
                views.append(replace(WindowView.of(frame, view), keyframe_id=keyframe.id))
        return views

    def _submap_start(self, first: WindowView, new: Sequence[WindowView] = ()) -> SubmapStart:
        """Where the track was lost, where odometry has brought the new views since, or the map's origin."""
        base_from_camera = extrinsics(self._base_from_camera, first)
        odom_from_base = self._odometry.at(first.stamp_ns)
        origin = level_origin(self._map_from_first_base, odom_from_base, base_from_camera)
        start = submap_start(self.map.keyframes, origin)
        if self._initial_pose is None and self._window.ids:
            return start
        if self._initial_pose is None:
            newest = self._newest_of_submap(50) if self.map.known_scale(self._submap) else []
            expected = expected_poses(newest, new, self._odometry, self._base_from_camera)
            return replace(start, expected=expected)
        return replace(start, map_from_camera=self._initial_pose.map_from_base @ base_from_camera)

    def _on_the_plane(self, tracked: Track) -> Track:
        """The window moved so that the base of its new views, where it is known, is on the ground plane."""
        window, base_from_camera = tracked.window, []
        map_from_camera = []
        for number in np.flatnonzero(tracked.connected).tolist():
            known = known_extrinsics(self._base_from_camera, window.views[number])
            if known is not None:
                pose = window.poses.window_from_camera[number]
                map_from_camera.append(window.registration.map_from_window.move_camera(pose))
                base_from_camera.append(known)
        if not base_from_camera:
            return tracked
        metres = self.map.known_scale(self._submap) and not tracked.relocalized
        change = to_the_plane(np.stack(map_from_camera), np.stack(base_from_camera), metres)
        registration = window.registration
        moved = replace(registration, map_from_window=change @ registration.map_from_window)
        return replace(tracked, window=replace(window, registration=moved))

    def _newest_of_submap(self, count: int) -> list[Keyframe]:
        """The newest keyframes of the submap in work, in time order."""
        mine = (k for k in reversed(self.map.keyframes.values()) if k.submap == self._submap)
        return sorted(islice(mine, count), key=lambda keyframe: keyframe.stamp_ns)

    def _fuse(self, tracked: Track, retrieved: set[int]) -> tuple[Fusion, bool]:
        """Put the window into the map: new keyframes, better poses of live ones, and their points.

        Also whether a loop contradicts the map.
        """
        self._initial_pose = None
        if tracked.relocalized:
            self._leave_track()
            assert tracked.loop_keyframe is not None
            self._submap = self.map.keyframes[tracked.loop_keyframe].submap
        elif not self._window.ids and self.map.keyframes and not tracked.bridged:
            self._submaps += 1
            self._submap = self._submaps
            if self.map.metres:
                self.map.guessed.add(self._submap)
        fusion = fuse_window(
            tracked, self.map.keyframes, self._window.ids, self._next_id, self._submap, self.config
        )
        self._next_id += len(fusion.views)
        # those after the last that was placed may be connected by what follows
        self._pending = [v for v in fusion.left_out if v.stamp_ns > fusion.views[-1].stamp_ns]
        self._intake.drop("not_connected", len(fusion.left_out) - len(self._pending))
        before = self._newest_of_submap(1) if tracked.bridged else []
        self.map.put(fusion.keyframes)
        self._intake.use(len(fusion.views))
        fresh = [view.keyframe_id for view in fusion.views if view.keyframe_id is not None]
        for identity in fresh:
            self._loops.index.add(identity, self.map.keyframes[identity].descriptor)
        for keyframe in before:
            self._loops.bridge(keyframe, self.map.keyframes[fresh[0]])
        moved = self._measure(tracked, fusion, retrieved, fresh)
        settled = [*self._take_left(), *self._window.keep(list(fusion.views))]
        self.map.refine(final=settled, provisional=fresh)
        self.map.fuse(settled)
        self.map.fuse(fresh, final=False)
        self.map.fuse_moved(self.config.map.moved_per_window, later=self._window.ids)
        self._loops.forget(self.map.cull(set(self._window.ids), self._loops.nbytes))
        return fusion, moved

    def _measure(self, tracked: Track, fusion: Fusion, retrieved: set[int], fresh: Sequence[int]) -> bool:
        """Remember what the window and odometry measured, and smooth the live keyframes with the fresh ones;
        whether a loop contradicts the map.
        """
        keyframes = self.map.keyframes
        depths = {identity: keyframes[identity].depth for identity in fusion.window_from_local}
        edges = window_edges(fusion.window_from_local, depths, retrieved, tracked.known.errors)
        disagrees = self._loops.add(edges, keyframes)
        if self.map.known_scale(self._submap):
            newest = self._newest_of_submap(50 + len(fresh))
            known = self._odometry, self._base_from_camera, tracked.known.errors
            for edge in odometry_edges(newest, len(fresh), *known):
                self._loops.edges.measure(edge)
        if not self.config.registration.planar:  # the graph knows nothing of the plane
            self._loops.smooth(self.map, [*self._window.ids, *fresh])
        return disagrees

    def _close_loop(self, tracked: Track, disagrees: bool) -> bool:
        """Join submaps that the window connects; start to optimise where a loop disagrees."""
        if tracked.loop is None or tracked.loop_keyframe is None:
            return False
        submap = self.map.keyframes[tracked.loop_keyframe].submap
        if submap != self._submap:
            self._join(
                submap, tracked.loop.map_from_window @ tracked.window.registration.map_from_window.inverse()
            )
        if disagrees:
            self._loops.optimize(self.map)
        self._loops.closed += not tracked.relocalized
        return not tracked.relocalized

    def _join(self, other: int, other_from_mine: Sim3) -> None:
        """Make the submap in work and another one; of the two, the one whose scale is known stays."""
        if self.map.known_scale(self._submap) and not self.map.known_scale(other):
            self.map.join(other, self._submap, other_from_mine.inverse())
        else:
            self.map.join(self._submap, other, other_from_mine)
            self._submap = other
        self._loops.discard()

    def _leave_track(self) -> None:
        """The views in the window are not continued: their poses are final, and their points will be with the
        next window that is accepted.
        """
        lost = self._window.clear()
        if lost:
            self._loops.lose(lost)
            self._left += lost

    def _take_left(self) -> list[int]:
        """The keyframes of windows that were left, which are still in the map and not final."""
        left, self._left = [i for i in self._left if i in self.map.keyframes], []
        return left

    def _accept(
        self, tracked: Track, fusion: Fusion, loop_closed: bool, rescaled: Sim3, clock: Clock
    ) -> WindowResult:
        self._windows += 1
        self._rejected_in_a_row = 0
        self._known = tracked.known
        self._timings = clock.laps
        views = up_to_date(fusion.estimates, self.map.keyframes, rescaled.scale)
        context = Context(self._submap, self.map.version, loop_closed, rescaled, dict(clock.laps))
        return window_result(tracked, "", views, context)

    def _reject(
        self, new: Sequence[WindowView], tracked: Track | None, reason: str, clock: Clock
    ) -> WindowResult:
        """Leave the map as it is; after some rejections in a row the new views will start a submap."""
        self._rejected_in_a_row += 1
        self._pending = list(new[-self._capacity :])
        self._intake.drop("rejected", len(new) - len(self._pending))
        if self._rejected_in_a_row >= self.config.registration.lost_after:
            self._leave_track()
        return self._not_placed(tracked, reason, clock)

    # ---------------------------------------------------------------- out

    def trajectory(self, by_arrival: bool = False, submap: int | None = None) -> list[PoseEstimate]:
        """Every keyframe of one submap (None: the main one, see `Map.parts`) with its latest pose.

        In time order, or as they came (time may have gone back).
        """
        self.map.follow()
        mine = self.map.part(submap).values()
        return [pose_of(k) for k in sorted(mine, key=lambda k: k.id if by_arrival else k.stamp_ns)]

    def newest_pose(self) -> PoseEstimate | None:
        """The pose of the newest keyframe; if a newer one waits, its pose by odometry or constant
        velocity.
        """
        recent = [self.map.keyframes[i] for i in self._window.ids[-2:]] or list(self._localizer.placed)
        waiting = self._intake.newest
        if not recent or waiting is None or waiting.stamp_ns <= recent[-1].stamp_ns:
            return pose_of(recent[-1]) if recent else None
        step = None
        if self.map.known_scale(recent[-1].submap):
            step = odometry_step(self._odometry, self._base_from_camera, recent[-1], waiting)
        return predict(recent, step, waiting)

    def frame_counts(self) -> FrameCounts:
        """Every frame's fate since the beginning, up to this moment, also while a window is in work."""
        return self._intake.totals()

    def localize(self, frame: Frame) -> PoseEstimate | None:
        """The pose of one frame in the map, which is not changed; None when it is not recognised."""
        if not self.map.keyframes:
            return None
        view = WindowView.of(frame, self._network.encode(frame))
        once = Localizer()
        once.locate(
            self._network,
            [view],
            self.map,
            self._loops.index,
            self._views_of,
            self._next_id,
            self._submap_start(view),
            self._known,
            self.config,
            lambda _: None,
        )
        return once.newest

    def status(self) -> MapperStatus:
        """Counts since the start or the last reset."""
        received, dropped = self._intake.counts()
        return MapperStatus(
            received=received,
            keyframes=self._next_id,
            dropped=dropped,
            windows=self._windows,
            windows_rejected=self._rejected,
            submaps=self.map.submaps,
            loops_closed=self._loops.closed,
            map_points=self.map.points,
            map_bytes=self.map.nbytes + self._loops.nbytes,
            scale_source=self.config.scale.source,
            metres=self.map.known_scale(self._submap),
            scale_sigma=self._scale.latest.sigma,
            timings=self._timings,
            last_error=self._last_error,
            focal_differences=self._known.focals.differences(),
            calibration=self._known.focals.doubts(),
            repeated_passes=getattr(self._network, "repeated_passes", 0),
        )

    def restart_window(self) -> None:
        """Time or place jumped: forget waiting frames and stamps; a submap starts, and joins when
        recognised.
        """
        self._intake.restart(self.config.keyframes, self._capacity)
        self._drop_pending("restart")
        self._odometry.clear()
        self._localizer.forget()
        self._leave_track()

    def save_map(self, directory: Path) -> None:
        """Save the map into a directory.  Raises UserError when that is not possible."""
        self._loops.apply(self.map)
        self.map.follow()
        keyframes = tuple(self.map.shown())
        edges = tuple(self._loops.edges)
        metric = self.map.metres, self.map.voxel_size, tuple(self.map.guessed)
        write_map(Path(directory), SavedMap(keyframes, edges, *metric))

    def load_map(self, directory: Path) -> None:
        """Replace the map by a saved one; the next windows join it when a place is recognised.

        Raises UserError, and keeps the present map, when the directory holds no usable map.
        """
        saved = read_map(Path(directory))
        metric = saved.metres, saved.voxel_size, saved.guessed
        try:
            restored = Map.restored(self.config.map, saved.keyframes, *metric)
        except MemoryError as error:
            raise UserError(f"the map in {directory} does not fit into memory") from error
        self.reset()
        self.map = restored
        self._loops.edges = EdgeStore(saved.edges)
        for keyframe in saved.keyframes:
            if keyframe.points is not None:
                self._loops.index.add(keyframe.id, keyframe.descriptor)
        self._next_id = max((k.id for k in saved.keyframes), default=-1) + 1
        self._submap = self._submaps = max((k.submap for k in saved.keyframes), default=0)

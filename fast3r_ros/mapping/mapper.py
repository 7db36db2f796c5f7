"""The mapper: frames in, one consistent map out.  `Mapper.process_window` is the method on one screen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import TypeVar

import numpy as np

from fast3r_ros.errors import UserError
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import (
    Float64,
    Frame,
    MapperStatus,
    PoseEstimate,
    ViewEstimate,
    WindowNetwork,
    WindowResult,
    descriptor_limits,
)
from fast3r_ros.mapping.expectation import InitialPose, odometry_step
from fast3r_ros.mapping.gravity import extrinsics, known_extrinsics
from fast3r_ros.mapping.inbox import FrameCounts, FrameIntake, OdometryBuffer
from fast3r_ros.mapping.localization import EMPTY_MAP, Localizer
from fast3r_ros.mapping.map import Map
from fast3r_ros.mapping.map_builder import MapBuilder
from fast3r_ros.mapping.map_update import MapUpdate, on_the_plane
from fast3r_ros.mapping.new_views import NewViews
from fast3r_ros.mapping.scale import MetricScale
from fast3r_ros.mapping.tracking import Knowledge, SubmapStart, Track, track
from fast3r_ros.mapping.window import WindowView
from fast3r_ros.mapping.window_result import Clock, Context, pose_of, predict, up_to_date, window_result

_POSE_TRIES = 3  # windows to search near a given pose while only localising
Result = TypeVar("Result")


def _every_frame_counted(method: Callable[[Mapper], Result]) -> Callable[[Mapper], Result]:
    """Count frames that a method has taken and lost in an exception as dropped (`window_failed`)."""

    @wraps(method)
    def counted(mapper: Mapper) -> Result:
        try:
            return method(mapper)
        except BaseException:
            mapper._intake.lose("window_failed", kept=len(mapper._new.pending))
            raise

    return counted


@dataclass
class _Counts:
    """Of windows since the start or the last reset.  timings: seconds per stage of the last window."""

    accepted: int = 0
    rejected: int = 0
    rejected_in_a_row: int = 0
    timings: dict[str, float] = field(default_factory=dict)


class Mapper:
    """Selects keyframes, processes windows of them, registers each window to the map and fuses it.

    `add_frame`, `add_odometry`, `restart_input`, `newest_pose` and `frame_counts` may be called from any
    thread, the others from one only.
    """

    def __init__(self, network: WindowNetwork, config: MapperConfig | None = None) -> None:
        self.config = (config or MapperConfig()).for_network(descriptor_limits(network))
        self._network = network
        self._base_from_camera: dict[str, Float64] = {}
        self._map_from_first_base: Float64 | None = None
        self._odometry = OdometryBuffer()
        self._intake = FrameIntake(self.config.keyframes, self._capacity)
        self._localizer = Localizer()
        self._builder = MapBuilder(self.config, self._odometry, self._base_from_camera)
        self.localizing = False
        self.reset()

    def reset(self) -> None:
        """Forget everything but the cameras' extrinsics, and start again."""
        self._intake.reset(self.config.keyframes, self._capacity)
        self._odometry.clear()
        self._builder.close()
        self._builder = MapBuilder(self.config, self._odometry, self._base_from_camera)
        self._new = NewViews(self._intake, self._odometry, self._base_from_camera)
        self._counts = _Counts()
        self._scale = MetricScale(self._odometry, self._base_from_camera)
        self._scale.map_from_first_base = self._map_from_first_base
        self._known = Knowledge()
        self._localizer.forget()
        self._initial_pose: InitialPose | None = None
        self._pose_tries = 0

    @property
    def map(self) -> Map:
        """The map: see `Map`; it changes with every window."""
        return self._builder.map

    # ---------------------------------------------------------------- in

    def add_frame(self, frame: Frame) -> str:
        """Offer a frame: it becomes a pending keyframe (""), or is dropped for the returned reason."""
        known = known_extrinsics(self._base_from_camera, frame)
        return self._intake.offer(frame if known is None else replace(frame, base_from_camera=known))

    def add_odometry(self, stamp_ns: int, odom_from_base: Float64) -> None:
        """A pose (4, 4) of the robot's base in its odometry frame, metres.  UserError if it is not a pose."""
        self._odometry.add(stamp_ns, odom_from_base)

    def set_extrinsics(self, camera: str, base_from_camera: Float64) -> None:
        """Set the pose of a camera (optical frame) on the robot, (4, 4) metres; by default it looks ahead.

        A frame's own `base_from_camera` has priority.
        """
        self._base_from_camera[camera] = np.asarray(base_from_camera, np.float64)

    def set_first_pose(self, map_from_base: Float64) -> None:
        """Set the base's pose (4, 4) at the start of an empty map: gravity, heading and position.

        The position, in metres, is used when the map becomes metric.
        """
        self._map_from_first_base = np.asarray(map_from_base, np.float64)
        self._scale.map_from_first_base = self._map_from_first_base

    def set_initial_pose(self, pose: InitialPose) -> None:
        """Set the pose of the base, to start there or to localise the next images there.

        In an empty map it is the base's first pose.  Otherwise the track is left, and the next window is
        registered to keyframes near the pose.  If none fits, a submap starts at the pose, or, while
        localising, the next few windows are also tried there.  Raises UserError for a map that is not in
        metres.
        """
        if not self.map.keyframes:
            self.set_first_pose(pose.map_from_base)
            return
        if not self.map.metres:
            raise UserError(
                "the map is not in metres yet, so a pose in metres cannot be used; move the robot until the "
                "scale is known"
            )
        self._initial_pose, self._pose_tries = pose, _POSE_TRIES
        self._builder.leave_track()

    def set_config(self, config: MapperConfig) -> None:
        """Change the dynamic parameters, from the next frame and window on."""
        config = self.config = config.for_network(descriptor_limits(self._network))
        self._intake.set_config(config.keyframes, self._capacity)
        self._builder.set_config(config)

    def set_localizing(self, localizing: bool) -> None:
        """True: localise in the unchanged map.  False: extend it again from the next recognised place."""
        if localizing == self.localizing:
            return
        self._builder.leave_track()
        self._new.drop_pending("not_connected")
        self._localizer.forget()
        self._builder.loops.apply(self.map)
        self.map.fuse_moved()
        self.localizing = localizing

    # ---------------------------------------------------------------- the method

    def window_ready(self, standing: bool = False) -> bool:
        """Whether enough keyframes are pending: `stride`; to start a submap `overlap` more, if they fit.

        standing: the camera is stationary and no more will come soon; then one is enough, unless a submap
        starts.
        """
        if self.localizing:
            return self._intake.waiting > 0
        needed = self.config.window.stride
        if not self._builder.window.ids:
            needed += max(0, self.config.window.overlap - len(self._new.pending))
        elif standing:
            needed = 1
        return self._intake.waiting >= min(needed, self._capacity)

    @_every_frame_counted
    def process_window(self) -> WindowResult | None:
        """Process the pending keyframes with known ones: register, fuse, close loops, find the scale.

        None when all pending keyframes were redundant or unusable.  Exceptions of the network (out of memory)
        pass through; the map is unchanged, the new keyframes are lost.
        """
        clock = Clock()
        if self.localizing:
            return self._localize_waiting(clock)
        self._builder.loops.apply(self.map, wait=False)
        live = self._builder.window.ids
        if self._scale.correct(self.map, self._builder.submap, live, self.config.scale):
            self._builder.loops.edges.accept(
                live, {k.id: k.map_from_local for k in self.map.keyframes.values()}
            )
        new = self._take_new()
        retrieved = self._retrieve(new)
        views = self._builder.window.compose(new, retrieved)
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
            tracked = on_the_plane(tracked, self._base_from_camera, self._builder.metres)
        update, disagrees = self._builder.add(tracked, known)
        self._keep(update)
        clock.lap("fuse")
        loop_closed = self._builder.close_loop(tracked, disagrees)
        clock.lap("loop")
        rescaled = self._scale.find(self.map, self._builder.submap, self.config.scale)
        if rescaled is not None:
            self._builder.loops.discard()
        clock.lap("scale")
        self._counts.accepted += 1
        self._counts.rejected_in_a_row = 0
        self._known = tracked.known
        estimates = up_to_date(update.estimates, self.map.keyframes, rescaled.scale if rescaled else 1.0)
        return self._result(tracked, "", estimates, clock, loop_closed, rescaled)

    def loops(self) -> list[tuple[int, int]]:
        """Ids of the keyframes that loop closures connect, both in the map's main submap."""
        return self._builder.loop_pairs()

    def finish(self) -> WindowResult | None:
        """Process the last, partial window and all deferred work; None if no keyframe is pending."""
        result = self.process_window() if self._intake.waiting else None
        if self.localizing:
            return result
        self._new.drop_pending("not_connected")
        self._builder.loops.apply(self.map)
        if self._scale.find(self.map, self._builder.submap, self.config.scale, last=True) is not None:
            self._builder.loops.discard()
        self._builder.finish()
        return result

    # ---------------------------------------------------------------- its steps

    @property
    def _capacity(self) -> int:
        """Maximum number of pending keyframes: as many as fit into one window next to the overlap."""
        return self.config.window.size - self.config.window.overlap

    def _retrieve(self, new: Sequence[WindowView]) -> list[WindowView]:
        """Known keyframes that may show the new views' scene, encoded again from their images."""
        if not new:
            return []
        near = self._near(new[0])
        return self._views_of(self._builder.candidates(new, near))

    def _near(self, view: WindowView) -> set[int] | None:
        """Ids of the keyframes near a given pose; None without one."""
        if self._initial_pose is None:
            return None
        mount = extrinsics(self._base_from_camera, view)
        return self._initial_pose.near(self.map.keyframes.values(), mount)

    def _take_new(self) -> list[WindowView]:
        """The views to be placed, see `NewViews.take`."""
        most = self._capacity if self._builder.window.ids else self.config.window.size
        similar = self.config.keyframes.max_similarity
        return self._new.take(self._network, self._builder.window.views, most, similar)

    def _views_of(self, keyframes: Sequence[int]) -> list[WindowView]:
        """Known keyframes, encoded again from their images."""
        return self._new.of_keyframes(self._network, [self.map.keyframes[i] for i in keyframes])

    def _localize_waiting(self, clock: Clock) -> WindowResult | None:
        """Localise the pending keyframes without changing the map."""
        new = self._take_new() if self.map.keyframes else []
        if not self.map.keyframes:
            self._intake.drop("rejected", len(self._intake.take()))
            return self._not_placed(None, EMPTY_MAP, clock)
        if not new:
            return None
        near = self._near(new[0])
        found = self._localizer.locate(
            self._network,
            new,
            self._builder,
            self._views_of,
            self._submap_start(new[0]),
            self._known,
            self.config,
            clock.lap,
            near,
        )
        self._pose_tries -= near is not None
        if self._pose_tries <= 0 or not found.reason:
            self._initial_pose = None  # found there, or the pose was wrong: the whole map is searched again
        if found.reason:
            self._intake.drop("rejected", len(new))
            return self._not_placed(found.tracked, found.reason, clock)
        assert found.tracked is not None
        self._known = found.tracked.known
        self._intake.drop("not_connected", found.left_out)
        self._intake.use(len(found.estimates))
        self._builder.next_id += len(found.estimates)
        self._builder.submap = found.submap
        self._counts.accepted += 1
        return self._result(found.tracked, "", found.estimates, clock)

    def _not_placed(self, tracked: Track | None, reason: str, clock: Clock) -> WindowResult:
        """The result of a window that could not be placed; the map is unchanged."""
        self._counts.rejected += 1
        self._new.error = reason
        return self._result(tracked, reason, (), clock)

    def _result(
        self,
        tracked: Track | None,
        reason: str,
        views: tuple[ViewEstimate, ...],
        clock: Clock,
        loop_closed: bool = False,
        rescaled: Sim3 | None = None,
    ) -> WindowResult:
        self._counts.timings = clock.laps
        rescaled = rescaled or Sim3.identity()
        context = Context(self._builder.submap, self.map.version, loop_closed, rescaled, dict(clock.laps))
        return window_result(tracked, reason, views, context)

    def _submap_start(self, first: WindowView, new: Sequence[WindowView] = ()) -> SubmapStart:
        """The start of a submap: at a given pose, otherwise see `MapBuilder.start`."""
        if self._initial_pose is None:
            return self._builder.start(first, new, self._map_from_first_base)
        start = self._builder.start(first, (), self._map_from_first_base)
        mount = extrinsics(self._base_from_camera, first)
        return replace(start, map_from_camera=self._initial_pose.map_from_base @ mount)

    def _keep(self, update: MapUpdate) -> None:
        """Count the views of an accepted window; those after the last that was placed wait for the next one,
        which may connect them.
        """
        self._initial_pose = None
        self._new.pending = [v for v in update.left_out if v.stamp_ns > update.views[-1].stamp_ns]
        self._intake.drop("not_connected", len(update.left_out) - len(self._new.pending))
        self._intake.use(len(update.views))

    def _reject(
        self, new: Sequence[WindowView], tracked: Track | None, reason: str, clock: Clock
    ) -> WindowResult:
        """Leave the map unchanged; after several consecutive rejections the new views start a submap."""
        self._counts.rejected_in_a_row += 1
        self._new.pending = list(new[-self._capacity :])
        self._intake.drop("rejected", len(new) - len(self._new.pending))
        if self._counts.rejected_in_a_row >= self.config.registration.lost_after:
            self._builder.leave_track()
        return self._not_placed(tracked, reason, clock)

    # ---------------------------------------------------------------- out

    def trajectory(self, by_arrival: bool = False, submap: int | None = None) -> list[PoseEstimate]:
        """Every keyframe of one submap (None: the main one, see `Map.parts`) with its latest pose.

        In time order, or in order of arrival (time may have gone back).
        """
        self.map.follow()
        mine = self.map.part(submap).values()
        return [pose_of(k) for k in sorted(mine, key=lambda k: k.id if by_arrival else k.stamp_ns)]

    def newest_pose(self) -> PoseEstimate | None:
        """The newest keyframe's pose; for a newer pending one, predicted by odometry or constant velocity."""
        recent = [self.map.keyframes[i] for i in self._builder.window.ids[-2:]] or list(
            self._localizer.placed
        )
        waiting = self._intake.newest
        if not recent or waiting is None or waiting.stamp_ns <= recent[-1].stamp_ns:
            return pose_of(recent[-1]) if recent else None
        step = None
        if self.map.known_scale(recent[-1].submap):
            step = odometry_step(self._odometry, self._base_from_camera, recent[-1], waiting)
        return predict(recent, step, waiting)

    def frame_counts(self) -> FrameCounts:
        """Counts of all frames since the beginning, also while a window is being processed."""
        return self._intake.totals()

    def localize(self, frame: Frame) -> PoseEstimate | None:
        """The pose of one frame in the unchanged map; None when it is not recognised."""
        if not self.map.keyframes:
            return None
        view = WindowView.of(frame, self._network.encode(frame))
        once = Localizer()
        once.locate(
            self._network,
            [view],
            self._builder,
            self._views_of,
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
            keyframes=self._builder.next_id,
            dropped=dropped,
            windows=self._counts.accepted,
            windows_rejected=self._counts.rejected,
            submaps=self.map.submaps,
            loops_closed=self._builder.loops.closed,
            map_points=self.map.points,
            map_bytes=self._builder.nbytes,
            scale_source=self.config.scale.source,
            metres=self._builder.metres,
            scale_sigma=self._scale.latest.sigma,
            timings=self._counts.timings,
            last_error=self._new.error,
            focal_differences=self._known.focals.differences(),
            calibration=self._known.focals.doubts(),
            repeated_passes=getattr(self._network, "repeated_passes", 0),
        )

    def restart_input(self) -> None:
        """At a jump in time or place: drop pending keyframes, stamps and odometry; `restart_window` follows.

        Frames from after the jump are accepted at once, also while a window is in progress.
        """
        self._intake.restart(self.config.keyframes, self._capacity)
        self._odometry.clear()

    def restart_window(self) -> None:
        """After `restart_input`: start a submap."""
        self._new.drop_pending("restart")
        self._localizer.forget()
        self._builder.leave_track()

    def save_map(self, directory: Path) -> None:
        """Save the map into a directory.  Raises UserError when that fails."""
        self._builder.save(Path(directory))

    def load_map(self, directory: Path) -> None:
        """Replace the map by a saved one; the next windows join it when they recognise a place.

        Raises UserError, and keeps the present map, if the directory holds no usable map.
        """
        loaded = MapBuilder.loaded(Path(directory), self.config, self._odometry, self._base_from_camera)
        self.reset()
        self._builder.close()
        self._builder = loaded

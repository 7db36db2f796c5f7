"""The mapper: frames in, one consistent map out.  `Mapper.process_window` is the method in one screen."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from fast3r_ros.errors import UserError
from fast3r_ros.geometry.axes import optical_pose_from_body
from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.geometry.rotation import matrix_from_vector, vector_from_matrix
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
)
from fast3r_ros.mapping.keyframes import KeyframeSelector
from fast3r_ros.mapping.map import Keyframe, Map
from fast3r_ros.mapping.placement import (
    RegisteredWindow,
    estimate_view,
    median_depth,
    new_keyframe,
    overlaps_with_map,
    refined_keyframe,
    window_intrinsics,
)
from fast3r_ros.mapping.registration import Registration, place_views, register
from fast3r_ros.mapping.window import SlidingWindow, WindowView, reference_order

_UNIT_VOXEL = 0.01  # of the median depth of the first window


@dataclass(frozen=True)
class _Pending:
    """A keyframe that waits for its window; motion since the one before it, as a share of the image width."""

    frame: Frame
    motion: float


class Mapper:
    """Selects keyframes, looks at windows of them, registers each window to the map and fuses it.

    `add_frame` and `add_odometry` may be called from any thread; everything else from one thread.
    """

    def __init__(self, network: WindowNetwork, config: MapperConfig | None = None) -> None:
        self._network = network
        self._config = config or MapperConfig()
        self._lock = threading.Lock()  # guards what add_frame and add_odometry touch
        self.reset()

    def reset(self) -> None:
        """Forget everything and start anew."""
        with self._lock:
            self._selector = KeyframeSelector(self._config.keyframes)
            self._pending: list[_Pending] = []
            self._received = 0
            self._dropped: Counter[str] = Counter()
            self._newest_stamp_ns: dict[str, int] = {}
        self.map = Map(self._config.map, self._config.map.voxel_size or _UNIT_VOXEL)
        self._window = SlidingWindow(self._config.window)
        self._next_id = 0
        self._submap = 0
        self._windows = self._rejected = self._rejected_in_a_row = 0
        self._orphans: list[WindowView] = []
        self._timings: dict[str, float] = {}
        self._last_error = ""

    def configure(self, config: MapperConfig) -> None:
        """Take over parameters that may change at run time (`dynamic`); the others act at the next reset."""
        self._config = config
        with self._lock:
            self._selector.config = config.keyframes

    def restart_window(self) -> None:
        """Time went back or the camera jumped: the map stays, the next window starts a new submap."""
        with self._lock:
            self._selector = KeyframeSelector(self._config.keyframes)
            self._dropped["time_went_back"] += len(self._pending)
            self._pending = []
        self._window = SlidingWindow(self._config.window)
        self._rejected_in_a_row = 0
        if self.map.keyframes:
            self._submap += 1

    # ---------------------------------------------------------------- in

    def add_frame(self, frame: Frame) -> str:
        """Offer a frame: it waits for a window as a keyframe, or is dropped with the returned reason."""
        with self._lock:
            self._received += 1
            reason, motion = self._selector.judge(frame)
            if reason:
                self._dropped[reason] += 1
                return reason
            self._pending.append(_Pending(frame, motion))
            if len(self._pending) > self._config.window.size - self._config.window.overlap:
                self._pending = _thin_out(self._pending)
                self._dropped["overload"] += 1
        return ""

    def add_odometry(self, stamp_ns: int, odom_from_base: Float64) -> None:
        """A pose of the robot's base in its odometry frame, (4, 4) metres."""

    def window_ready(self) -> bool:
        """Whether enough keyframes wait: `stride` of them, and `overlap` more for the first window."""
        needed = self._config.window.stride
        if self._window.newest is None:
            needed += self._config.window.overlap
        return len(self._pending) >= needed

    # ---------------------------------------------------------------- the method

    def process_window(self) -> WindowResult:
        """Encode the waiting keyframes, reconstruct a window with them, register it to the map, fuse it."""
        clock = _Clock()
        new = self._encode(self._take_pending())
        clock.lap("encode")
        views = self._window.compose(new, [])
        if not new or len(views) < 2:
            return self._rejection(new, views, "fewer than two usable views", clock)
        window = self._reconstruct_and_register(views, clock)
        if window.registration.reason:
            return self._rejection(new, views, window.registration.reason, clock, window.registration)
        estimates = self._fuse(window)
        clock.lap("fuse")
        self._windows += 1
        self._rejected_in_a_row = 0
        self._timings = clock.laps
        return self._result(views, window.registration, "", tuple(estimates), clock)

    def finish(self) -> WindowResult | None:
        """The last, partial window at the end of a source; None if no keyframe waits."""
        result = self.process_window() if self._pending else None
        self.map.fuse_moved()
        return result

    def _take_pending(self) -> list[_Pending]:
        with self._lock:
            pending, self._pending = self._pending, []
        return sorted(pending, key=lambda item: item.frame.stamp_ns)

    def _encode(self, pending: list[_Pending]) -> list[WindowView]:
        """Tokens of the waiting frames; an unusable frame is dropped and counted, never fatal."""
        views: list[WindowView] = []
        newest = self._window.newest
        for item in pending:
            try:
                encoded = self._network.encode(item.frame)
            except UserError as error:
                self._drop("unusable", str(error))
                continue
            size = None if newest is None else newest.encoded.image.shape
            if size is not None and encoded.image.shape != size:
                self._drop(
                    "size", f"a frame of {item.frame.camera!r} has {encoded.image.shape}, not {size} pixels"
                )
                continue
            newest = WindowView.of(item.frame, encoded)
            views.append(newest)
        return views

    def _drop(self, reason: str, error: str = "") -> None:
        with self._lock:
            self._dropped[reason] += 1
        if error:
            self._last_error = error

    def _reconstruct_and_register(self, views: list[WindowView], clock: _Clock) -> RegisteredWindow:
        """Reconstruct with the best view 0; when the gates refuse the fit, with the next best."""
        best: RegisteredWindow | None = None
        for reference in reference_order(views)[: 1 + self._config.registration.retries]:
            ordered = [views[reference]] + [view for i, view in enumerate(views) if i != reference]
            reconstruction = self._network.reconstruct([view.encoded for view in ordered])
            clock.lap("network")
            intrinsics, known = window_intrinsics(ordered, reconstruction)
            poses = place_views(reconstruction, intrinsics if known else None, self._config.registration)
            window = RegisteredWindow(ordered, reconstruction, poses, intrinsics, _nothing())
            registration = self._start(window) if self._window.newest is None else self._register(window)
            clock.lap("register")
            window = replace(window, registration=registration)
            if best is None or registration.inlier_share > best.registration.inlier_share:
                best = window
            if not registration.reason:
                return window
        assert best is not None
        return best

    def _register(self, window: RegisteredWindow) -> Registration:
        """`map_from_window` from the pixels of the views that are in the map already."""
        overlaps = overlaps_with_map(window.views, self.map.keyframes)
        overlaps = [overlap for overlap in overlaps if window.poses.ok[overlap.view]]
        reconstruction = window.reconstruction
        registration = register(
            overlaps,
            reconstruction.points_global,
            reconstruction.confidence_global,
            self._config.registration,
        )
        if not registration.reason and not self._connected(window).any():
            return replace(registration, reason="no new view is connected to the map")
        return registration

    def _connected(self, window: RegisteredWindow) -> np.ndarray:
        """Which new views may go into the map, (V,): placed, and not far less confident than the known
        ones.
        """
        confidence = np.median(window.reconstruction.confidence_global, axis=(1, 2)) - 1.0
        known = np.array([view.keyframe_id is not None for view in window.views])
        usual = float(np.median(confidence[known])) if known.any() else float(confidence.max())
        enough = confidence >= self._config.registration.min_view_confidence * usual
        return np.asarray(window.poses.ok & enough & ~known)

    def _start(self, window: RegisteredWindow) -> Registration:
        """`map_from_window` of a submap's first window: its oldest view is level and where the track was
        lost.
        """
        usable = [i for i in np.argsort([v.stamp_ns for v in window.views]) if window.poses.ok[i]]
        if len(usable) < 2:
            return replace(_nothing(), reason="fewer than two views of the first window could be placed")
        first = int(usable[0])
        lost = self.newest_pose()
        map_from_camera = lost.map_from_camera if lost else optical_pose_from_body(np.eye(4))
        unit = [estimate_view(window, int(i), -1, self._config.points) for i in usable]
        scale = self._usual_depth() / median_depth(unit)
        window_from_camera = window.poses.window_from_camera[first]
        place = Sim3(scale, np.eye(3), np.zeros(3)) @ Sim3.from_rigid(inverse(window_from_camera))
        share = float(np.mean(window.poses.inlier_share[usable]))
        return Registration(Sim3.from_rigid(map_from_camera) @ place, share, 0.0, np.zeros((7, 7)), "")

    def _usual_depth(self) -> float:
        """Median depth of the newest keyframes in map units; 1 for an empty map, which defines the unit."""
        depths = [
            float(np.nanmedian(k.points.points[:, 2])) * k.map_from_local.scale
            for k in list(self.map.keyframes.values())[-8:]
            if k.points is not None
        ]
        return float(np.median(depths)) if depths else 1.0

    def _fuse(self, window: RegisteredWindow) -> list[ViewEstimate]:
        """Put the new views into the map and average the poses of the known ones; estimates in time order."""
        fresh = self._connected(window)
        known = [self.map.keyframes[v.keyframe_id] for v in window.views if v.keyframe_id is not None]
        base = min((k.covariance for k in known), key=np.trace, default=np.zeros((6, 6)))
        estimates, changed, live = [], [], []
        for number in np.argsort([view.stamp_ns for view in window.views], kind="stable"):
            view = window.views[number]
            if view.keyframe_id is None and not fresh[number]:
                self._drop("not_connected")
            if not window.poses.ok[number] or (view.keyframe_id is None and not fresh[number]):
                continue
            identity = self._next_id if view.keyframe_id is None else view.keyframe_id
            estimate = estimate_view(window, int(number), identity, self._config.points)
            if view.keyframe_id is None:
                self._next_id += 1
                view = replace(view, keyframe_id=identity)
                keyframe = new_keyframe(
                    estimate, view, self._submap, base, self._config.map.points_per_keyframe
                )
                live.append(view)
            else:
                keyframe = refined_keyframe(self.map.keyframes[identity], estimate)
            changed.append(keyframe)
            estimates.append(
                replace(estimate, map_from_camera=keyframe.map_from_camera, covariance=keyframe.covariance)
            )
        self.map.put(changed)
        left = self._window.keep(live)
        self.map.fuse([view.keyframe_id for view in live if view.keyframe_id is not None] + left)
        return estimates

    def _rejection(
        self,
        new: list[WindowView],
        views: list[WindowView],
        reason: str,
        clock: _Clock,
        registration: Registration | None = None,
    ) -> WindowResult:
        """Leave the map as it is; after some rejections in a row start a new submap with what was seen
        since.
        """
        self._rejected += 1
        self._rejected_in_a_row += 1
        self._last_error = reason
        self._timings = clock.laps
        return self._result(views, registration or _nothing(), reason, (), clock)

    def _result(
        self,
        views: list[WindowView],
        registration: Registration,
        reason: str,
        estimates: tuple[ViewEstimate, ...],
        clock: _Clock,
    ) -> WindowResult:
        return WindowResult(
            stamp_ns=max((view.stamp_ns for view in views), default=0),
            accepted=not reason,
            reason=reason,
            views=estimates,
            map_from_window=registration.map_from_window,
            residual=registration.residual,
            inlier_share=registration.inlier_share,
            submap=self._submap,
            map_version=self.map.version,
            loop_closed=False,
            timings=clock.laps,
        )

    # ---------------------------------------------------------------- out

    def trajectory(self) -> list[PoseEstimate]:
        """Every keyframe with its latest pose, in time order."""
        keyframes = sorted(self.map.keyframes.values(), key=lambda k: k.stamp_ns)
        return [_pose_of(keyframe) for keyframe in keyframes]

    def newest_pose(self) -> PoseEstimate | None:
        """The newest keyframe's pose; of a newer waiting frame, extrapolated with constant velocity."""
        recent = [self.map.keyframes[i] for i in self._window.ids[-2:]]
        if not recent:
            return None
        last = _pose_of(recent[-1])
        with self._lock:
            stamp_ns = self._pending[-1].frame.stamp_ns if self._pending else last.stamp_ns
        if stamp_ns <= last.stamp_ns or len(recent) < 2 or recent[0].camera != recent[1].camera:
            return last
        return _extrapolated(_pose_of(recent[0]), last, stamp_ns)

    def status(self) -> MapperStatus:
        """Counts since the start or the last reset."""
        with self._lock:
            received, dropped = self._received, dict(self._dropped)
        return MapperStatus(
            received=received,
            keyframes=self._next_id,
            dropped=dropped,
            windows=self._windows,
            windows_rejected=self._rejected,
            submaps=self._submap + 1,
            loops_closed=0,
            map_points=self.map.points,
            map_bytes=self.map.nbytes,
            scale_source=self._config.scale.source,
            metres=self.map.metres,
            scale_sigma=float("nan"),
            timings=self._timings,
            last_error=self._last_error,
        )


class _Clock:
    """Seconds per named stage of one window."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now


def _nothing() -> Registration:
    return Registration(Sim3.identity(), 0.0, float("inf"), np.zeros((7, 7)), "")


def _thin_out(pending: list[_Pending]) -> list[_Pending]:
    """Without the keyframe, not the newest, that moved least since its predecessor; its motion is passed
    on.
    """
    least = min(range(len(pending) - 1), key=lambda i: pending[i].motion)
    after = pending[least + 1]
    rest = pending[:least] + pending[least + 1 :]
    rest[least] = replace(after, motion=after.motion + pending[least].motion)
    return rest


def _pose_of(keyframe: Keyframe) -> PoseEstimate:
    return PoseEstimate(
        keyframe.stamp_ns, keyframe.camera, keyframe.map_from_camera, keyframe.covariance, extrapolated=False
    )


def _extrapolated(before: PoseEstimate, last: PoseEstimate, stamp_ns: int) -> PoseEstimate:
    """Constant velocity beyond `last`, for at most as long again as between the two; uncertainty grows
    with it.
    """
    span = last.stamp_ns - before.stamp_ns
    share = min(1.0, (stamp_ns - last.stamp_ns) / span)
    step = inverse(before.map_from_camera) @ last.map_from_camera
    pose = last.map_from_camera.copy()
    pose[:3, :3] = pose[:3, :3] @ matrix_from_vector(share * vector_from_matrix(step[:3, :3]))
    pose[:3, 3] += share * (last.map_from_camera[:3, 3] - before.map_from_camera[:3, 3])
    moved = np.zeros(6)
    moved[:3] = share * np.linalg.norm(step[:3, 3])
    moved[3:] = share * np.linalg.norm(vector_from_matrix(step[:3, :3]))
    return PoseEstimate(stamp_ns, last.camera, pose, last.covariance + np.diag(moved**2), extrapolated=True)

"""The report of a processed window, and poses predicted for frames after it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.geometry.rotation import matrix_from_vector, vector_from_matrix
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.data import Float64, Frame, Keyframe, PoseEstimate, ViewEstimate, WindowResult
from fast3r_ros.mapping.tracking import Track


class Clock:
    """Seconds per named stage of one window."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Add the time since the last call to a stage."""
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now


@dataclass(frozen=True)
class Context:
    """The mapper's state after a window.  rescaled: the change that made the map metric with this window."""

    submap: int
    map_version: int
    loop_closed: bool
    rescaled: Sim3
    timings: Mapping[str, float]


def up_to_date(
    estimates: Sequence[ViewEstimate], keyframes: Mapping[int, Keyframe], scale: float
) -> tuple[ViewEstimate, ...]:
    """The estimates with their keyframes' poses after loop closure and a change of scale."""
    return tuple(
        replace(
            estimate,
            map_from_camera=keyframes[estimate.keyframe_id].map_from_camera,
            covariance=keyframes[estimate.keyframe_id].covariance,
            maps=estimate.maps if scale == 1.0 else estimate.maps.scaled(scale),
        )
        for estimate in estimates
    )


def moved_covariance(covariance: Float64, new_from_old: Sim3) -> Float64:
    """(7, 7) of (translation, rotation vector, log scale) after the target frame was moved."""
    linear = np.eye(7)
    linear[:3, :3], linear[3:6, 3:6] = new_from_old.scale * new_from_old.rotation, new_from_old.rotation
    return np.asarray(linear @ covariance @ linear.T)


def window_result(
    tracked: Track | None, reason: str, views: tuple[ViewEstimate, ...], context: Context
) -> WindowResult:
    """The result of a window; tracked: None if it never reached the network; reason: of a rejection."""
    seen = () if tracked is None else tracked.window.views
    registration = None if tracked is None else tracked.window.registration
    place = registration.map_from_window if registration else Sim3.identity()
    covariance = np.full((7, 7), np.inf)
    if registration and not registration.reason:
        covariance = moved_covariance(registration.covariance, context.rescaled)
    return WindowResult(
        stamp_ns=max((view.stamp_ns for view in seen), default=0),
        accepted=not reason,
        reason=reason,
        views=views,
        map_from_window=context.rescaled @ place,
        residual=registration.residual * context.rescaled.scale if registration else float("inf"),
        covariance=covariance,
        inlier_share=registration.inlier_share if registration else 0.0,
        submap=context.submap,
        map_version=context.map_version,
        loop_closed=context.loop_closed,
        timings=context.timings,
    )


_ODOMETRY_ERROR = 0.02  # of the path length


def pose_of(keyframe: Keyframe) -> PoseEstimate:
    """The pose of a keyframe in the map."""
    return PoseEstimate(
        keyframe.stamp_ns,
        keyframe.camera,
        keyframe.map_from_camera,
        keyframe.covariance,
        extrapolated=False,
        base_from_camera=keyframe.base_from_camera,
    )


def predict(recent: Sequence[Keyframe], step: Float64 | None, frame: Frame) -> PoseEstimate:
    """The predicted pose of a frame: by odometry, else by constant velocity, else the last one.

    recent: the newest keyframes in time order.  step: from `odometry_step`, if the map is in metres.
    """
    last = pose_of(recent[-1])
    if step is not None:
        moved = _moved(last, step, frame.stamp_ns, _ODOMETRY_ERROR)
        return replace(moved, camera=frame.camera, base_from_camera=frame.base_from_camera)
    if len(recent) < 2 or recent[-2].camera != last.camera:
        return last
    return _extrapolated(pose_of(recent[-2]), last, frame.stamp_ns)


def _extrapolated(before: PoseEstimate, last: PoseEstimate, stamp_ns: int) -> PoseEstimate:
    """Constant velocity beyond `last`, at most as far as from `before`; uncertainty grows with distance."""
    share = min(1.0, (stamp_ns - last.stamp_ns) / (last.stamp_ns - before.stamp_ns))
    step = inverse(before.map_from_camera) @ last.map_from_camera
    ahead = np.eye(4)
    ahead[:3, :3] = matrix_from_vector(share * vector_from_matrix(step[:3, :3]))
    ahead[:3, 3] = share * step[:3, 3]
    return _moved(last, ahead, stamp_ns, error=1.0)


def _moved(last: PoseEstimate, step: Float64, stamp_ns: int, error: float) -> PoseEstimate:
    spread = np.zeros(6)
    spread[:3] = error * np.linalg.norm(step[:3, 3])
    spread[3:] = error * np.linalg.norm(vector_from_matrix(step[:3, :3]))
    covariance = last.covariance + np.diag(spread**2)
    moved = last.map_from_camera @ step
    return replace(last, stamp_ns=stamp_ns, map_from_camera=moved, covariance=covariance, extrapolated=True)

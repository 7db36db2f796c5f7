"""What is told about a window after it was processed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.data import Float64, ViewEstimate, WindowResult
from fast3r_ros.mapping.map import Keyframe
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
    """The estimates with the poses that their keyframes have after loop closure and a change of scale."""
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
    """The result of a window; tracked is None when it never reached the network, reason why it was
    refused.
    """
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

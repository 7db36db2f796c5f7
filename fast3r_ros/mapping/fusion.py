"""What a registered window adds to the map and changes in it; computed without touching either."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import ViewEstimate
from fast3r_ros.mapping.map import Keyframe
from fast3r_ros.mapping.placement import estimate_view, new_keyframe, refined_keyframe
from fast3r_ros.mapping.scale import metric_scale_from_depth, metric_scale_from_height
from fast3r_ros.mapping.tracking import Track
from fast3r_ros.mapping.window import WindowView


@dataclass(frozen=True)
class Fusion:
    """keyframes: new and re-estimated.  views: the new ones, with their ids.  estimates: of all these
    views, in time order.  left_out: number of new views that are not connected.
    """

    keyframes: tuple[Keyframe, ...]
    views: tuple[WindowView, ...]
    estimates: tuple[ViewEstimate, ...]
    left_out: int


def fuse_window(
    tracked: Track,
    keyframes: dict[int, Keyframe],
    live: Collection[int],
    next_id: int,
    submap: int,
    config: MapperConfig,
) -> Fusion:
    """Keyframes from the connected new views; poses of the live ones averaged with what this window says."""
    window = tracked.window
    known = [keyframes[view.keyframe_id] for view in window.views if view.keyframe_id is not None]
    base = min((k.covariance for k in known), key=np.trace, default=np.zeros((6, 6)))
    changed: list[Keyframe] = []
    fresh: list[WindowView] = []
    estimates: list[ViewEstimate] = []
    for number in np.argsort([view.stamp_ns for view in window.views], kind="stable"):
        view = window.views[number]
        if view.keyframe_id is None and tracked.connected[number]:
            view = replace(view, keyframe_id=next_id + len(fresh))
            estimate = estimate_view(window, int(number), next_id + len(fresh), config.points)
            metric_scale = _metric_scale(estimate, view, config)
            most = config.map.points_per_keyframe
            keyframe = new_keyframe(estimate, view, submap, base, most, metric_scale)
            fresh.append(view)
        elif view.keyframe_id in live and window.poses.ok[number]:
            assert view.keyframe_id is not None
            estimate = estimate_view(window, int(number), view.keyframe_id, config.points)
            keyframe = refined_keyframe(keyframes[view.keyframe_id], estimate)
        else:
            continue
        changed.append(keyframe)
        estimates.append(estimate)
    left_out = sum(view.keyframe_id is None for view in window.views) - len(fresh)
    return Fusion(tuple(changed), tuple(fresh), tuple(estimates), left_out)


def _metric_scale(estimate: ViewEstimate, view: WindowView, config: MapperConfig) -> float:
    """Metres per map unit as this view alone tells, NaN if the configured source is another or sees
    nothing.
    """
    if config.scale.source == "depth":
        return metric_scale_from_depth(estimate, view.depth)
    if config.scale.source == "camera_height":
        return metric_scale_from_height(estimate, config.scale.camera_height)
    return float("nan")

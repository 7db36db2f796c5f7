"""What a registered window adds to the map and changes in it; computed without touching either."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import Float64, ViewEstimate
from fast3r_ros.mapping.map import Keyframe
from fast3r_ros.mapping.placement import estimate_view, new_keyframe, refined_keyframes, sample_views
from fast3r_ros.mapping.points import grid_pixels
from fast3r_ros.mapping.scale import metric_scale_from_depth, metric_scale_from_height
from fast3r_ros.mapping.tracking import Track
from fast3r_ros.mapping.window import WindowView


@dataclass(frozen=True)
class Fusion:
    """keyframes: new and re-estimated.  views: the new ones, with their ids.  estimates: of all these
    views.  left_out: new views that are not connected.  All in time order.
    """

    keyframes: tuple[Keyframe, ...]
    views: tuple[WindowView, ...]
    estimates: tuple[ViewEstimate, ...]
    left_out: tuple[WindowView, ...]


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
    fresh: list[WindowView] = []
    left_out: list[WindowView] = []
    estimates: list[ViewEstimate] = []
    for number in np.argsort([view.stamp_ns for view in window.views], kind="stable"):
        view = window.views[number]
        if view.keyframe_id is None and tracked.connected[number]:
            view = replace(view, keyframe_id=next_id + len(fresh))
            fresh.append(view)
        elif view.keyframe_id is None:
            left_out.append(view)
            continue
        elif view.keyframe_id not in live or not window.poses.ok[number]:
            continue
        assert view.keyframe_id is not None
        estimates.append(estimate_view(window, int(number), view.keyframe_id, config.points))
    changed = _keyframes(estimates, fresh, keyframes, base, submap, config)
    return Fusion(tuple(changed), tuple(fresh), tuple(estimates), tuple(left_out))


def _keyframes(
    estimates: Sequence[ViewEstimate],
    fresh: Sequence[WindowView],
    keyframes: Mapping[int, Keyframe],
    base: Float64,
    submap: int,
    config: MapperConfig,
) -> list[Keyframe]:
    """The keyframes of the estimates: new ones of the fresh views, and the known ones with better poses."""
    views = {view.keyframe_id: view for view in fresh}
    sampled = sample_views(
        estimates, [_pixels(each, keyframes.get(each.keyframe_id), config) for each in estimates]
    )
    known = [
        (keyframes[each.keyframe_id], each, points)
        for each, points in zip(estimates, sampled, strict=True)
        if each.keyframe_id not in views
    ]
    refined = iter(refined_keyframes(*zip(*known, strict=True)) if known else ())
    changed = []
    for each, points in zip(estimates, sampled, strict=True):
        view = views.get(each.keyframe_id)
        if view is None:
            changed.append(next(refined))
        else:
            scale = _metric_scale(each, view, config)
            changed.append(new_keyframe(each, points, view.encoded.descriptor, submap, base, scale))
    return changed


def _pixels(estimate: ViewEstimate, keyframe: Keyframe | None, config: MapperConfig) -> NDArray[np.int32]:
    """Flat numbers of the pixels that a keyframe keeps."""
    if keyframe is not None and keyframe.points is not None:
        return keyframe.points.pixels
    height, width = estimate.image.shape[:2]
    return grid_pixels(height, width, config.map.points_per_keyframe)


def _metric_scale(estimate: ViewEstimate, view: WindowView, config: MapperConfig) -> float:
    """Metres per map unit as this view alone tells, NaN if the configured source is another or sees
    nothing.
    """
    if config.scale.source == "depth":
        return metric_scale_from_depth(estimate, view.depth)
    if config.scale.source == "camera_height":
        return metric_scale_from_height(estimate, config.scale.camera_height)
    return float("nan")

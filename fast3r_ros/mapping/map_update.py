"""The changes of the map by a registered window; computed without changing either."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import Float64, Keyframe, ViewEstimate
from fast3r_ros.mapping.expectation import to_the_plane
from fast3r_ros.mapping.gravity import known_extrinsics
from fast3r_ros.mapping.placement import estimate_view, new_keyframe, sample_views
from fast3r_ros.mapping.scale import metric_scale_from_depth, metric_scale_from_height
from fast3r_ros.mapping.tracking import Track
from fast3r_ros.mapping.window import WindowView


@dataclass(frozen=True)
class MapUpdate:
    """Changes of the map by one window, everything in time order.

    keyframes: new and re-estimated.  views: the new ones, with their ids.  estimates: of all these views.
    left_out: new views that are not connected.  window_from_local: keyframe -> this window's measurement, the
    best one first.
    """

    keyframes: tuple[Keyframe, ...]
    views: tuple[WindowView, ...]
    estimates: tuple[ViewEstimate, ...]
    left_out: tuple[WindowView, ...]
    window_from_local: Mapping[int, Sim3]


def map_update(
    tracked: Track,
    keyframes: dict[int, Keyframe],
    live: Collection[int],
    next_id: int,
    submap: int,
    config: MapperConfig,
) -> MapUpdate:
    """Keyframes from the connected new views; poses of the live ones averaged with this window's."""
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
        elif view.keyframe_id not in live or number not in tracked.scales:
            continue
        assert view.keyframe_id is not None
        estimates.append(estimate_view(window, int(number), view.keyframe_id, config.points))
    metric = window.reconstruction.metric
    changed = _keyframes(estimates, fresh, keyframes, base, submap, config, metric)
    identities = {(view.camera, view.stamp_ns): view.keyframe_id for view in fresh}
    measured = {}
    for number, scale in sorted(tracked.scales.items()):
        view, pose = window.views[number], window.poses.window_from_camera[number]
        identity = identities.get((view.camera, view.stamp_ns), view.keyframe_id)
        if identity is not None:
            measured[identity] = Sim3(scale, pose[:3, :3], pose[:3, 3])
    return MapUpdate(tuple(changed), tuple(fresh), tuple(estimates), tuple(left_out), measured)


def _keyframes(
    estimates: Sequence[ViewEstimate],
    fresh: Sequence[WindowView],
    keyframes: Mapping[int, Keyframe],
    base: Float64,
    submap: int,
    config: MapperConfig,
    metric: bool,
) -> list[Keyframe]:
    """The keyframes of the estimates: new ones for new views, known ones with one more estimate."""
    views = {view.keyframe_id: view for view in fresh}
    new = [each for each in estimates if each.keyframe_id in views]
    points = sample_views(new, config.map.points_per_keyframe)
    changed = {}
    for each, kept in zip(new, points, strict=True):
        view = views[each.keyframe_id]
        scale = _metric_scale(each, view, config, metric)
        changed[each.keyframe_id] = new_keyframe(each, kept, view.encoded.descriptor, submap, base, scale)
    for each in estimates:
        if each.keyframe_id not in views:
            known = keyframes[each.keyframe_id]
            changed[each.keyframe_id] = replace(known, estimates=known.estimates + 1)
    return [changed[each.keyframe_id] for each in estimates]


def _metric_scale(estimate: ViewEstimate, view: WindowView, config: MapperConfig, metric: bool) -> float:
    """Metres per map unit from this view alone; NaN for another scale source or without a measurement."""
    if config.scale.source == "depth":
        return metric_scale_from_depth(estimate, view.depth)
    if config.scale.source == "camera_height":
        return metric_scale_from_height(estimate, config.scale.camera_height)
    if config.scale.source == "network" and metric:
        return 1.0 / estimate.maps.scale
    return float("nan")


def on_the_plane(tracked: Track, base_from_camera: Mapping[str, Float64], metres: bool) -> Track:
    """A window moved so that the base of its new views, where it is known, is on the ground plane.

    base_from_camera: by camera, (4, 4) metres.  metres: whether the scale of the current submap is known.
    """
    window, mounts, map_from_camera = tracked.window, [], []
    for number in np.flatnonzero(tracked.connected).tolist():
        known = known_extrinsics(base_from_camera, window.views[number])
        if known is not None:
            pose = window.poses.window_from_camera[number]
            map_from_camera.append(window.registration.map_from_window.move_camera(pose))
            mounts.append(known)
    if not mounts:
        return tracked
    change = to_the_plane(np.stack(map_from_camera), np.stack(mounts), metres and not tracked.relocalized)
    moved = replace(window.registration, map_from_window=change @ window.registration.map_from_window)
    return replace(tracked, window=replace(window, registration=moved))

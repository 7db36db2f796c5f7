"""One run of the steps after the network, before the first window.

PyTorch loads a GPU's kernels at their first launch.  Registration, filters and packing have about a hundred,
so that the first window of a camera would take as long as several others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fast3r_ros.geometry.intrinsics import centred_intrinsics, pixel_rays
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.calibration import FocalLengths, network_focals
from fast3r_ros.mapping.config import MapperConfig, ScaleConfig
from fast3r_ros.mapping.data import EncodedView, Reconstruction
from fast3r_ros.mapping.map_update import MapUpdate, map_update
from fast3r_ros.mapping.placement import (
    RegisteredWindow,
    median_depth,
    overlaps_with_map,
)
from fast3r_ros.mapping.point_records import view_bytes
from fast3r_ros.mapping.points import typical_confidence
from fast3r_ros.mapping.registration import Registration, place_views, register
from fast3r_ros.mapping.tracking import Track
from fast3r_ros.mapping.view_maps import mean_values
from fast3r_ros.mapping.window import WindowView


def warm_up_mapping(like: Reconstruction, config: MapperConfig) -> MapUpdate:
    """Register, filter, fuse and pack an artificial window with the shapes and on the device of `like`.

    The values are artificial because those of a black image may be anything and lead nowhere.  The result is
    returned for checks; it is not added to a map.
    """
    config = replace(config, scale=ScaleConfig())
    maps = _surface(like.points_local)
    sizes = [tuple(view.shape[:2]) for view in like.points_local]
    views = [WindowView(None, number, "", _encoded(*size)) for number, size in enumerate(sizes)]
    first = map_update(_tracked(views, maps, config), {}, (), 0, 0, config)
    keyframes = {keyframe.id: keyframe for keyframe in first.keyframes}
    # the next window: all views but the last are known
    stride = min(config.window.stride, len(views) - 1)
    views = [*first.views[: len(views) - stride], *views[len(views) - stride :]]
    tracked = _tracked(views, maps, config)
    overlaps = overlaps_with_map(views, keyframes)
    window = tracked.window
    register(overlaps, maps, window.poses, window.cameras, config.registration)
    for confidence in maps.confidence_global:
        typical_confidence(confidence)
    update = map_update(tracked, keyframes, list(keyframes), len(keyframes), 0, config)
    newest = update.estimates[-1]
    view_bytes(newest)
    newest.maps.confidence_image()
    newest.maps.depth_image()
    mean_values([estimate.maps for estimate in update.estimates])
    return update


def _tracked(views: Sequence[WindowView], maps: Reconstruction, config: MapperConfig) -> Track:
    """A placed window at a fixed pose."""
    focal = network_focals(views, maps)
    cameras = FocalLengths().after(views, focal).cameras(views, focal)
    poses = place_views(maps, cameras, config.registration)
    here = Registration(Sim3.identity(), 1.0, 0.0, np.zeros((7, 7)), "")
    window = RegisteredWindow(views, maps, poses, cameras, here)
    median_depth(window, range(len(views)), config.points)
    every = range(len(views))
    return Track(window, None, None, False, np.ones(len(views), bool), scales=dict.fromkeys(every, 1.0))


def _surface(like: Sequence[Tensor]) -> Reconstruction:
    """An uneven wall two units ahead, seen by every view from the same pose."""
    rng = np.random.default_rng(0)
    points, confidence = [], []
    for view in like:
        height, width = view.shape[:2]
        depth = 2.0 + 0.1 * rng.random((height, width, 1))
        rays = pixel_rays(centred_intrinsics(float(width), height, width), height, width)
        points.append(torch.from_numpy(np.float32(depth * rays)).to(view.device))
        confidence.append(torch.from_numpy(np.float32(2.0 + rng.random((height, width)))).to(view.device))
    return Reconstruction(points, confidence, points, confidence)


def _encoded(height: int, width: int) -> EncodedView:
    """A black view without tokens."""
    image = np.zeros((height, width, 3), np.uint8)
    return EncodedView(image, np.eye(3), None, np.ones(1, np.float32), None)

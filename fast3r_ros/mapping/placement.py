"""From a registered window to views, keyframes and their uncertainty in the map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fast3r_ros.geometry.camera_pose import CameraPoses
from fast3r_ros.geometry.rotation import cross_matrix
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.calibration import WindowCameras
from fast3r_ros.mapping.config import PointsConfig
from fast3r_ros.mapping.data import Float32, Float64, Keyframe, KeyframePoints, Reconstruction, ViewEstimate
from fast3r_ros.mapping.points import grid_pixels, valid_points
from fast3r_ros.mapping.registration import Overlap, Registration
from fast3r_ros.mapping.view_maps import ViewMaps, to_host
from fast3r_ros.mapping.window import WindowView


@dataclass(frozen=True)
class RegisteredWindow:
    """A window after the network: its views in the network's order, and their poses."""

    views: Sequence[WindowView]
    reconstruction: Reconstruction
    poses: CameraPoses
    cameras: WindowCameras
    registration: Registration

    def map_from_local(self, view: int) -> Sim3:
        """The similarity from the view's local points, in the network's unit, to the map."""
        pose = self.poses.window_from_camera[view]
        window_from_local = Sim3(float(self.poses.scale[view]), pose[:3, :3], pose[:3, 3])
        return self.registration.map_from_window @ window_from_local


def overlaps_with_map(views: Sequence[WindowView], keyframes: dict[int, Keyframe]) -> list[Overlap]:
    """The overlap of the window with the map: its views' keyframe points with pixel numbers."""
    result = []
    for number, view in enumerate(views):
        keyframe = None if view.keyframe_id is None else keyframes.get(view.keyframe_id)
        if keyframe is None or keyframe.points is None:
            continue
        points, place = keyframe.points, keyframe.map_from_local
        depth = points.points[:, 2] * np.float32(place.scale)
        seen = place.apply(points.points), points.confidence, depth, points.pixels
        result.append(Overlap(number, keyframe.map_from_camera, *seen))
    return result


def estimate_view(
    window: RegisteredWindow, view: int, keyframe_id: int, config: PointsConfig
) -> ViewEstimate:
    """One view placed in the map; its points stay on the network's device."""
    place = window.map_from_local(view)
    local = window.cameras.kept(view, window.reconstruction.points_local[view])
    confidence = window.reconstruction.confidence_local[view]
    maps = ViewMaps(local, confidence, place.scale, config)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = place.rotation, place.translation
    seen = window.views[view]
    return ViewEstimate(
        keyframe_id=keyframe_id,
        stamp_ns=seen.stamp_ns,
        camera=seen.camera,
        map_from_camera=pose,
        covariance=_view_covariance(window, view),
        intrinsics=window.cameras.intrinsics[view],
        network_from_image=seen.encoded.network_from_image,
        image=seen.encoded.image,
        maps=maps,
        base_from_camera=seen.base_from_camera,
    )


def sample_views(views: Sequence[ViewEstimate], most: int) -> list[KeyframePoints]:
    """The points of new views for the map, in map scale: one copy from the device for all of them.

    Points on a grid of at most `most` pixels; those dropped by the filters are NaN with confidence 0.
    """
    grids = [grid_pixels(*estimate.image.shape[:2], most) for estimate in views]
    found: list[Tensor] = []
    for estimate, pixels in zip(views, grids, strict=True):
        maps, places = estimate.maps, _places(pixels, estimate.maps.points.device)
        valid = maps.valid.flatten()[places]
        found.append(torch.where(valid[:, None], maps.points.flatten(0, 1)[places], torch.nan))
        found.append(torch.where(valid, maps.confidence.flatten()[places], 0.0))
    arrays = to_host(*found) if found else []
    kept = []
    for points, confidence, estimate, pixels in zip(arrays[::2], arrays[1::2], views, grids, strict=True):
        colors = estimate.image.reshape(-1, 3)[pixels]
        kept.append(KeyframePoints(points * np.float32(estimate.maps.scale), confidence, colors, pixels))
    return kept


def _places(pixels: NDArray[np.int32], device: torch.device) -> Tensor:
    """Pixel numbers on a device, cached there because keyframes of one size share them."""
    return _kept_places(pixels.tobytes(), device)


@lru_cache(maxsize=8)
def _kept_places(pixels: bytes, device: torch.device) -> Tensor:
    return torch.tensor(np.frombuffer(pixels, np.int32), device=device)


def new_keyframe(
    estimate: ViewEstimate,
    points: KeyframePoints,
    descriptor: Float32,
    submap: int,
    base: Float64,
    metric_scale: float,
) -> Keyframe:
    """A keyframe from a view's estimate and its points from `sample_views`.

    base: (6, 6) covariance of the map it is attached to.  metric_scale: metres per map unit from this view
    alone, or NaN.
    """
    return Keyframe(
        id=estimate.keyframe_id,
        stamp_ns=estimate.stamp_ns,
        camera=estimate.camera,
        submap=submap,
        map_from_local=Sim3.from_rigid(estimate.map_from_camera),
        covariance=estimate.covariance + base,
        estimates=1,
        intrinsics=estimate.intrinsics,
        network_from_image=estimate.network_from_image,
        descriptor=descriptor,
        image=estimate.image,
        points=points,
        depth=_median(points.points[points.confidence > 0, 2]),
        metric_scale=metric_scale,
        base_from_camera=estimate.base_from_camera,
    )


def median_depth(window: RegisteredWindow, views: Sequence[int], config: PointsConfig) -> float:
    """Median depth of the valid points of some views of a window, in the window's unit; 1 without any."""
    depths: list[Tensor] = []
    for view in views:
        local, scale = window.reconstruction.points_local[view], float(window.poses.scale[view])
        valid = valid_points(local, window.reconstruction.confidence_local[view], config)
        depths.append(scale * local[..., 2][valid])
    together = torch.cat(depths)
    return float(together.median()) if len(together) else 1.0


def _median(values: NDArray[np.float32]) -> float:
    """The median, 1 without any values."""
    return float(np.median(values)) if len(values) else 1.0


def _view_covariance(window: RegisteredWindow, view: int) -> Float64:
    """(6, 6) of (position, rotation vector) in the map: the sum of the view's and the registration's."""
    place = window.registration.map_from_window
    turn = np.zeros((6, 6))
    turn[:3, :3], turn[3:, 3:] = place.scale * place.rotation, place.rotation
    own = turn @ window.poses.covariance[view] @ turn.T
    lever = place.scale * place.rotation @ window.poses.window_from_camera[view][:3, 3]
    motion = np.zeros((6, 7))
    motion[:3, :3] = motion[3:, 3:6] = np.eye(3)
    motion[:3, 3:6] = -cross_matrix(lever)
    motion[:3, 6] = lever
    total = own + motion @ window.registration.covariance @ motion.T
    return np.asarray(0.5 * (total + total.T))

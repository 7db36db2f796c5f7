"""From a registered window to views, keyframes and their uncertainty in the map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fast3r_ros.geometry.camera_pose import CameraPoses
from fast3r_ros.geometry.focal import estimate_focal
from fast3r_ros.geometry.intrinsics import centred_intrinsics
from fast3r_ros.geometry.rotation import matrix_from_vector, vector_from_matrix
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.config import PointsConfig
from fast3r_ros.mapping.data import Float64, Reconstruction, ViewEstimate
from fast3r_ros.mapping.map import Keyframe, KeyframePoints
from fast3r_ros.mapping.points import grid_pixels, valid_points
from fast3r_ros.mapping.registration import Overlap, Registration
from fast3r_ros.mapping.transfer import to_host
from fast3r_ros.mapping.window import WindowView


@dataclass(frozen=True)
class RegisteredWindow:
    """A window after the network: its views in the order the network saw them, and where they are."""

    views: Sequence[WindowView]
    reconstruction: Reconstruction
    poses: CameraPoses
    intrinsics: Float64  # (V, 3, 3)
    registration: Registration

    def map_from_local(self, view: int) -> Sim3:
        """Where the view's local points, in the network's unit, are in the map."""
        pose = self.poses.window_from_camera[view]
        window_from_local = Sim3(float(self.poses.scale[view]), pose[:3, :3], pose[:3, 3])
        return self.registration.map_from_window @ window_from_local


def overlaps_with_map(views: Sequence[WindowView], keyframes: dict[int, Keyframe]) -> list[Overlap]:
    """What the map knows of the window's views: their keyframes' points with pixel numbers."""
    result = []
    for number, view in enumerate(views):
        keyframe = None if view.keyframe_id is None else keyframes.get(view.keyframe_id)
        if keyframe is None or keyframe.points is None:
            continue
        points, place = keyframe.points, keyframe.map_from_local
        depth = points.points[:, 2] * np.float32(place.scale)
        result.append(Overlap(number, place.apply(points.points), points.confidence, depth, points.pixels))
    return result


def window_intrinsics(views: Sequence[WindowView], reconstruction: Reconstruction) -> tuple[Float64, bool]:
    """(V, 3, 3) intrinsics at network size, given or estimated, and whether all were given.

    Views of one camera and size without intrinsics share one estimated focal length; where none can be
    estimated it is the image width (a field of view of 53 degrees).
    """
    result = np.stack([np.eye(3)] * len(views))
    unknown: dict[tuple[str, int, int], list[int]] = {}
    for number, view in enumerate(views):
        if view.encoded.intrinsics is not None:
            result[number] = view.encoded.intrinsics
        else:
            height, width = view.encoded.image.shape[:2]
            unknown.setdefault((view.camera, height, width), []).append(number)
    for (_, height, width), mine in unknown.items():
        points, confidence = (
            torch.stack([maps[i] for i in mine])
            for maps in (reconstruction.points_local, reconstruction.confidence_local)
        )
        focal = estimate_focal(points, confidence, shared=True)
        pixels = float(focal.focal[0]) if focal.ok[0] else float(width)
        result[mine] = centred_intrinsics(pixels, height, width)
    return result, not unknown


def estimate_view(
    window: RegisteredWindow, view: int, keyframe_id: int, config: PointsConfig
) -> ViewEstimate:
    """One view placed in the map, with its local points in map scale, on the host."""
    place = window.map_from_local(view)
    local = window.reconstruction.points_local[view]
    confidence = window.reconstruction.confidence_local[view]
    points, trust, valid = to_host(local * place.scale, confidence, valid_points(local, confidence, config))
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = place.rotation, place.translation
    seen = window.views[view]
    return ViewEstimate(
        keyframe_id=keyframe_id,
        stamp_ns=seen.stamp_ns,
        camera=seen.camera,
        map_from_camera=pose,
        covariance=_view_covariance(window, view),
        intrinsics=window.intrinsics[view],
        network_from_image=seen.encoded.network_from_image,
        image=seen.encoded.image,
        points_camera=points,
        confidence=trust,
        valid=valid,
    )


def new_keyframe(
    estimate: ViewEstimate, view: WindowView, submap: int, base: Float64, most: int, metric_scale: float
) -> Keyframe:
    """A keyframe from a view's estimate; base (6, 6) is the covariance of the map it is attached to.

    most: points it keeps at most.  metric_scale: metres per map unit as this view alone tells, or NaN.
    """
    pixels = grid_pixels(*estimate.valid.shape, most)
    valid = estimate.valid.ravel()[pixels]
    points = KeyframePoints(
        points=np.where(valid[:, None], estimate.points_camera.reshape(-1, 3)[pixels], np.float32(np.nan)),
        confidence=np.where(valid, estimate.confidence.ravel()[pixels], np.float32(0)),
        colors=estimate.image.reshape(-1, 3)[pixels],
        pixels=pixels,
    )
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
        descriptor=view.encoded.descriptor,
        image=estimate.image,
        points=points,
        depth=_median(estimate.points_camera[..., 2][estimate.valid]),
        metric_scale=metric_scale,
    )


def refined_keyframe(keyframe: Keyframe, estimate: ViewEstimate) -> Keyframe:
    """The keyframe with its pose averaged with what one more window says about it."""
    assert keyframe.points is not None
    valid = (keyframe.points.confidence > 0) & estimate.valid.ravel()[keyframe.points.pixels]
    if not valid.any():
        return keyframe
    new_depth = estimate.points_camera.reshape(-1, 3)[keyframe.points.pixels, 2]
    scale = float(np.median(new_depth[valid] / keyframe.points.points[valid, 2]))
    measured = Sim3(scale, estimate.map_from_camera[:3, :3], estimate.map_from_camera[:3, 3])
    share = 1.0 / (keyframe.estimates + 1)
    return replace(
        keyframe,
        map_from_local=interpolate(keyframe.map_from_local, measured, share),
        estimates=keyframe.estimates + 1,
    )


def interpolate(start: Sim3, end: Sim3, share: float) -> Sim3:
    """The similarity between two: rotation along the geodesic, scale geometrically, translation linearly."""
    turn = vector_from_matrix(start.rotation.T @ end.rotation)
    return Sim3(
        start.scale ** (1 - share) * end.scale**share,
        start.rotation @ matrix_from_vector(share * turn),
        (1 - share) * start.translation + share * end.translation,
    )


def median_depth(window: RegisteredWindow, views: Sequence[int], config: PointsConfig) -> float:
    """Median depth of the valid points of some views of a window, in the window's unit; 1 without any."""
    depths: list[Tensor] = []
    for view in views:
        local, scale = window.reconstruction.points_local[view], float(window.poses.scale[view])
        valid = valid_points(local, window.reconstruction.confidence_local[view], config)
        depths.append(scale * local[..., 2][valid])
    return _median(torch.cat(depths).cpu().numpy())


def _median(values: NDArray[np.float32]) -> float:
    """The median, 1 without any values."""
    return float(np.median(values)) if len(values) else 1.0


def _view_covariance(window: RegisteredWindow, view: int) -> Float64:
    """(6, 6) of (position, rotation vector) in the map: the view's own in the window, and the
    registration's.
    """
    place = window.registration.map_from_window
    turn = np.zeros((6, 6))
    turn[:3, :3], turn[3:, 3:] = place.scale * place.rotation, place.rotation
    own = turn @ window.poses.covariance[view] @ turn.T
    lever = place.scale * place.rotation @ window.poses.window_from_camera[view][:3, 3]
    motion = np.zeros((6, 7))
    motion[:3, :3] = motion[3:, 3:6] = np.eye(3)
    motion[:3, 3:6] = -_cross(lever)
    motion[:3, 6] = lever
    total = own + motion @ window.registration.covariance @ motion.T
    return np.asarray(0.5 * (total + total.T))


def _cross(vector: NDArray[np.float64]) -> Float64:
    x, y, z = vector
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])

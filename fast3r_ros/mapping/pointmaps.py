"""The network's pointmaps in the form that mapping uses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fast3r_ros.geometry.camera_pose import poses_by_pnp
from fast3r_ros.geometry.focal import first_view_focal
from fast3r_ros.geometry.rigid import inverse, transform_points
from fast3r_ros.mapping.data import Reconstruction
from fast3r_ros.model import Pointmap


def numbers_of(result: Reconstruction) -> list[Tensor]:
    """All maps of a result."""
    maps = (result.points_global, result.confidence_global, result.points_local, result.confidence_local)
    return [tensor for each in maps for tensor in each]


def per_view(maps: Sequence[Pointmap]) -> tuple[list[Tensor], list[Tensor]]:
    """Pointmaps of V views -> points (h, w, 3) and confidence (h, w) of each, float32."""
    return [view.points[0].float() for view in maps], [view.confidence[0].float() for view in maps]


def local_from_global(
    points_global: Sequence[Tensor], confidence: Sequence[Tensor], first: Pointmap
) -> list[Tensor]:
    """For a network without a local head: the global points in each camera's frame, its pose from PnP.

    first: view 0's global points, for the focal length.
    """
    focal = first_view_focal(*(maps.float().cpu().numpy() for maps in (first.points, first.confidence)))
    points = [view.cpu().numpy() for view in points_global]
    poses = poses_by_pnp(points, [view.cpu().numpy() for view in confidence], focal)
    local = [
        transform_points(inverse(pose), view) if ok else np.full_like(view, np.nan)
        for pose, view, ok in zip(poses.window_from_camera, points, poses.ok, strict=True)
    ]
    return [torch.from_numpy(view).to(points_global[0].device) for view in local]

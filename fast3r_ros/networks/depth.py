"""For networks that output depth and cameras: one batch of views of several sizes, and their pointmaps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from fast3r_ros.geometry.intrinsics import pixel_rays
from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.mapping.data import Float64, Reconstruction


def centred(images: Sequence[Tensor], fill: float) -> tuple[Tensor, list[tuple[int, int]]]:
    """Images (C, h, w) in the middle of one batch (V, C, H, W), and the (top, left) of each in it.

    fill: the value around smaller images.
    """
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    corners, padded = [], []
    for image in images:
        rows, columns = height - image.shape[1], width - image.shape[2]
        top, left = rows // 2, columns // 2
        corners.append((top, left))
        padded.append(pad(image, (left, columns - left, top, rows - top), value=fill))
    return torch.stack(padded), corners


def from_depth(
    depth: Sequence[Tensor],
    confidence: Sequence[Tensor],
    intrinsics: Float64,
    world_from_camera: Float64,
    metric: bool = False,
) -> Reconstruction:
    """A window of V views from depth along the rays of the network's own cameras.

    depth: (h, w) each, along the optical axis.  confidence: (h, w), at least 1.  intrinsics: (V, 3, 3) with
    pixel centres at integer + 0.5.  world_from_camera: (V, 4, 4) in any frame; view 0 becomes the `window`.
    metric: whether depth and poses are in metres.
    """
    poses = inverse(world_from_camera[0]) @ world_from_camera
    points_local, points_global = [], []
    for view, pose, matrix in zip(depth, poses, intrinsics, strict=True):
        rays = torch.from_numpy(pixel_rays(matrix, *view.shape).astype(np.float32)).to(view.device)
        local = view.float()[..., None] * rays
        move = torch.from_numpy(pose[:3].astype(np.float32)).to(view.device)
        points_local.append(local)
        points_global.append(local @ move[:, :3].T + move[:, 3])
    trust = [view.float() for view in confidence]
    return Reconstruction(
        points_global,
        trust,
        points_local,
        trust,
        window_from_camera=poses,
        intrinsics=np.asarray(intrinsics, np.float64),
        metric=metric,
    )

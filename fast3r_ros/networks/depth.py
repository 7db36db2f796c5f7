"""What the networks of other packages share: weights, images at network size, pointmaps from depth."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fast3r_ros.geometry.intrinsics import pixel_rays
from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.mapping.data import Float64, Frame, Reconstruction
from fast3r_ros.model import checkpoint
from fast3r_ros.model.preprocess import PreparedImage, prepare_image

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's RGB
Network = TypeVar("Network", bound=nn.Module)


def with_weights(network: Network, found: checkpoint.CheckpointFiles) -> Network:
    """The network with the weights of a checkpoint, float32.

    Names may begin with `model.`; what the network lacks is left out.  Raises UserError for weights that are
    missing, do not fit or are not finite.
    """
    expected, tensors = checkpoint.shapes_of(network), {}
    for path in found.weights:
        for key, tensor in checkpoint.read_tensors(path).items():
            tensors[key if key in expected else key.removeprefix("model.")] = tensor
    source = str(found.weights[0])
    weights = checkpoint.fit({key: tensors[key] for key in expected if key in tensors}, expected, source)
    checkpoint.check_finite(weights, source)
    network.load_state_dict(weights, assign=True)
    return network.float()


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """The context in which a network computes in `dtype`."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def at_network_size(
    frame: Frame, long_side: int, patch: int, device: torch.device
) -> tuple[PreparedImage, Float64 | None, Tensor]:
    """A frame's image at network size, its intrinsics, and its pixels (3, h, w), 0 to 1, on the device.

    Sides are multiples of `patch`.
    """
    prepared = prepare_image(frame.image, long_side, patch, squares=True)
    intrinsics = None if frame.intrinsics is None else prepared.pixel_transform @ frame.intrinsics
    pixels = torch.from_numpy(prepared.pixels).to(device)  # as bytes: a quarter of the transfer
    return prepared, intrinsics, pixels.movedim(-1, 0).float() / 255


def standardized(pixels: Tensor) -> Tensor:
    """Pixels (3, h, w), 0 to 1, with ImageNet's mean and deviation removed."""
    mean, deviation = (torch.tensor(each, device=pixels.device) for each in (_MEAN, _DEVIATION))
    return (pixels - mean[:, None, None]) / deviation[:, None, None]


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


def uncentred(maps: Tensor, images: Sequence[Tensor], corners: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The parts (h, w) of maps (V, H, W) that belong to the images of `centred`, float32."""
    return [
        each[top : top + image.shape[1], left : left + image.shape[2]].float()
        for each, image, (top, left) in zip(maps, images, corners, strict=True)
    ]


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

"""VGGT: `vggt:1b`, `vggt:FILE` or `vggt:FOLDER` with its weights, such as those of VGGT-1B-Commercial.

The package vggt is not on PyPI; its code and each of its weights have licences of their own.  The network
uses only the images of a window, and outputs depth, confidence, poses and intrinsics, up to scale.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fast3r_ros.errors import UserError
from fast3r_ros.geometry.rigid import inverse, rigid_matrix
from fast3r_ros.mapping.config import DescriptorLimits
from fast3r_ros.mapping.data import EncodedView, Float64, Frame, Reconstruction, WindowNetwork
from fast3r_ros.model import checkpoint
from fast3r_ros.model.precision import resolve_dtype
from fast3r_ros.networks.depth import (
    at_network_size,
    autocast,
    centred,
    from_depth,
    uncentred,
    with_weights,
)
from fast3r_ros.networks.loading import NetworkOptions

HUB = {"1b": "facebook/VGGT-1B"}
LICENCE_NOTICE = (
    "The weights {0} of VGGT are under CC BY-NC 4.0: noncommercial use only (https://huggingface.co/{0})."
)
COMMERCIAL = "https://huggingface.co/facebook/VGGT-1B-Commercial"
WHERE = "it is not on PyPI; installation: https://github.com/facebookresearch/vggt"
IMAGE_SIZE, PATCH = 518, 14  # longer side in pixels as upstream uses it; sides are multiples of PATCH
_WHITE = 1.0  # upstream's fill around smaller images

_log = logging.getLogger(__name__)


class VggtNetwork(WindowNetwork):
    """Upstream's `VGGT`.  The tokens of a view are its pixels (3, h, w), 0 to 1."""

    # descriptor similarity was not measured with trained weights, so no view counts as redundant
    descriptors = DescriptorLimits(redundant=1.0, similar=0.5)

    def __init__(self, model: nn.Module, image_size: int = IMAGE_SIZE, dtype: torch.dtype = torch.float32):
        """image_size: of the longer side.  dtype: of the transformer; the heads are float32."""
        self._model: Any = model.eval()
        self._device = next(model.parameters()).device
        self._size = image_size // PATCH * PATCH
        self._dtype = dtype

    @torch.inference_mode()
    def encode(self, frame: Frame) -> EncodedView:
        """See `WindowNetwork`; the descriptor is the mean of the image encoder's tokens."""
        prepared, intrinsics, pixels = at_network_size(frame, self._size, PATCH, self._device)
        aggregator = self._model.aggregator
        with autocast(self._device, self._dtype):
            image = (pixels - aggregator._resnet_mean[0, 0]) / aggregator._resnet_std[0, 0]
            features = aggregator.patch_embed(image[None])
        tokens = features["x_norm_patchtokens"] if isinstance(features, dict) else features
        descriptor = normalize(tokens[0].float().mean(dim=0), dim=0).cpu().numpy()
        return EncodedView(prepared.pixels, prepared.pixel_transform, intrinsics, descriptor, pixels)

    @torch.inference_mode()
    def reconstruct(self, views: Sequence[EncodedView]) -> Reconstruction:
        """See `WindowNetwork`.  Smaller views are centred and padded with white."""
        images = [view.tokens for view in views]
        batch, corners = centred(images, _WHITE)
        with autocast(self._device, self._dtype):
            output = self._model(batch[None])
        camera_from_world, intrinsics = _cameras(output["pose_enc"], batch.shape[-2:])
        intrinsics[:, :2, 2] -= np.array(corners)[:, ::-1]
        depth = uncentred(output["depth"][0, ..., 0], images, corners)
        confidence = uncentred(output["depth_conf"][0].clamp_min(1.0), images, corners)
        return from_depth(depth, confidence, intrinsics, inverse(camera_from_world))


def _cameras(encoding: Tensor, size: Sequence[int]) -> tuple[Float64, Float64]:
    """`camera_from_world` (V, 4, 4) and intrinsics (V, 3, 3), float64, of upstream's encoded cameras."""
    from vggt.utils.pose_enc import pose_encoding_to_extri_intri

    extrinsics, intrinsics = pose_encoding_to_extri_intri(encoding.double(), size)
    poses, matrices = (each[0].double().cpu().numpy() for each in (extrinsics, intrinsics))
    return rigid_matrix(poses[:, :3, :3], poses[:, :3, 3]), matrices


def load(name: str, options: NetworkOptions) -> VggtNetwork:
    """See `LoadNetwork`."""
    try:
        from vggt.models.vggt import VGGT
    except ModuleNotFoundError as error:
        raise UserError(f"vggt needs {error.name}, which is not installed; {WHERE}") from error
    size = options.image_size or IMAGE_SIZE
    if size < PATCH:
        raise UserError(f"an image of {size} pixels is too small for vggt; give {PATCH} or more")
    source = name or "1b"
    if source in HUB:
        _log.warning(LICENCE_NOTICE.format(HUB[source]))
        source = HUB[source]
    elif not Path(source).exists():
        raise UserError(
            f"vggt:{source} is unknown; give vggt:1b (noncommercial), or the path of weights, such as the "
            f"file of {COMMERCIAL}"
        )
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"vggt\.")  # one per window
    found = checkpoint.locate(source)
    # depth and cameras give the points
    model = with_weights(VGGT(enable_point=False, enable_track=False), found).to(options.device)
    return VggtNetwork(model, size, resolve_dtype(options.dtype, options.device))

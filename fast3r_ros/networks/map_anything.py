"""MapAnything: `mapanything:apache`, `mapanything:noncommercial`, or `mapanything:FOLDER` of one of them.

Its points are in metres.  It uses the intrinsics and the metric depth of frames that have them, and poses
from odometry.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from fast3r_ros.errors import UserError
from fast3r_ros.files import one_line
from fast3r_ros.geometry.intrinsics import shift_pixel_centres
from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.mapping.config import DescriptorLimits
from fast3r_ros.mapping.data import (
    EncodedView,
    Float32,
    Frame,
    Reconstruction,
    WindowNetwork,
)
from fast3r_ros.model.precision import name_of, resolve_dtype
from fast3r_ros.networks.depth import at_network_size, standardized
from fast3r_ros.networks.loading import NetworkOptions

HUB = {
    "apache": ("facebook/map-anything-apache", "the Apache License 2.0"),
    "noncommercial": ("facebook/map-anything", "CC BY-NC 4.0: noncommercial use only"),
}
LICENCE_NOTICE = "The weights {0} of MapAnything are under {1} (https://huggingface.co/{0})."
WHERE = "it is not on PyPI; installation: https://github.com/facebookresearch/map-anything"
IMAGE_SIZE, PATCH = 518, 14  # longer side in pixels as upstream uses it; sides are multiples of PATCH
_AMP = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}  # upstream's names

_log = logging.getLogger(__name__)


class MapAnythingNetwork(WindowNetwork):
    """Upstream's `MapAnything`.  The tokens of a view are the input of its `infer`."""

    # descriptor similarity was not measured with trained weights, so no view counts as redundant
    descriptors = DescriptorLimits(redundant=1.0, similar=0.5)

    def __init__(self, model: Any, image_size: int = IMAGE_SIZE, dtype: torch.dtype = torch.float32):
        """image_size: of the longer side.  dtype: of the transformers; the heads are float32."""
        self._model = model.eval()
        self._size = image_size // PATCH * PATCH
        self._precision = {"use_amp": dtype != torch.float32, "amp_dtype": _AMP[name_of(dtype)]}

    @torch.inference_mode()
    def encode(self, frame: Frame) -> EncodedView:
        """See `WindowNetwork`; the descriptor is the mean of the image encoder's tokens."""
        prepared, intrinsics, pixels = at_network_size(frame, self._size, PATCH, self._model.device)
        transform = prepared.pixel_transform
        image = standardized(pixels)[None]  # as upstream's "dinov2"
        view = {"img": image, "data_norm_type": [self._model.encoder.data_norm_type]}
        if intrinsics is not None:  # its pixel centres are at integers
            view["intrinsics"] = torch.from_numpy(shift_pixel_centres(intrinsics, -0.5)).float()[None]
            if frame.depth is not None:
                depth = _resized(frame.depth, transform, prepared.pixels.shape[:2])
                view["depth_z"] = torch.from_numpy(depth)[None]
        return EncodedView(prepared.pixels, transform, intrinsics, self._describe(image), view)

    @torch.inference_mode()
    def reconstruct(self, views: Sequence[EncodedView]) -> Reconstruction:
        """See `WindowNetwork`; the confidence is 1 where the network reports no surface."""
        if len({view.image.shape for view in views}) > 1:
            raise UserError("mapanything needs views of equal size; give images of one size")
        inputs = known_inputs(views)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = self._model.infer(inputs, apply_mask=False, mask_edges=False, **self._precision)
        world_from_camera = np.concatenate([each["camera_poses"].double().cpu().numpy() for each in results])
        poses = inverse(world_from_camera[0]) @ world_from_camera
        local, trust, world = [], [], []
        for result, pose in zip(results, poses, strict=True):
            points, surface = result["pts3d_cam"][0].float(), result["non_ambiguous_mask"][0].bool()
            move = torch.from_numpy(pose[:3]).float().to(points.device)
            local.append(points)
            world.append(points @ move[:, :3].T + move[:, 3])
            trust.append(torch.where(surface, result["conf"][0].float().clamp_min(1.0), 1.0))
        return Reconstruction(world, trust, local, trust, window_from_camera=poses, metric=True)

    def _describe(self, image: Tensor) -> Float32:
        features = self._model.encoder.model.forward_features(image)["x_norm_patchtokens"]
        return np.asarray(normalize(features[0].float().mean(dim=0), dim=0).cpu().numpy())


def known_inputs(views: Sequence[EncodedView]) -> list[dict[str, Any]]:
    """The input of upstream's `infer`; it accepts poses only if view 0 has one."""
    inputs = [dict(view.tokens) for view in views]
    if views[0].odom_from_camera is not None:
        for each, view in zip(inputs, views, strict=True):
            if view.odom_from_camera is not None:
                each["camera_poses"] = torch.from_numpy(view.odom_from_camera).float()[None]
    return inputs


def load(checkpoint: str, options: NetworkOptions) -> MapAnythingNetwork:
    """See `LoadNetwork`."""
    try:
        from mapanything.models import MapAnything
    except ModuleNotFoundError as error:
        raise UserError(f"mapanything needs {error.name}, which is not installed; {WHERE}") from error
    size = options.image_size or IMAGE_SIZE
    if size < PATCH:
        raise UserError(f"an image of {size} pixels is too small for mapanything; give {PATCH} or more")
    source = checkpoint or "apache"
    if source in HUB:
        _log.warning(LICENCE_NOTICE.format(*HUB[source]))
        source = HUB[source][0]
    elif not Path(source).is_dir():
        raise UserError(f"mapanything:{source} is unknown; give {', '.join(HUB)} or a folder")
    try:
        model = MapAnything.from_pretrained(source)
    except Exception as error:  # the hub and its code raise many types
        raise UserError(f"mapanything:{source} cannot be loaded: {one_line(error)}") from error
    return MapAnythingNetwork(model.to(options.device), size, resolve_dtype(options.dtype, options.device))


def _resized(depth: Float32, network_from_image: np.ndarray, size: tuple[int, ...]) -> Float32:
    """A depth image at network size, nearest neighbour; 0 where unknown."""
    image_from_network = np.linalg.inv(network_from_image)
    rows = ((np.arange(size[0]) + 0.5) * image_from_network[1, 1] + image_from_network[1, 2]).astype(np.int64)
    columns = ((np.arange(size[1]) + 0.5) * image_from_network[0, 0] + image_from_network[0, 2]).astype(
        np.int64
    )
    values = depth[rows.clip(0, depth.shape[0] - 1)[:, None], columns.clip(0, depth.shape[1] - 1)]
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32)

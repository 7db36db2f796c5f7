"""Depth Anything 3: `da3:small`, `da3:base`, or `da3:FOLDER` with config.json and model.safetensors of one.

The package depth-anything-3 is installed without its requirements: NumPy 1, xFormers, Open3D and others serve
its programs, not these networks.  The networks use only the images of a window, and output depth, confidence,
poses and intrinsics, up to scale.  With `+metric` (or `+FOLDER`) a second network, for single images, gives
the scale: `da3:small+metric` maps in metres.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fast3r_ros.errors import UserError
from fast3r_ros.files import read_json
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
    standardized,
    uncentred,
    with_weights,
)
from fast3r_ros.networks.loading import NetworkOptions

HUB = {"small": "depth-anything/DA3-SMALL", "base": "depth-anything/DA3-BASE"}
PRESETS = ("da3-small", "da3-base")  # of upstream, in the order of HUB
METRIC_HUB = {"metric": "depth-anything/DA3METRIC-LARGE"}
METRIC_PRESETS = ("da3metric-large",)
# The metric network's depth is for a camera of this focal length in pixels; a camera's own is proportional.
METRIC_FOCAL = 300.0
_SKY, _NEAR = 0.3, 1e-2  # upstream's limits: sky from this value on; closer points do not count, in metres
_FEWEST = 10  # pixels for a scale
LICENCE_NOTICE = (
    "The weights da3:{} of Depth Anything 3 are under the Apache License 2.0 (https://huggingface.co/{})."
)
INSTALL = "pip install --no-deps depth-anything-3 && pip install addict einops omegaconf"
# Longer side in pixels as upstream uses it, and for a CPU, with a third of the tokens.
IMAGE_SIZE, CPU_IMAGE_SIZE = 504, 280
PATCH = 14
_CONFIG_BYTES = 1 << 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tokens:
    """A view's normalised pixels (3, h, w), and its metric depth (h, w) at METRIC_FOCAL, NaN in the sky."""

    pixels: Tensor
    metric: Tensor | None = None


class DepthAnything(WindowNetwork):
    """Upstream's `DepthAnything3Net`; metric: a second one, whose depth of single images is in metres."""

    # descriptor similarity was not measured with trained weights, so no view counts as redundant
    descriptors = DescriptorLimits(redundant=1.0, similar=0.5)

    def __init__(
        self,
        net: nn.Module,
        image_size: int = IMAGE_SIZE,
        dtype: torch.dtype = torch.float32,
        metric: nn.Module | None = None,
    ) -> None:
        """image_size: of the longer side.  dtype: of the transformers; the heads are float32."""
        self._net: Any = net.eval()
        self._metric: Any = None if metric is None else metric.eval()
        self._device = next(net.parameters()).device
        self._size = image_size // PATCH * PATCH
        self._dtype = dtype

    @torch.inference_mode()
    def encode(self, frame: Frame) -> EncodedView:
        """See `WindowNetwork`; the descriptor is the mean of the transformer's tokens for the view alone."""
        prepared, intrinsics, pixels = at_network_size(frame, self._size, PATCH, self._device)
        tokens = standardized(pixels)
        with autocast(self._device, self._dtype):
            features, _ = self._net.backbone(tokens[None, None], cam_token=None, export_feat_layers=[])
            metric = None if self._metric is None else _metric_depth(self._metric(tokens[None, None]))
        descriptor = normalize(features[-1][0].float().mean(dim=(0, 1, 2)), dim=-1).cpu().numpy()
        view = Tokens(tokens, metric)
        return EncodedView(prepared.pixels, prepared.pixel_transform, intrinsics, descriptor, view)

    @torch.inference_mode()
    def reconstruct(self, views: Sequence[EncodedView]) -> Reconstruction:
        """See `WindowNetwork`.  Smaller views are centred and padded with grey."""
        images = [view.tokens.pixels for view in views]
        batch, corners = centred(images, 0.0)
        with autocast(self._device, self._dtype):
            # view 0, chosen by the mapper, is the reference
            output = self._net(batch[None], ref_view_strategy="first")
        camera_from_world = output.extrinsics[0].double().cpu().numpy()
        poses = inverse(rigid_matrix(camera_from_world[:, :3, :3], camera_from_world[:, :3, 3]))
        intrinsics = output.intrinsics[0].double().cpu().numpy()
        intrinsics[:, :2, 2] -= np.array(corners)[:, ::-1]
        depth = uncentred(output.depth[0], images, corners)
        confidence = uncentred(output.depth_conf[0].clamp_min(1.0), images, corners)
        scale = self._scale(views, depth, confidence, intrinsics)
        if scale is None:
            return from_depth(depth, confidence, intrinsics, poses)
        poses[:, :3, 3] *= scale
        return from_depth([scale * view for view in depth], confidence, intrinsics, poses, metric=True)

    def _scale(
        self,
        views: Sequence[EncodedView],
        depth: Sequence[Tensor],
        confidence: Sequence[Tensor],
        intrinsics: Float64,
    ) -> float | None:
        """Metres per unit of the window: the median over its views of the median ratio of their depths.

        Of the pixels, the more confident half, without the sky, counts, as upstream's nested network has it.
        A camera's calibrated focal length precedes the network's.  None without a metric network, or where
        every view shows only sky.
        """
        logs = []
        for view, own, trust, matrix in zip(views, depth, confidence, intrinsics, strict=True):
            if view.tokens.metric is None:
                return None
            camera = matrix if view.intrinsics is None else view.intrinsics
            metres = view.tokens.metric * float(camera[0, 0] + camera[1, 1]) / 2 / METRIC_FOCAL
            ratio = (metres / own)[(trust >= trust.median()) & (metres > _NEAR) & (own > 0)].log()
            if len(ratio) >= _FEWEST:
                logs.append(float(ratio.median()))
        return float(np.exp(np.median(logs))) if logs else None


def load(checkpoint_name: str, options: NetworkOptions) -> DepthAnything:
    """See `LoadNetwork`."""
    _upstream()  # reports a missing package before anything is downloaded
    size = options.image_size or (CPU_IMAGE_SIZE if options.device == "cpu" else IMAGE_SIZE)
    if size < PATCH:
        raise UserError(f"an image of {size} pixels is too small for da3; give {PATCH} or more")
    first, plus, second = checkpoint_name.partition("+")
    if Path(checkpoint_name).exists():  # a folder with a plus in its name
        first, plus, second = checkpoint_name, "", ""
    net = _loaded(*_locate(first or "small", HUB, PRESETS))
    metric = _loaded(*_locate(second, METRIC_HUB, METRIC_PRESETS)) if plus else None
    device, dtype = options.device, resolve_dtype(options.dtype, options.device)
    return DepthAnything(net.to(device), size, dtype, None if metric is None else metric.to(device))


def _loaded(found: checkpoint.CheckpointFiles, preset: str) -> nn.Module:
    """Upstream's network with the weights of a checkpoint, on the CPU."""
    return with_weights(network(preset), found)


def network(preset: str) -> nn.Module:
    """Upstream's network with random weights.  preset: one of PRESETS or METRIC_PRESETS.

    Raises UserError where a package is missing.
    """
    create_object, load_config = _upstream()
    configuration = files("depth_anything_3") / "configs" / f"{preset}.yaml"
    made = create_object(load_config(str(configuration)))
    assert isinstance(made, nn.Module)
    return made


def _upstream() -> tuple[Callable[[Any], Any], Callable[[str], Any]]:
    """Upstream's functions that build an object from a configuration, and that read a configuration."""
    os.environ.setdefault("DA3_LOG_LEVEL", "WARN")  # otherwise it logs a line per window
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from depth_anything_3.cfg import create_object, load_config
    except ModuleNotFoundError as error:
        raise UserError(f"da3 needs {error.name}, which is not installed: {INSTALL}") from error
    return create_object, load_config


def _locate(
    name: str, hub: Mapping[str, str], presets: Sequence[str]
) -> tuple[checkpoint.CheckpointFiles, str]:
    """The files of a checkpoint and upstream's name of its architecture, one of `presets`."""
    if name in hub:
        _log.warning(LICENCE_NOTICE.format(name, hub[name]))
        return checkpoint.locate(hub[name]), dict(zip(hub, presets, strict=True))[name]
    if not Path(name).exists():
        names = ", ".join([*(f"da3:{each}" for each in HUB), "da3:small+metric"])
        raise UserError(f"da3:{name} is unknown; give {names} or a folder")
    found = checkpoint.locate(name)
    content = {} if found.config is None else read_json(found.config, _CONFIG_BYTES)
    preset = content.get("model_name") if isinstance(content, dict) else None
    if preset not in presets:
        known = " and ".join(presets)
        raise UserError(f"{name} has model_name {preset!r} in its config.json; here da3 runs {known}")
    return found, str(preset)


def _metric_depth(output: Any) -> Tensor:
    """(h, w) depth of a metric network's single image, NaN in the sky."""
    depth, sky = output.depth[0, 0].float(), output.sky[0, 0].float()
    return torch.where(sky < _SKY, depth, torch.nan)

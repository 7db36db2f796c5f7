"""Depth Anything 3: `da3:small`, `da3:base`, or `da3:FOLDER` with config.json and model.safetensors of one.

The package depth-anything-3 is installed without its requirements: NumPy 1, xFormers, Open3D and others serve
its programs, not these networks.  The networks use only the images of a window, and output depth, confidence,
poses and intrinsics, up to scale.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from fast3r_ros.errors import UserError
from fast3r_ros.files import read_json
from fast3r_ros.geometry.rigid import inverse, rigid_matrix
from fast3r_ros.mapping.config import DescriptorLimits
from fast3r_ros.mapping.data import EncodedView, Frame, Reconstruction, WindowNetwork
from fast3r_ros.model import checkpoint
from fast3r_ros.model.precision import resolve_dtype
from fast3r_ros.model.preprocess import prepare_image
from fast3r_ros.networks.depth import from_depth
from fast3r_ros.networks.loading import NetworkOptions

HUB = {"small": "depth-anything/DA3-SMALL", "base": "depth-anything/DA3-BASE"}
PRESETS = ("da3-small", "da3-base")  # of upstream, in the order of HUB
LICENCE_NOTICE = (
    "The weights da3:{} of Depth Anything 3 are under the Apache License 2.0 (https://huggingface.co/{})."
)
INSTALL = "pip install --no-deps depth-anything-3 && pip install addict einops omegaconf"
# Longer side in pixels as upstream uses it, and for a CPU, with a third of the tokens.
IMAGE_SIZE, CPU_IMAGE_SIZE = 504, 280
PATCH = 14
_CONFIG_BYTES = 1 << 20
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's RGB

_log = logging.getLogger(__name__)


class DepthAnything(WindowNetwork):
    """Upstream's `DepthAnything3Net`.  The tokens of a view are its normalised pixels (3, h, w)."""

    # descriptor similarity was not measured with trained weights, so no view counts as redundant
    descriptors = DescriptorLimits(redundant=1.0, similar=0.5)

    def __init__(self, net: nn.Module, image_size: int = IMAGE_SIZE, dtype: torch.dtype = torch.float32):
        """image_size: of the longer side.  dtype: of the transformer; the heads are float32."""
        self._net: Any = net.eval()
        self._device = next(net.parameters()).device
        self._size = image_size // PATCH * PATCH
        self._dtype = dtype

    @torch.inference_mode()
    def encode(self, frame: Frame) -> EncodedView:
        """See `WindowNetwork`; the descriptor is the mean of the transformer's tokens for the view alone."""
        prepared = prepare_image(frame.image, self._size, PATCH, squares=True)
        transform = prepared.pixel_transform
        intrinsics = None if frame.intrinsics is None else transform @ frame.intrinsics
        pixels = torch.from_numpy(prepared.pixels).to(self._device).movedim(-1, 0).float() / 255
        mean, deviation = (torch.tensor(each, device=self._device) for each in (_MEAN, _DEVIATION))
        tokens = (pixels - mean[:, None, None]) / deviation[:, None, None]
        with self._precision():
            features, _ = self._net.backbone(tokens[None, None], cam_token=None, export_feat_layers=[])
        descriptor = normalize(features[-1][0].float().mean(dim=(0, 1, 2)), dim=-1).cpu().numpy()
        return EncodedView(prepared.pixels, transform, intrinsics, descriptor, tokens)

    @torch.inference_mode()
    def reconstruct(self, views: Sequence[EncodedView]) -> Reconstruction:
        """See `WindowNetwork`.  Smaller views are centred and padded with grey."""
        images = [view.tokens for view in views]
        height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
        corners = [((height - image.shape[1]) // 2, (width - image.shape[2]) // 2) for image in images]
        batch = torch.stack([_padded(image, height, width) for image in images])
        with self._precision():
            # view 0, chosen by the mapper, is the reference
            output = self._net(batch[None], ref_view_strategy="first")
        camera_from_world = output.extrinsics[0].double().cpu().numpy()
        poses = inverse(rigid_matrix(camera_from_world[:, :3, :3], camera_from_world[:, :3, 3]))
        intrinsics = output.intrinsics[0].double().cpu().numpy()
        depth, confidence = [], []
        for number, (image, (top, left)) in enumerate(zip(images, corners, strict=True)):
            rows, columns = slice(top, top + image.shape[1]), slice(left, left + image.shape[2])
            depth.append(output.depth[0, number, rows, columns].float())
            confidence.append(output.depth_conf[0, number, rows, columns].float().clamp_min(1.0))
            intrinsics[number, :2, 2] -= left, top
        return from_depth(depth, confidence, intrinsics, poses)

    def _precision(self) -> AbstractContextManager[Any]:
        if self._dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self._device.type, self._dtype)


def load(checkpoint_name: str, options: NetworkOptions) -> DepthAnything:
    """See `LoadNetwork`."""
    _upstream()  # reports a missing package before anything is downloaded
    size = options.image_size or (CPU_IMAGE_SIZE if options.device == "cpu" else IMAGE_SIZE)
    if size < PATCH:
        raise UserError(f"an image of {size} pixels is too small for da3; give {PATCH} or more")
    found, preset = _locate(checkpoint_name or "small")
    net = network(preset)
    expected = checkpoint.shapes_of(net)
    tensors: dict[str, Tensor] = {}
    for path in found.weights:
        for key, tensor in checkpoint.read_tensors(path).items():
            tensors[key.removeprefix("model.")] = tensor
    source = str(found.weights[0])
    weights = checkpoint.fit({key: tensors[key] for key in expected if key in tensors}, expected, source)
    checkpoint.check_finite(weights, source)
    net.load_state_dict(weights, assign=True)
    return DepthAnything(net.float().to(options.device), size, resolve_dtype(options.dtype, options.device))


def network(preset: str) -> nn.Module:
    """Upstream's network with random weights.  preset: one of PRESETS.

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


def _locate(name: str) -> tuple[checkpoint.CheckpointFiles, str]:
    """The files of a checkpoint and upstream's name of its architecture."""
    if name in HUB:
        _log.warning(LICENCE_NOTICE.format(name, HUB[name]))
        return checkpoint.locate(HUB[name]), dict(zip(HUB, PRESETS, strict=True))[name]
    if not Path(name).exists():
        raise UserError(f"da3:{name} is unknown; give {', '.join(f'da3:{each}' for each in HUB)} or a folder")
    found = checkpoint.locate(name)
    content = {} if found.config is None else read_json(found.config, _CONFIG_BYTES)
    preset = content.get("model_name") if isinstance(content, dict) else None
    if preset not in PRESETS:
        known = " and ".join(PRESETS)
        raise UserError(f"{name} has model_name {preset!r} in its config.json; da3 runs {known}")
    return found, preset


def _padded(image: Tensor, height: int, width: int) -> Tensor:
    """An image (3, h, w) in the middle of a grey one (3, height, width)."""
    top, left = (height - image.shape[1]) // 2, (width - image.shape[2]) // 2
    return pad(image, (left, width - image.shape[2] - left, top, height - image.shape[1] - top))

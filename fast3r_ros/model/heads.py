"""From a scene's fused features to pointmaps: the DPT heads with their convolutions and activations, and
running them over many views.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fast3r_ros.model.network_config import Fast3RConfig, HeadConfig
from fast3r_ros.model.types import FusedFeatures, Pointmap

SMALLEST_SIDE = 16


def layout_on(device: torch.device) -> torch.memory_format:
    """The memory layout of maps (B, C, h, w) and of convolutions' weights on a device.

    NNPACK on the CPU needs one channel after the other.  On a GPU tensor cores need all channels of a pixel
    together; cuDNN would convert any other layout before and after every convolution.
    """
    return torch.contiguous_format if device.type == "cpu" else torch.channels_last


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution of stride 1 that keeps the size."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, outputs, h, w)."""
        if not self._fast(x):
            return super().forward(x)
        # one image per call: for more, NNPACK falls back to slower arithmetic
        images = [
            torch._nnpack_spatial_convolution(image, self.weight, self.bias, [1, 1], [1, 1])
            for image in x.split(1)
        ]
        return images[0] if len(images) == 1 else torch.cat(images)

    def _fast(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.dtype == torch.float32
            and min(x.shape[2:]) >= SMALLEST_SIDE
            and not (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
            and not torch.compiler.is_compiling()
            and _has_nnpack()
        )


@functools.cache
def _has_nnpack() -> bool:
    """Whether this PyTorch build and CPU have NNPACK; the check also initialises it."""
    available = getattr(torch, "_nnpack_available", lambda: False)
    return bool(available()) and hasattr(torch, "_nnpack_spatial_convolution")


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = Conv3x3(width, width)
        self.conv2 = Conv3x3(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        hidden = F.relu(self.conv1(F.relu(x)), inplace=True)
        return self.conv2(hidden).add_(x)


class FusionBlock(nn.Module):
    """Adds a finer map to a coarser one, refines, and doubles the resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(width, width, 1)
        self.resConfUnit1 = ResidualUnit(width)
        self.resConfUnit2 = ResidualUnit(width)

    def forward(self, x: Tensor, finer: Tensor | None = None) -> Tensor:
        """(B, C, h, w) and optionally a second map of the same size to (B, C, 2h, 2w).

        The 1x1 convolution runs before the upsampling, with a quarter of the work; both commute, because
        bilinear weights sum to one.
        """
        if finer is not None:
            x = self.resConfUnit1(finer).add_(x)
        return upsample(self.out_conv(self.resConfUnit2(x)))


class Scratch(nn.Module):
    """The layers that bring the four maps to one width and fuse them, coarse to fine."""

    def __init__(self, dims: Sequence[int], width: int) -> None:
        super().__init__()
        self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn = (
            Conv3x3(dim, width, bias=False) for dim in dims
        )
        self.layer_rn = nn.ModuleList([self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn])
        self.refinenet1 = FusionBlock(width)
        self.refinenet2 = FusionBlock(width)
        self.refinenet3 = FusionBlock(width)
        self.refinenet4 = FusionBlock(width)


class Dpt(nn.Module):
    """Reassemble, fuse and predict (Ranftl et al., Vision Transformers for Dense Prediction, 2021)."""

    def __init__(self, token_dims: Sequence[int], config: HeadConfig, channels: int = 4) -> None:
        super().__init__()
        d1, d2, d3, d4 = config.dpt_reassemble_dims
        c1, c2, c3, c4 = token_dims
        self.act_postprocess = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(c1, d1, 1), nn.ConvTranspose2d(d1, d1, 4, stride=4)),
                nn.Sequential(nn.Conv2d(c2, d2, 1), nn.ConvTranspose2d(d2, d2, 2, stride=2)),
                nn.Sequential(nn.Conv2d(c3, d3, 1)),
                nn.Sequential(nn.Conv2d(c4, d4, 1), nn.Conv2d(d4, d4, 3, stride=2, padding=1)),
            ]
        )
        width, last = config.dpt_feature_dim, config.dpt_last_dim
        self.scratch = Scratch(config.dpt_reassemble_dims, width)
        self.head = nn.Sequential(
            Conv3x3(width, width // 2),
            nn.Identity(),  # in place of the upsampling, for the checkpoint's layer numbers
            Conv3x3(width // 2, last),
            nn.ReLU(inplace=True),
            nn.Conv2d(last, channels, 1),
        )

    def forward(self, maps: Sequence[Tensor], at_once: int | None = None) -> Tensor:
        """Four token maps (B, C_i, h, w) to (B, channels, 16h, 16w).

        at_once: number of views per call of the high-resolution part, default all; the results are equal.
        """
        path = self.coarse(*maps[2:])
        count = at_once or len(path)
        parts = zip(path.split(count), maps[0].split(count), maps[1].split(count), strict=True)
        results = [self.fine(*part) for part in parts]
        return results[0] if len(results) == 1 else torch.cat(results)

    def coarse(self, third: Tensor, fourth: Tensor) -> Tensor:
        """The last two token maps to features (B, C, 2h, 2w): small maps and large weights."""
        scratch = self.scratch
        path = scratch.refinenet4(scratch.layer4_rn(self.act_postprocess[3](fourth)))
        layer = scratch.layer3_rn(self.act_postprocess[2](third))
        height, width = layer.shape[-2:]
        return scratch.refinenet3(path[:, :, :height, :width], layer)

    def fine(self, path: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Coarse features and the first two token maps to (B, channels, 16h, 16w)."""
        scratch = self.scratch
        path = scratch.refinenet2(path, scratch.layer2_rn(self.act_postprocess[1](second)))
        path = scratch.refinenet1(path, scratch.layer1_rn(self.act_postprocess[0](first)))
        path = upsample(self.head[0](path))
        last = self.head[4]
        own = cast(Tensor, last.weight).dtype
        path = self.head[3](self.head[2](path))
        if path.dtype != own and not torch.is_autocast_enabled(path.device.type):
            path = path.to(own)  # float32 even with float16 weights: the result goes through exp
        return last(path)


def upsample(x: Tensor) -> Tensor:
    """Bilinear, twice the size, corners aligned."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


COARSE_PER_FINE = 8  # a view's coarse maps need less than an eighth of the memory of its fine ones


class PointmapHead(nn.Module):
    """One DPT head, and the activations that turn its four channels into points and confidences."""

    def __init__(self, config: Fast3RConfig) -> None:
        super().__init__()
        fused = config.decoder.embed_dim
        self.depth_mode = config.head.depth_mode[0]
        self.conf_mode = config.head.conf_mode
        self.width = config.head.dpt_feature_dim
        self.last = config.head.dpt_last_dim
        self.patch = config.encoder.patch_size
        self.recompute = False
        self.dpt = Dpt((config.encoder.embed_dim, fused, fused, fused), config.head)

    def forward(self, maps: Sequence[Tensor], at_once: int | None = None) -> tuple[Tensor, Tensor]:
        """Four token maps (B, C_i, h, w) to points (B, H, W, 3) and confidences (B, H, W).

        float32 or wider; at_once: see `Dpt`.
        """
        if self.recompute and torch.is_grad_enabled():
            raw: Tensor = checkpoint(self.dpt, maps, at_once, use_reentrant=False)
        else:
            raw = self.dpt(maps, at_once)
        raw = raw.permute(0, 2, 3, 1).contiguous().to(torch.promote_types(raw.dtype, torch.float32))
        points = activate_points(raw[..., :3], self.depth_mode)
        return points, activate_confidence(raw[..., 3], self.conf_mode)

    def bytes_per_view(self, grid: tuple[int, int], element_size: int) -> int:
        """Approximate bytes of one view at the widest point of the head."""
        pixels = grid[0] * grid[1] * self.patch**2
        return pixels * element_size * (self.width // 2 + 2 * self.last)

    def predict(self, features: FusedFeatures, views: Sequence[int], budget: int) -> list[Pointmap]:
        """Pointmaps of the given views, in order; views of one grid share calls of at most `budget` bytes."""
        results: list[Pointmap | None] = [None] * len(views)
        for grid, members in _by_grid(features, views).items():
            per_scene = features.hooks[0].shape[0]
            element_size = features.hooks[0].element_size()
            at_once = max(1, budget // self.bytes_per_view(grid, element_size))  # views at high resolution
            chunk = max(1, at_once * COARSE_PER_FINE // per_scene)
            for start in range(0, len(members), chunk):
                part = members[start : start + chunk]
                chosen = [views[place] for place in part]
                dtype = next(self.dpt.scratch.parameters()).dtype
                maps = [_token_maps(hook, features, chosen).to(dtype) for hook in features.hooks]
                points, confidence = (result.unflatten(0, (len(part), -1)) for result in self(maps, at_once))
                for place, view_points, view_confidence in zip(part, points, confidence, strict=True):
                    results[place] = Pointmap(view_points, view_confidence)
        return [result for result in results if result is not None]


def activate_points(raw: Tensor, mode: str) -> Tensor:
    """(..., 3) network output to points: `exp` keeps the direction and makes the length exp(|v|) - 1."""
    if mode == "linear":
        return raw
    length = raw.norm(dim=-1, keepdim=True)
    stretched = torch.expm1(length) if mode == "exp" else length.square()
    return raw * (stretched / length.clamp(min=1e-8))


def activate_confidence(raw: Tensor, mode: tuple[str, float, float]) -> Tensor:
    """Network output to confidences: `exp` gives low + exp(raw), at most high; `sigmoid` low to high."""
    name, low, high = mode
    if name == "exp":
        return (low + raw.exp()).clamp(max=high)
    return low + (high - low) * raw.sigmoid()


def _by_grid(features: FusedFeatures, views: Sequence[int]) -> dict[tuple[int, int], list[int]]:
    """Indices into `views`, grouped by the views' token grids."""
    groups: dict[tuple[int, int], list[int]] = {}
    for place, view in enumerate(views):
        groups.setdefault(features.grids[view], []).append(place)
    return groups


def _token_maps(hook: Tensor, features: FusedFeatures, views: Sequence[int]) -> Tensor:
    """A hook's tokens of V views of one grid as maps (V * B, C, h, w), copied once, see `layout_on`."""
    grid = features.grids[views[0]]
    starts = [features.offsets[view] for view in views]
    tokens = [hook[:, start : start + grid[0] * grid[1]] for start in starts]
    # the tokens' own layout; `cat` of maps would convert it
    if layout_on(hook.device) == torch.channels_last:
        return torch.cat(tokens).unflatten(1, grid).permute(0, 3, 1, 2)
    return torch.cat([view.transpose(1, 2).unflatten(2, grid) for view in tokens])

"""The DPT head: four feature maps of one view to a raw 4-channel map at image resolution.

Module names are those of the checkpoint.  `scratch.layer_rn` and `scratch.layer{1..4}_rn` are two names for
the same layers, and `refinenet4.resConfUnit1` exists only because checkpoints hold it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast3r_ros.model.config import HeadConfig
from fast3r_ros.model.convolution import Conv3x3


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

"""From a scene's fused features to pointmaps: the DPT heads and their activations, run in chunks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fast3r_ros.model.config import Fast3RConfig
from fast3r_ros.model.convolution import layout_on
from fast3r_ros.model.dpt import Dpt
from fast3r_ros.model.outputs import FusedFeatures, Pointmap

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
    if (
        layout_on(hook.device) == torch.channels_last
    ):  # the tokens' own layout; `cat` of maps would convert it
        return torch.cat(tokens).unflatten(1, grid).permute(0, 3, 1, 2)
    return torch.cat([view.transpose(1, 2).unflatten(2, grid) for view in tokens])

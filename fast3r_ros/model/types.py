"""The data between the network's steps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from torch import Tensor


@dataclass(frozen=True)
class ViewTokens:
    """One view's encoder output.  tokens: (B, h*w, C_e), row-major; grid: (h, w) patches."""

    tokens: Tensor
    grid: tuple[int, int]


@dataclass(frozen=True)
class FusedFeatures:
    """The input of the heads.

    hooks: four tensors (B, T, C) over the views' tokens.  grids: (h, w) of every view.  held: indices of the
    views whose tokens are in the hooks, in order; all views unless several processes share them.
    """

    hooks: tuple[Tensor, ...]
    grids: tuple[tuple[int, int], ...]
    held: tuple[int, ...] | None = None

    @cached_property
    def offsets(self) -> dict[int, int]:
        """The index of each held view's first token in the hooks."""
        held = range(len(self.grids)) if self.held is None else self.held
        counts = (self.grids[view][0] * self.grids[view][1] for view in held)
        return dict(zip(held, accumulate(counts, initial=0), strict=False))


@dataclass(frozen=True)
class Pointmap:
    """One 3D point and its confidence per pixel.

    points: (B, H, W, 3) float32, x right, y down, z forward, in the network's arbitrary scale: in view 0's
    camera from the global head, in the view's own camera from the local head.  confidence: (B, H, W) float32,
    at least 1.
    """

    points: Tensor
    confidence: Tensor


@dataclass(frozen=True)
class ViewPrediction:
    """Both heads' pointmaps of one view; local_points is None when the network has no local head."""

    global_points: Pointmap
    local_points: Pointmap | None

"""What passes between the network's steps."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor


@dataclass(frozen=True)
class ViewTokens:
    """One view's encoder output.  tokens: (B, h*w, C_e), row-major; grid: (h, w) patches."""

    tokens: Tensor
    grid: tuple[int, int]


@dataclass(frozen=True)
class FusedFeatures:
    """What the heads read.  hooks: four tensors (B, T, C) over all views' tokens; grids: (h, w) of every
    view.
    """

    hooks: tuple[Tensor, ...]
    grids: tuple[tuple[int, int], ...]

    @property
    def offsets(self) -> tuple[int, ...]:
        """The first token of every view."""
        return tuple(accumulate((rows * columns for rows, columns in self.grids), initial=0))[:-1]


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

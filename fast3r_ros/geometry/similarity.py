"""Closed-form weighted similarity fits between corresponding points, batched (Horn 1987).

The rotation is the largest eigenvector of a 4x4 matrix, so it is always a proper rotation, and the gap to
the next eigenvalue says whether the points determine it at all.  Everything is a function of weighted
second moments and runs on the device of the points, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fast3r_ros.geometry.sim3 import Sim3

Points = NDArray[np.floating] | Tensor
ScaleRule = Literal["least squares", "symmetric", "one"]

TINY = torch.finfo(torch.float64).tiny
# Below this the second largest extent of the points is rounding, and the rotation about a line is free.
DEGENERATE_GAP = 1e-6


@dataclass(frozen=True)
class SimilarityBatch:
    """B similarities x_target = scale * rotation @ x_source + translation, as float64 tensors.

    scale: (B,).  rotation: (B, 3, 3).  translation: (B, 3).  gap: (B,) in [0, 1], how well the points
    determine the rotation; 0 when they lie on a line or in one place.
    """

    scale: Tensor
    rotation: Tensor
    translation: Tensor
    gap: Tensor

    def matrix(self) -> Tensor:
        """(B, 3, 4) matrices [scale * rotation | translation]."""
        return torch.cat([self.scale[:, None, None] * self.rotation, self.translation[:, :, None]], 2)

    def at(self, index: int) -> Sim3:
        """One similarity of the batch, as numpy."""
        rotation, translation = self.rotation[index].cpu().numpy(), self.translation[index].cpu().numpy()
        return Sim3(float(self.scale[index]), rotation, translation)


def fit_similarity(
    source: Points, target: Points, weights: Points | None = None, with_scale: bool = True
) -> Sim3:
    """The weighted least-squares `target_from_source` of corresponding points (N, 3), weights (N,) >= 0.

    The scale is the one that minimises the distances in the target frame (Umeyama 1991).  Raises ValueError
    when fewer than three points have weight or they lie on a line.
    """
    source, target, weights = as_batch(source, target, weights)
    fit = fit_similarities(source, target, weights, with_scale=with_scale)
    if int((weights > 0).sum()) < 3 or not float(fit.gap[0]) > DEGENERATE_GAP:
        raise ValueError("a similarity needs at least three points with weight that do not lie on a line")
    return fit.at(0)


def fit_similarities(
    source: Tensor, target: Tensor, weights: Tensor, *, with_scale: bool = True
) -> SimilarityBatch:
    """B weighted least-squares fits of (B, N, 3) points with weights (B, N) >= 0."""
    moments = weighted_moments(augment(source), augment(target), weights.double())
    return solve(moments, "least squares" if with_scale else "one")


def augment(points: Tensor) -> Tensor:
    """(B, N, 3) -> (B, 5, N) float64 rows x, y, z, 1, x^2 + y^2 + z^2: one product then gives all moments."""
    rows = points.transpose(1, 2).double()
    return torch.cat([rows, torch.ones_like(rows[:, :1]), rows.square().sum(1, keepdim=True)], 1)


def weighted_moments(source: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """(B, 5, 5) sums of weights (B, N) times the products of augmented source and target coordinates."""
    return (source * weights[:, None]) @ target.transpose(1, 2)


def solve(moments: Tensor, scale_rule: ScaleRule) -> SimilarityBatch:
    """The similarities from the moments (B, 5, 5).

    "symmetric" takes the ratio of the two spreads for the scale.  The least-squares scale is biased towards
    zero when the source is noisy too, which would make a map shrink from window to window.
    """
    moments = moments / moments[:, 3:4, 3:4].clamp_min(TINY)
    source_centre, target_centre = moments[:, :3, 3], moments[:, 3, :3]
    correlation = moments[:, :3, :3] - source_centre[:, :, None] * target_centre[:, None]
    source_spread = (moments[:, 4, 3] - source_centre.square().sum(1)).clamp_min(TINY)
    target_spread = (moments[:, 3, 4] - target_centre.square().sum(1)).clamp_min(0.0)
    rotation, gap = _horn_rotation(correlation)
    if scale_rule == "one":
        scale = torch.ones_like(source_spread)
    elif scale_rule == "symmetric":
        scale = (target_spread / source_spread).sqrt()
    else:
        scale = torch.einsum("bij,bji->b", rotation, correlation) / source_spread
    moved_centre = scale[:, None] * torch.einsum("bij,bj->bi", rotation, source_centre)
    return SimilarityBatch(scale, rotation, target_centre - moved_centre, gap)


def as_batch(source: Points, target: Points, weights: Points | None) -> tuple[Tensor, Tensor, Tensor]:
    """Points (N, 3) and weights (N,), numpy or torch, as a batch of one on the source's device.

    Raises ValueError when the shapes do not fit.
    """
    source, target = torch.as_tensor(source), torch.as_tensor(target)
    if source.ndim != 2 or source.shape[1] != 3 or source.shape != target.shape:
        raise ValueError(f"need two (N, 3) arrays, got {tuple(source.shape)} and {tuple(target.shape)}")
    if weights is None:
        weights = source.new_ones(len(source))
    weights = torch.as_tensor(weights, device=source.device)
    return source[None], target.to(source.device)[None], weights[None]


def _horn_rotation(correlation: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation target_from_source and eigenvalue gap from sum(w * source target^T), (B, 3, 3)."""
    s = correlation
    xx, yy, zz = s[:, 0, 0], s[:, 1, 1], s[:, 2, 2]
    yz, zx, xy = s[:, 1, 2] - s[:, 2, 1], s[:, 2, 0] - s[:, 0, 2], s[:, 0, 1] - s[:, 1, 0]
    pxy, pzx, pyz = s[:, 0, 1] + s[:, 1, 0], s[:, 2, 0] + s[:, 0, 2], s[:, 1, 2] + s[:, 2, 1]
    rows = [
        torch.stack([xx + yy + zz, yz, zx, xy], 1),
        torch.stack([yz, xx - yy - zz, pxy, pzx], 1),
        torch.stack([zx, pxy, yy - xx - zz, pyz], 1),
        torch.stack([xy, pzx, pyz, zz - xx - yy], 1),
    ]
    matrix = torch.nan_to_num(torch.stack(rows, 1), nan=0.0, posinf=0.0, neginf=0.0)
    values, vectors = torch.linalg.eigh(matrix)
    w, x, y, z = vectors[:, :, 3].unbind(1)
    rotation = torch.stack(
        [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        ],
        1,
    ).view(-1, 3, 3)
    largest = values.abs().amax(1).clamp_min(TINY)
    return rotation, (values[:, 3] - values[:, 2]) / largest

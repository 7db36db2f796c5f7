"""Closed-form weighted similarity fits between corresponding points, batched (Horn 1987).

The rotation is the largest eigenvector of a 4x4 matrix, so it is always a proper rotation, and the gap to the
next eigenvalue shows whether the points determine it.  Everything is a function of weighted second moments,
in float64: these are summed on the device of the points, and solved on the host.  On a GPU the algebra of a
few small matrices would be hundreds of short kernels and an eigensolver that synchronises with the device
anyway.
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
Float64 = NDArray[np.float64]
TINY = float(np.finfo(np.float64).tiny)
# Below this the second largest extent of the points is rounding: a line, whose rotation is undetermined.
DEGENERATE_GAP = 1e-6


@dataclass(frozen=True)
class SimilarityBatch:
    """B similarities x_target = scale * rotation @ x_source + translation, as float64 tensors on one device.

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
    """B weighted least-squares fits of (B, N, 3) points with weights (B, N) >= 0, on the points' device."""
    moments = weighted_moments(augment(source), augment(target), weights.double()).cpu().numpy()
    fit = solve(moments, "least squares" if with_scale else "one")
    fields = (fit.scale, fit.rotation, fit.translation, fit.gap)
    return SimilarityBatch(*(field.to(source.device) for field in fields))


def augment(points: Tensor) -> Tensor:
    """(B, N, 3) -> (B, 5, N) float64 rows x, y, z, 1, x^2 + y^2 + z^2: one product then gives all moments."""
    rows = points.transpose(1, 2).double()
    return torch.cat([rows, torch.ones_like(rows[:, :1]), rows.square().sum(1, keepdim=True)], 1)


def weighted_moments(source: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """(B, 5, 5) sums of weights (B, N) times the products of augmented source and target coordinates."""
    return (source * weights[:, None]) @ target.transpose(1, 2)


def solve(moments: Float64, scale_rule: ScaleRule) -> SimilarityBatch:
    """The similarities from the moments (B, 5, 5), on the host.

    "symmetric" uses the ratio of the two spreads as the scale.  The least-squares scale is biased towards
    zero when the source is noisy too, which would shrink a map from window to window.  Moments without weight
    or with non-finite values give a gap of 0 or non-finite results, never an exception.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        moments = moments / np.maximum(moments[:, 3:4, 3:4], TINY)
        source_centre, target_centre = moments[:, :3, 3], moments[:, 3, :3]
        correlation = moments[:, :3, :3] - source_centre[:, :, None] * target_centre[:, None]
        source_spread = np.maximum(moments[:, 4, 3] - np.square(source_centre).sum(1), TINY)
        target_spread = np.maximum(moments[:, 3, 4] - np.square(target_centre).sum(1), 0.0)
        rotation, gap = _horn_rotation(correlation)
        if scale_rule == "one":
            scale = np.ones_like(source_spread)
        elif scale_rule == "symmetric":
            scale = np.sqrt(target_spread / source_spread)
        else:
            scale = np.einsum("bij,bji->b", rotation, correlation) / source_spread
        moved_centre = scale[:, None] * np.einsum("bij,bj->bi", rotation, source_centre)
        fit = (scale, rotation, target_centre - moved_centre, gap)
    return SimilarityBatch(*(torch.from_numpy(values) for values in fit))


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


def _horn_rotation(correlation: Float64) -> tuple[Float64, Float64]:
    """Rotation target_from_source and eigenvalue gap from sum(w * source * target^T), (B, 3, 3)."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = correlation.transpose(1, 2, 0)
    rows = [
        [xx + yy + zz, yz - zy, zx - xz, xy - yx],
        [yz - zy, xx - yy - zz, xy + yx, zx + xz],
        [zx - xz, xy + yx, yy - xx - zz, yz + zy],
        [xy - yx, zx + xz, yz + zy, zz - xx - yy],
    ]
    matrix = np.nan_to_num(np.array(rows).transpose(2, 0, 1), nan=0.0, posinf=0.0, neginf=0.0)
    values, vectors = np.linalg.eigh(matrix)
    w, x, y, z = vectors[:, :, 3].T
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    ).transpose(2, 0, 1)
    largest = np.maximum(np.abs(values).max(1), TINY)
    return np.ascontiguousarray(rotation), (values[:, 3] - values[:, 2]) / largest

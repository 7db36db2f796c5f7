"""Robust weighted similarity fits: the closed form, re-weighted iteratively.

First L1, which finds its way out of a bad start without knowing the size of the errors, then Tukey's
redescending kernel with a scale from the weighted median of the residuals.  Batched, on the device of the
points, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.geometry.similarity import (
    DEGENERATE_GAP,
    TINY,
    Points,
    ScaleRule,
    SimilarityBatch,
    as_batch,
    augment,
    solve,
    weighted_moments,
)

L1_STEPS = 5
TUKEY_STEPS = 7
POLISHING_STEPS = 2
COARSE_POINTS = 2048
MEDIAN_POINTS = 512
# Residuals with standard deviation s per axis have a median length of 1.538 s (chi distribution, 3 axes).
MEDIAN_OF_CHI3 = 1.5382
TUKEY_SIGMAS = 6.0


@dataclass(frozen=True)
class RobustOptions:
    """How a robust fit samples and judges.

    max_points: so many correspondences are sampled when there are more (fixed seed).  with_scale: fit the
    scale or keep it at one.  min_points: fewer points of positive weight are refused.  inlier_distance: a
    correspondence is an inlier when its residual is below this share of the target's spread (the median
    distance from the centre).  min_inlier_share: a fit with fewer inliers (by weight) is not ok.
    points_per_observation: how many neighbouring points share one independent error; the covariance grows
    by it.
    """

    max_points: int = 12288
    with_scale: bool = True
    min_points: int = 16
    inlier_distance: float = 0.1
    min_inlier_share: float = 0.5
    points_per_observation: float = 1.0


@dataclass(frozen=True)
class SimilarityFit:
    """A robust fit `target_from_source` and how far to trust it.

    inlier_share: weighted share of correspondences that agree, in [0, 1].  residual: robust standard
    deviation per axis, in target units.  covariance: (7, 7) float64 of (translation, rotation vector, log
    scale) in the target frame; translation is the error of the place of the source's origin, and rotation
    vector and log scale act about that place, on the left.  With a camera as the source these are the
    errors of its position and attitude.  ok: False when the fit must not be used; reason says why (empty
    when ok).
    """

    target_from_source: Sim3
    inlier_share: float
    residual: float
    covariance: NDArray[np.float64]
    ok: bool
    reason: str


@dataclass(frozen=True)
class RobustBatch:
    """B robust fits: the fields of `SimilarityFit` with a leading batch dimension, as float64 tensors."""

    similarity: SimilarityBatch
    inlier_share: Tensor
    residual: Tensor
    covariance: Tensor
    ok: tuple[bool, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Pairs:
    """Correspondences in random order, so that any beginning of them is a fair sample.

    source, target: (B, 5, N) augmented points.  weights: (B, N).  floor: (B, 1), a residual that is
    rounding for certain.
    """

    source: Tensor
    target: Tensor
    weights: Tensor
    floor: Tensor

    def first(self, count: int) -> _Pairs:
        return _Pairs(self.source[..., :count], self.target[..., :count], self.weights[:, :count], self.floor)

    def fit(self, robust_weights: Tensor, scale_rule: ScaleRule) -> SimilarityBatch:
        return solve(weighted_moments(self.source, self.target, robust_weights), scale_rule)

    def distance(self, fit: SimilarityBatch) -> Tensor:
        """Residual lengths (B, N)."""
        return _length(fit.matrix() @ self.source[:, :4] - self.target[:, :3])

    def tukey(self, distance: Tensor) -> Tensor:
        """1 - (distance / cut)^2, at least 0: Tukey's biweight is its square.  The cut follows the median."""
        sigma = _median(distance, self.weights)[:, None] / MEDIAN_OF_CHI3
        cut = TUKEY_SIGMAS * torch.maximum(sigma, self.floor)
        return (1.0 - (distance / cut).square()).clamp_min(0.0)


def fit_similarity_robust(
    source: Points,
    target: Points,
    weights: Points | None = None,
    options: RobustOptions | None = None,
) -> SimilarityFit:
    """The robust weighted `target_from_source` of corresponding points (N, 3), weights (N,) >= 0.

    Numpy or torch.  Points that are not finite count as weight zero.  Never raises on bad data: see
    `SimilarityFit.ok`.
    """
    options = options or RobustOptions()
    batch = as_batch(source, target, weights)
    if batch[0].shape[1] == 0:  # the same as one correspondence without weight
        source, target, weights = (values.new_zeros((1, 1, *values.shape[2:])) for values in batch)
        batch = source, target, weights
    chosen = sample_indices(batch[0].shape[1], options.max_points, batch[0].device)
    source, target, weights = (values.index_select(1, chosen) for values in batch)
    fits = fit_similarities_robust(source, target, weights, options)
    return SimilarityFit(
        fits.similarity.at(0),
        float(fits.inlier_share[0]),
        float(fits.residual[0]),
        fits.covariance[0].cpu().numpy(),
        fits.ok[0],
        fits.reasons[0],
    )


def fit_similarities_robust(
    source: Tensor, target: Tensor, weights: Tensor, options: RobustOptions
) -> RobustBatch:
    """B robust weighted fits of (B, N, 3) points with weights (B, N) >= 0, together on the points' device.

    The correspondences must be in random order, as `sample_indices` gives them; all of them are used.
    """
    finite = torch.isfinite(source).all(2) & torch.isfinite(target).all(2) & torch.isfinite(weights)
    good = finite & (weights > 0)
    source, target = (augment(torch.where(good[..., None], points, 0.0)) for points in (source, target))
    weights = torch.where(good, weights, 0.0).double()
    floor = (1e-9 * _spread(target[:, :3], weights)).clamp_min(1e-30)[:, None]
    pairs = _Pairs(source, target, weights, floor)
    fit = _refine(
        _start(pairs.first(COARSE_POINTS), options), pairs.first(COARSE_POINTS), options, TUKEY_STEPS
    )
    if weights.shape[1] > COARSE_POINTS:
        fit = _refine(fit, pairs, options, POLISHING_STEPS)
    return _judge(fit, pairs, options)


@lru_cache(maxsize=32)
def sample_indices(available: int, count: int, device: torch.device) -> Tensor:
    """At most `count` of the indices below `available`, in random order and always the same."""
    return torch.randperm(available, generator=torch.Generator().manual_seed(0))[:count].to(device)


def _start(pairs: _Pairs, options: RobustOptions) -> SimilarityBatch:
    """The L1 fit, from least squares."""
    scale_rule: ScaleRule = "least squares" if options.with_scale else "one"
    fit = pairs.fit(pairs.weights, scale_rule)
    for _ in range(L1_STEPS):
        fit = pairs.fit(pairs.weights / pairs.distance(fit).clamp_min(pairs.floor), scale_rule)
    return fit


def _refine(fit: SimilarityBatch, pairs: _Pairs, options: RobustOptions, steps: int) -> SimilarityBatch:
    scale_rule: ScaleRule = "symmetric" if options.with_scale else "one"
    for _ in range(steps):
        fit = pairs.fit(pairs.weights * pairs.tukey(pairs.distance(fit)).square(), scale_rule)
    return fit


def _judge(fit: SimilarityBatch, pairs: _Pairs, options: RobustOptions) -> RobustBatch:
    distance = pairs.distance(fit)
    spread = _spread(pairs.target[:, :3], pairs.weights)
    agree = pairs.weights * (distance < options.inlier_distance * spread[:, None])
    inliers = agree.sum(1) / pairs.weights.sum(1).clamp_min(TINY)
    sigma = _median(distance, pairs.weights) / MEDIAN_OF_CHI3
    covariance = _covariance(fit, pairs, distance, options)
    counts = (pairs.weights > 0).sum(1).tolist()
    finite = (torch.isfinite(covariance).all(2).all(1) & torch.isfinite(fit.translation).all(1)).tolist()
    numbers = zip(counts, fit.gap.tolist(), fit.scale.tolist(), inliers.tolist(), finite, strict=True)
    reasons = tuple(_reason(*values, options) for values in numbers)
    return RobustBatch(fit, inliers, sigma, covariance, tuple(not reason for reason in reasons), reasons)


def _reason(
    count: int, gap: float, scale: float, inliers: float, finite: bool, options: RobustOptions
) -> str:
    if count < options.min_points:
        return f"only {count} of the sampled points have weight, {options.min_points} are needed"
    if not gap > DEGENERATE_GAP:
        return "the points lie on a line or in one place, which leaves the rotation open"
    if not (finite and scale > 0.0):
        return f"the fit has no finite solution (scale {scale:.3g})"
    if inliers < options.min_inlier_share:
        return f"only {inliers:.0%} of the points agree, {options.min_inlier_share:.0%} are needed"
    return ""


def _covariance(fit: SimilarityBatch, pairs: _Pairs, distance: Tensor, options: RobustOptions) -> Tensor:
    """(B, 7, 7) covariance of the M-estimate.

    With the lever from the source's origin to a point, both in the target frame, the point changes with
    (translation, rotation vector, log scale) by [I, -[lever]x, lever].  The normal equations of that are
    scaled by the M-estimator's variance, sum(psi^2) / sum(psi')^2 (Huber 1981), which also holds when the
    weights tell relative precision only.
    """
    lever = fit.matrix()[:, :, :3] @ pairs.source[:, :3]
    kernel_root = pairs.tukey(distance)
    robust = pairs.weights * kernel_root.square()
    total = robust.sum(1)
    first = (lever @ robust[:, :, None])[:, :, 0]
    second = (lever * robust[:, None]) @ lever.transpose(1, 2)
    square = torch.einsum("bii->b", second)
    eye = torch.eye(3, dtype=torch.float64, device=lever.device)
    information = lever.new_zeros(len(lever), 7, 7)
    information[:, :3, :3] = total[:, None, None] * eye
    information[:, :3, 3:6] = -_cross_matrix(first)
    information[:, 3:6, :3] = _cross_matrix(first)
    information[:, :3, 6] = first
    information[:, 6, :3] = first
    information[:, 3:6, 3:6] = square[:, None, None] * eye - second
    information[:, 6, 6] = square
    # d/dr (r * kernel), averaged over the three directions of a residual
    slope = (pairs.weights * (kernel_root.square() - 4 / 3 * (1 - kernel_root) * kernel_root)).sum(1)
    variance = (robust * distance).square().sum(1) / 3.0 * total / slope.square().clamp_min(TINY)
    parameters = 7 if options.with_scale else 6
    covariance = torch.zeros_like(information)
    solvable = information[:, :parameters, :parameters]
    covariance[:, :parameters, :parameters] = _pseudo_inverse(solvable)
    return covariance * (options.points_per_observation * variance)[:, None, None]


def _pseudo_inverse(symmetric: Tensor) -> Tensor:
    """Of each of (B, n, n) symmetric matrices; NaN for one that is not finite or too ill-conditioned."""
    try:
        return torch.linalg.pinv(symmetric, hermitian=True, rtol=1e-15)
    except torch.linalg.LinAlgError:
        if len(symmetric) == 1:
            return torch.full_like(symmetric, torch.nan)
        return torch.cat([_pseudo_inverse(each[None]) for each in symmetric])


def _median(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted median (B,) over the first points of (B, N)."""
    values, order = values[:, :MEDIAN_POINTS].sort(1)
    cumulative = weights[:, :MEDIAN_POINTS].gather(1, order).cumsum(1)
    middle = torch.searchsorted(cumulative, 0.5 * cumulative[:, -1:])
    return values.gather(1, middle.clamp_max(values.shape[1] - 1))[:, 0]


def _spread(points: Tensor, weights: Tensor) -> Tensor:
    """Weighted median distance (B,) of (B, 3, N) points from their coordinate-wise weighted median."""
    centre = torch.stack([_median(points[:, axis], weights) for axis in range(3)], 1)
    return _median(_length(points - centre[:, :, None]), weights)


def _length(vectors: Tensor) -> Tensor:
    """(B, 3, N) -> (B, N); much faster on the CPU than a norm over a middle axis."""
    return vectors.square().sum(1).sqrt()


def _cross_matrix(vectors: Tensor) -> Tensor:
    """(B, 3) -> (B, 3, 3) with cross_matrix(v) @ u = v x u."""
    x, y, z = vectors.unbind(1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).view(-1, 3, 3)

"""Robust weighted similarity fits: the closed form, re-weighted iteratively.

The iteration starts with L1, which converges from a bad start without knowing the size of the errors, and
ends with Tukey's redescending kernel, its scale from the weighted median of the residuals.  Batched, in
float64.  Operations on points run on their device; each step copies the moments to the host, solves there,
and copies the similarities back: a few numbers per fit in each direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.geometry.similarity import (
    DEGENERATE_GAP,
    TINY,
    Float64,
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
    """Sampling and acceptance of a robust fit.

    max_points: if there are more correspondences, this many are sampled (fixed seed).  with_scale: fit the
    scale or fix it at one.  min_points: fits with fewer points of positive weight are rejected.
    inlier_distance: a correspondence is an inlier when its residual is below this share of the target's
    spread (the median distance from the centre).  min_inlier_share: a fit with fewer inliers (by weight) is
    not ok.  points_per_observation: number of neighbouring points that share one independent error; the
    covariance grows by this factor.
    """

    max_points: int = 12288
    with_scale: bool = True
    min_points: int = 16
    inlier_distance: float = 0.1
    min_inlier_share: float = 0.5
    points_per_observation: float = 1.0


@dataclass(frozen=True)
class SimilarityFit:
    """A robust fit `target_from_source` and its quality.

    inlier_share: weighted share of correspondences that agree, in [0, 1].  residual: robust standard
    deviation per axis, in target units.  covariance: (7, 7) float64 of (translation, rotation vector, log
    scale) in the target frame; translation is the error of the position of the source's origin, and rotation
    vector and log scale act about that position, on the left.  With a camera as the source these are the
    errors of its position and attitude.  ok: False when the fit is rejected; reason: why (empty when ok).
    """

    target_from_source: Sim3
    inlier_share: float
    residual: float
    covariance: Float64
    ok: bool
    reason: str


@dataclass(frozen=True)
class RobustBatch:
    """B robust fits: the fields of `SimilarityFit` with a leading batch dimension, in float64 on the host."""

    similarity: SimilarityBatch
    inlier_share: Float64
    residual: Float64
    covariance: Float64
    ok: tuple[bool, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Pairs:
    """Correspondences in random order, so that any leading part is a fair sample.

    source, target: (B, 5, N) augmented points.  weights: (B, N).  floor: (B, 1), a squared residual that is
    certainly rounding error.
    """

    source: Tensor
    target: Tensor
    weights: Tensor
    floor: Tensor

    def first(self, count: int) -> _Pairs:
        return _Pairs(self.source[..., :count], self.target[..., :count], self.weights[:, :count], self.floor)

    def fit(self, robust_weights: Tensor, scale_rule: ScaleRule) -> SimilarityBatch:
        moments = weighted_moments(self.source, self.target, robust_weights)
        return solve(moments.cpu().numpy(), scale_rule)

    def square_distance(self, fit: SimilarityBatch) -> Tensor:
        """Squared lengths (B, N) of the residuals; their square roots are never needed."""
        # a few hundred bytes, copied without waiting for the device
        matrix = fit.matrix().to(self.source.device, non_blocking=True)
        residual = torch.baddbmm(self.target[:, :3], matrix, self.source[:, :4], alpha=-1)
        return residual.square().sum(1)

    def tukey(self, square_distance: Tensor) -> Tensor:
        """1 - (distance / cut)^2, at least 0: Tukey's biweight is its square.  The cut follows the median."""
        variance = _median(square_distance, self.weights)[:, None] / MEDIAN_OF_CHI3**2
        square_cut = TUKEY_SIGMAS**2 * torch.maximum(variance, self.floor)
        return (1.0 - square_distance / square_cut).clamp_min(0.0)


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
    if batch[0].shape[1] == 0:  # equivalent to one correspondence of zero weight
        source, target, weights = (values.new_zeros((1, 1, *values.shape[2:])) for values in batch)
        batch = source, target, weights
    chosen = sample_indices(batch[0].shape[1], options.max_points, batch[0].device)
    source, target, weights = (values.index_select(1, chosen) for values in batch)
    fits = fit_similarities_robust(source, target, weights, options)
    return SimilarityFit(
        fits.similarity.at(0),
        float(fits.inlier_share[0]),
        float(fits.residual[0]),
        fits.covariance[0],
        fits.ok[0],
        fits.reasons[0],
    )


def fit_similarities_robust(
    source: Tensor, target: Tensor, weights: Tensor, options: RobustOptions
) -> RobustBatch:
    """B robust weighted fits of (B, N, 3) points with weights (B, N) >= 0, together.

    The correspondences must be in random order, such as from `sample_indices`; all are used.
    """
    finite = torch.isfinite(source).all(2) & torch.isfinite(target).all(2) & torch.isfinite(weights)
    good = finite & (weights > 0)
    source, target = (augment(torch.where(good[..., None], points, 0.0)) for points in (source, target))
    weights = torch.where(good, weights, 0.0).double()
    spread = _spread(target[:, :3], weights)
    pairs = _Pairs(source, target, weights, (1e-9 * spread).clamp_min(1e-30).square()[:, None])
    fit = _refine(
        _start(pairs.first(COARSE_POINTS), options), pairs.first(COARSE_POINTS), options, TUKEY_STEPS
    )
    if weights.shape[1] > COARSE_POINTS:
        fit = _refine(fit, pairs, options, POLISHING_STEPS)
    return _judge(fit, pairs, spread, options)


@lru_cache(maxsize=32)
def sample_indices(available: int, count: int, device: torch.device) -> Tensor:
    """At most `count` of the indices below `available`, in random order, the same in every call."""
    return torch.randperm(available, generator=torch.Generator().manual_seed(0))[:count].to(device)


def _start(pairs: _Pairs, options: RobustOptions) -> SimilarityBatch:
    """The L1 fit, from least squares."""
    scale_rule: ScaleRule = "least squares" if options.with_scale else "one"
    fit = pairs.fit(pairs.weights, scale_rule)
    for _ in range(L1_STEPS):
        inverse_distance = pairs.square_distance(fit).clamp_min(pairs.floor).rsqrt()
        fit = pairs.fit(pairs.weights * inverse_distance, scale_rule)
    return fit


def _refine(fit: SimilarityBatch, pairs: _Pairs, options: RobustOptions, steps: int) -> SimilarityBatch:
    scale_rule: ScaleRule = "symmetric" if options.with_scale else "one"
    for _ in range(steps):
        fit = pairs.fit(pairs.weights * pairs.tukey(pairs.square_distance(fit)).square(), scale_rule)
    return fit


def _judge(fit: SimilarityBatch, pairs: _Pairs, spread: Tensor, options: RobustOptions) -> RobustBatch:
    """The quality of a fit, from sums over its points that are copied to the host at once."""
    square = pairs.square_distance(fit)
    kernel_root = pairs.tukey(square)
    robust = pairs.weights * kernel_root.square()
    # d/dr (r * kernel), averaged over the three directions of a residual
    slope = pairs.weights * (kernel_root.square() - 4 / 3 * (1 - kernel_root) * kernel_root)
    agree = pairs.weights * (square < (options.inlier_distance * spread).square()[:, None])
    each = torch.stack([pairs.weights, pairs.weights > 0, agree, slope, robust.square() * square], 1)
    moments = weighted_moments(pairs.source[:, :4], pairs.source[:, :4], robust)
    median = _median(square, pairs.weights)
    numbers = torch.cat([each.sum(2), median[:, None], moments.flatten(1)], 1).cpu().numpy()
    weight, count, agreeing, slopes, squares, middle = numbers[:, :6].T
    inliers = agreeing / np.maximum(weight, TINY)
    sigma = np.sqrt(middle) / MEDIAN_OF_CHI3
    covariance = _covariance(fit, numbers[:, 6:].reshape(-1, 4, 4), slopes, squares, options)
    finite = np.isfinite(covariance).all((1, 2)) & np.isfinite(fit.translation.numpy()).all(1)
    counts = count.astype(np.int64).tolist()
    values = zip(counts, fit.gap.tolist(), fit.scale.tolist(), inliers.tolist(), finite.tolist(), strict=True)
    reasons = tuple(_reason(*each, options) for each in values)
    return RobustBatch(fit, inliers, sigma, covariance, tuple(not reason for reason in reasons), reasons)


def _reason(
    count: int, gap: float, scale: float, inliers: float, finite: bool, options: RobustOptions
) -> str:
    if count < options.min_points:
        return f"only {count} of the sampled points have weight, {options.min_points} are needed"
    if not gap > DEGENERATE_GAP:
        return "the points lie on a line or in one place, so the rotation is not determined"
    if not (finite and scale > 0.0):
        return f"the fit has no finite solution (scale {scale:.3g})"
    if inliers < options.min_inlier_share:
        return f"only {inliers:.0%} of the points agree, {options.min_inlier_share:.0%} are needed"
    return ""


def _covariance(
    fit: SimilarityBatch, moments: Float64, slopes: Float64, squares: Float64, options: RobustOptions
) -> Float64:
    """(B, 7, 7) covariance of the M-estimate.

    With the lever from the source's origin to a point, both in the target frame, the point changes with
    (translation, rotation vector, log scale) by [I, -[lever]x, lever].  The normal equations of that are
    scaled by the M-estimator's variance, sum(psi^2) / sum(psi')^2 (Huber 1981), which also holds when the
    weights are only relative precisions.

    moments: (B, 4, 4) of the source's x, y, z, 1 under the robust weights.  slopes, squares: (B,) the sums of
    psi' and of psi^2.
    """
    linear = fit.matrix().numpy()[:, :, :3]
    total = moments[:, 3, 3]
    with np.errstate(over="ignore", invalid="ignore"):
        first = np.einsum("bij,bj->bi", linear, moments[:, :3, 3])
        second = linear @ moments[:, :3, :3] @ linear.transpose(0, 2, 1)
        square = np.einsum("bii->b", second)
        information = np.zeros((len(linear), 7, 7))
        information[:, :3, :3] = total[:, None, None] * np.eye(3)
        information[:, :3, 3:6] = -_cross_matrix(first)
        information[:, 3:6, :3] = _cross_matrix(first)
        information[:, :3, 6] = first
        information[:, 6, :3] = first
        information[:, 3:6, 3:6] = square[:, None, None] * np.eye(3) - second
        information[:, 6, 6] = square
        variance = squares / 3.0 * total / np.maximum(np.square(slopes), TINY)
        parameters = 7 if options.with_scale else 6
        covariance = np.zeros_like(information)
        solvable = information[:, :parameters, :parameters]
        covariance[:, :parameters, :parameters] = _pseudo_inverse(solvable)
        return covariance * (options.points_per_observation * variance)[:, None, None]


def _pseudo_inverse(symmetric: Float64) -> Float64:
    """The pseudo-inverses of (B, n, n) symmetric matrices; NaN if not finite or too ill-conditioned."""
    try:
        return np.asarray(np.linalg.pinv(symmetric, rcond=1e-15, hermitian=True))
    except np.linalg.LinAlgError:
        if len(symmetric) == 1:
            return np.full_like(symmetric, np.nan)
        return np.concatenate([_pseudo_inverse(each[None]) for each in symmetric])


def _median(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted median (...) over the first points of (..., N)."""
    values = values[..., :MEDIAN_POINTS]
    order = ascending(values)
    cumulative = weights[..., :MEDIAN_POINTS].gather(-1, order).cumsum(-1)
    # always found: the last value is large enough
    middle = torch.searchsorted(cumulative, 0.5 * cumulative[..., -1:])
    return values.gather(-1, order.gather(-1, middle))[..., 0]


def ascending(values: Tensor) -> Tensor:
    """The order of values (..., N) along their last axis, NaN last; on the CPU NumPy is faster."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.argsort(values.numpy(), axis=-1))
    return values.argsort(-1)


def _spread(points: Tensor, weights: Tensor) -> Tensor:
    """Weighted median distance (B,) of (B, 3, N) points from their coordinate-wise weighted median."""
    centre = _median(points, weights[:, None].expand(points.shape))
    return _median(_length(points - centre[:, :, None]), weights)


def _length(vectors: Tensor) -> Tensor:
    """(B, 3, N) -> (B, N); much faster on the CPU than a norm over a middle axis."""
    return vectors.square().sum(1).sqrt()


def _cross_matrix(vectors: Float64) -> Float64:
    """(B, 3) -> (B, 3, 3) with cross_matrix(v) @ u = v x u."""
    x, y, z = vectors.T
    zero = np.zeros_like(x)
    return np.array([[zero, -z, y], [z, zero, -x], [-y, x, zero]]).transpose(2, 0, 1)

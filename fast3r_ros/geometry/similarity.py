"""Weighted similarity fits between corresponding points, closed-form and robust.

The closed form is Horn's (1987): the rotation is the largest eigenvector of a 4x4 matrix, so it is always
proper, and the gap to the next eigenvalue says whether the points determine it at all.  The robust fit
re-weights it iteratively: first L1, which finds its way out of a bad start, then Tukey's redescending kernel
with a scale from the weighted median of the residuals.  Everything is batched and runs on the device of its
input, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fast3r_ros.geometry.sim3 import Sim3

ArrayLike = NDArray[np.floating] | Tensor
ScaleRule = Literal["least squares", "symmetric", "one"]

TINY = torch.finfo(torch.float64).tiny

L1_STEPS = 5
TUKEY_STEPS = 7
POLISHING_STEPS = 2
COARSE_POINTS = 2048
MEDIAN_POINTS = 512
# Residuals with standard deviation s per axis have a median length of 1.538 s (chi distribution, 3 axes).
MEDIAN_OF_CHI3 = 1.5382
TUKEY_SIGMAS = 6.0
# Below this the second largest extent of the points is rounding, and the rotation about a line is free.
DEGENERATE_GAP = 1e-6


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

    inlier_share: weighted share of correspondences that agree, in [0, 1]. residual: robust standard
    deviation per axis, in target units. covariance: (7, 7) float64 of (translation, rotation vector, log
    scale) in the target frame; translation is the error of the place of the source's origin, and rotation
    vector and log scale act about that place, on the left. With a camera as the source these are the
    errors of its position and attitude. ok: False when the fit must not be used; reason says why (empty
    when ok).
    """

    target_from_source: Sim3
    inlier_share: float
    residual: float
    covariance: NDArray[np.float64]
    ok: bool
    reason: str


@dataclass(frozen=True)
class SimilarityBatch:
    """B similarities x_target = scale * rotation @ x_source + translation, as float64 tensors.

    scale: (B,).  rotation: (B, 3, 3).  translation: (B, 3).  gap: (B,) in [0, 1], how well the points
    determine the rotation; 0 when they lie on a line or in a point.
    """

    scale: Tensor
    rotation: Tensor
    translation: Tensor
    gap: Tensor

    def matrix(self) -> Tensor:
        """(B, 3, 4) matrices [scale * rotation | translation]."""
        return torch.cat([self.scale[:, None, None] * self.rotation, self.translation[:, :, None]], 2)


@dataclass(frozen=True)
class RobustBatch:
    """B robust fits: the fields of `SimilarityFit` with a leading batch dimension, as float64 tensors."""

    similarity: SimilarityBatch
    inlier_share: Tensor
    residual: Tensor
    covariance: Tensor
    ok: tuple[bool, ...]
    reasons: tuple[str, ...]

    def fit(self, index: int) -> SimilarityFit:
        """One fit of the batch, as numpy."""
        return SimilarityFit(
            _as_sim3(self.similarity, index),
            float(self.inlier_share[index]),
            float(self.residual[index]),
            self.covariance[index].cpu().numpy(),
            self.ok[index],
            self.reasons[index],
        )


def fit_similarity(
    source: ArrayLike, target: ArrayLike, weights: ArrayLike | None = None, with_scale: bool = True
) -> Sim3:
    """The weighted least-squares `target_from_source` of corresponding points (N, 3), weights (N,) >= 0.

    The scale is the one that minimises the distances in the target frame (Umeyama 1991).  Raises ValueError
    when fewer than three points have weight or they lie on a line.
    """
    source, target, weights = _as_batch(source, target, weights)
    fit = fit_similarities(source, target, weights, with_scale=with_scale)
    if int((weights > 0).sum()) < 3 or not float(fit.gap[0]) > DEGENERATE_GAP:
        raise ValueError("a similarity needs at least three points with weight that do not lie on a line")
    return _as_sim3(fit, 0)


def fit_similarity_robust(
    source: ArrayLike,
    target: ArrayLike,
    weights: ArrayLike | None = None,
    options: RobustOptions | None = None,
) -> SimilarityFit:
    """The robust weighted `target_from_source` of corresponding points (N, 3), weights (N,) >= 0.

    Numpy or torch.  Points that are not finite count as weight zero.  Never raises on bad data: see
    `SimilarityFit.ok`.
    """
    return fit_similarities_robust(*_as_batch(source, target, weights), options).fit(0)


def fit_similarities(
    source: Tensor, target: Tensor, weights: Tensor, *, with_scale: bool = True
) -> SimilarityBatch:
    """B closed-form weighted least-squares fits of (B, N, 3) points with weights (B, N)."""
    moments = _moments(_augment(source), _augment(target), weights.double())
    return _solve(moments, "least squares" if with_scale else "one")


def fit_similarities_robust(
    source: Tensor, target: Tensor, weights: Tensor, options: RobustOptions | None = None
) -> RobustBatch:
    """B robust weighted fits of (B, N, 3) points with weights (B, N) >= 0, together on the points' device."""
    options = options or RobustOptions()
    chosen = sample_indices(source.shape[1], options.max_points, source.device)
    source, target, weights = (values.index_select(1, chosen) for values in (source, target, weights))
    return fit_shuffled_similarities_robust(source, target, weights, options)


def fit_shuffled_similarities_robust(
    source: Tensor, target: Tensor, weights: Tensor, options: RobustOptions
) -> RobustBatch:
    """As `fit_similarities_robust`, of correspondences that are sampled already and in random order."""
    good = torch.isfinite(source.sum(2) + target.sum(2) + weights) & (weights > 0)
    source, target = (_augment(torch.where(good[..., None], points, 0.0)) for points in (source, target))
    weights = torch.where(good, weights, 0.0).double()
    coarse = slice(0, COARSE_POINTS)  # the points are in random order, so any beginning is a fair sample
    floor = _sigma_floor(target[:, :3], weights)[:, None]
    fit = _start(source[..., coarse], target[..., coarse], weights[:, coarse], floor, options)
    fit = _tukey_steps(
        source[..., coarse], target[..., coarse], weights[:, coarse], floor, fit, options, TUKEY_STEPS
    )
    if weights.shape[1] > COARSE_POINTS:
        fit = _tukey_steps(source, target, weights, floor, fit, options, POLISHING_STEPS)
    return _judge(fit, source, target, weights, floor, options)


def _start(
    source: Tensor, target: Tensor, weights: Tensor, floor: Tensor, options: RobustOptions
) -> SimilarityBatch:
    """The L1 fit, from least squares; it does not need a residual scale."""
    scale: ScaleRule = "least squares" if options.with_scale else "one"
    fit = _solve(_moments(source, target, weights), scale)
    for _ in range(L1_STEPS):
        robust = weights / _distance(fit, source, target).clamp_min(floor)
        fit = _solve(_moments(source, target, robust), scale)
    return fit


def _tukey_steps(
    source: Tensor,
    target: Tensor,
    weights: Tensor,
    floor: Tensor,
    fit: SimilarityBatch,
    options: RobustOptions,
    steps: int,
) -> SimilarityBatch:
    scale: ScaleRule = "symmetric" if options.with_scale else "one"
    for _ in range(steps):
        distance = _distance(fit, source, target)
        kernel = _tukey_argument(distance, weights, floor).square()
        fit = _solve(_moments(source, target, weights * kernel), scale)
    return fit


def _tukey_argument(distance: Tensor, weights: Tensor, floor: Tensor) -> Tensor:
    """1 - (distance / cut)^2, at least 0: Tukey's biweight is its square.  The cut follows the median."""
    cut = TUKEY_SIGMAS * torch.maximum(_median(distance, weights)[:, None] / MEDIAN_OF_CHI3, floor)
    return (1.0 - (distance / cut).square()).clamp_min(0.0)


def _distance(fit: SimilarityBatch, source: Tensor, target: Tensor) -> Tensor:
    """Residual lengths (B, N) of augmented points."""
    return _length(fit.matrix() @ source[:, :4] - target[:, :3])


def _length(vectors: Tensor) -> Tensor:
    """(B, 3, N) -> (B, N); much faster on the CPU than a norm over a middle axis."""
    return vectors.square().sum(1).sqrt()


def _augment(points: Tensor) -> Tensor:
    """(B, N, 3) -> (B, 5, N) float64 rows x, y, z, 1, x^2 + y^2 + z^2: one product then gives all moments."""
    rows = points.transpose(1, 2).double()
    return torch.cat([rows, torch.ones_like(rows[:, :1]), rows.square().sum(1, keepdim=True)], 1)


def _moments(source: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """(B, 5, 5) weighted sums of the products of augmented source and target coordinates."""
    return (source * weights[:, None]) @ target.transpose(1, 2)


def _solve(moments: Tensor, scale_rule: ScaleRule) -> SimilarityBatch:
    """The similarity from the moments (Horn 1987).

    "symmetric" takes the ratio of the two spreads.  The least-squares scale is biased towards zero when the
    source is noisy too, which would make a map shrink from window to window.
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


def _judge(
    fit: SimilarityBatch,
    source: Tensor,
    target: Tensor,
    weights: Tensor,
    floor: Tensor,
    options: RobustOptions,
) -> RobustBatch:
    moved = fit.matrix() @ source[:, :4]
    distance = _length(moved - target[:, :3])
    spread = _spread(target[:, :3], weights)
    agree = weights * (distance < options.inlier_distance * spread[:, None])
    inliers = agree.sum(1) / weights.sum(1).clamp_min(TINY)
    sigma = _median(distance, weights) / MEDIAN_OF_CHI3
    covariance = _covariance(moved - fit.translation[:, :, None], distance, weights, floor, options)
    counts = (weights > 0).sum(1).tolist()
    finite = (torch.isfinite(covariance).all((1, 2)) & torch.isfinite(fit.translation).all(1)).tolist()
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


def _covariance(
    lever: Tensor, distance: Tensor, weights: Tensor, floor: Tensor, options: RobustOptions
) -> Tensor:
    """(B, 7, 7) covariance of the M-estimate; `lever` (B, 3, N) is the moved point minus the translation.

    A moved point changes with (translation, rotation vector, log scale) by [I, -[lever]x, lever].  The normal
    equations of that are scaled by the M-estimator's variance, sum(psi^2) / sum(psi')^2 (Huber 1981), which
    also holds when the weights tell relative precision only.
    """
    argument = _tukey_argument(distance, weights, floor)
    robust = weights * argument.square()
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
    slope = (weights * (argument.square() - 4 / 3 * (1 - argument) * argument)).sum(1)
    variance = (robust * distance).square().sum(1) / 3.0 * total / slope.square().clamp_min(TINY)
    variance = variance * options.points_per_observation
    parameters = 7 if options.with_scale else 6
    covariance = torch.zeros_like(information)
    solvable = information[:, :parameters, :parameters]
    covariance[:, :parameters, :parameters] = torch.linalg.pinv(solvable, hermitian=True, rtol=1e-15)
    return covariance * variance[:, None, None]


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


def sample_indices(available: int, count: int, device: torch.device) -> Tensor:
    """At most `count` of the indices below `available`, in random order and always the same."""
    return torch.randperm(available, generator=torch.Generator().manual_seed(0))[:count].to(device)


def _median(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted median (B,) over the first points of (B, N); the points are in random order."""
    values, order = values[:, :MEDIAN_POINTS].sort(1)
    cumulative = weights[:, :MEDIAN_POINTS].gather(1, order).cumsum(1)
    middle = torch.searchsorted(cumulative, 0.5 * cumulative[:, -1:])
    return values.gather(1, middle.clamp_max(values.shape[1] - 1))[:, 0]


def _spread(points: Tensor, weights: Tensor) -> Tensor:
    """Weighted median distance (B,) of (B, 3, N) points from their coordinate-wise weighted median."""
    centre = torch.stack([_median(points[:, axis], weights) for axis in range(3)], 1)
    return _median(_length(points - centre[:, :, None]), weights)


def _sigma_floor(target: Tensor, weights: Tensor) -> Tensor:
    """A residual scale (B,) that is rounding for certain, so that exact data does not divide by zero."""
    return (1e-9 * _spread(target, weights)).clamp_min(1e-30)


def _cross_matrix(vectors: Tensor) -> Tensor:
    """(B, 3) -> (B, 3, 3) with cross_matrix(v) @ u = v x u."""
    x, y, z = vectors.unbind(1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).view(-1, 3, 3)


def _as_batch(
    source: ArrayLike, target: ArrayLike, weights: ArrayLike | None
) -> tuple[Tensor, Tensor, Tensor]:
    source, target = torch.as_tensor(source), torch.as_tensor(target)
    if source.ndim != 2 or source.shape[1] != 3 or source.shape != target.shape:
        raise ValueError(
            f"need two (N, 3) arrays of equal shape, got {tuple(source.shape)} {tuple(target.shape)}"
        )
    weights = (
        source.new_ones(len(source)) if weights is None else torch.as_tensor(weights, device=source.device)
    )
    return source[None], target.to(source.device)[None], weights[None]


def _as_sim3(batch: SimilarityBatch, index: int) -> Sim3:
    rotation, translation = batch.rotation[index].cpu().numpy(), batch.translation[index].cpu().numpy()
    return Sim3(float(batch.scale[index]), rotation, translation)

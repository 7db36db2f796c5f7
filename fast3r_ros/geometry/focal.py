"""The focal length from a pointmap, robustly (DUSt3R, appendix; Weiszfeld's algorithm for the L1 estimate).

A pixel p (relative to the principal point) sees the point (x, y, z) of its own camera frame: p = f (x, y) /
z.  The official estimate drops the least confident tenth and minimises sum |p - f (x, y) / z|.  It collapses
with more outliers than that, because (x, y) / z is unbounded.  Here a weighted median of the per-pixel
slopes, which a quarter of outliers cannot move far, selects the pixels for the L1 estimate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fast3r_ros.geometry.camera_pose import Maps
from fast3r_ros.geometry.robust_similarity import ascending, sample_indices

MAX_PIXELS = 12288
WEISZFELD_STEPS = 15
# Pixels whose error exceeds this many median errors are outliers (6 sigma for Gaussian errors in the plane).
OUTLIER_MEDIANS = 5.0
MIN_PIXELS = 64
TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class FocalEstimate:
    """Focal lengths of V views, the same in x and y.

    focal: (V,) float64 in pixels, NaN where not ok.  residual: (V,) median reprojection error of the
    inliers in pixels.  inlier_share: (V,) share of the confident pixels that agree.  ok: (V,) bool.
    reasons: of the failure, per view (empty when ok).
    """

    focal: NDArray[np.float64]
    residual: NDArray[np.float64]
    inlier_share: NDArray[np.float64]
    ok: NDArray[np.bool_]
    reasons: tuple[str, ...]


def estimate_focal(
    points_camera: Maps,
    confidence: Maps | None = None,
    *,
    shared: bool = False,
    confidence_percentile: float = 10.0,
    principal_point: tuple[float, float] | None = None,
    pixel_centre: float = 0.5,
    min_inlier_share: float = 0.5,
    max_pixels: int = MAX_PIXELS,
) -> FocalEstimate:
    """Focal length of each view, or one for all of them.

    points_camera: V pointmaps (H, W, 3) of one size, each in its own camera's frame (x right, y down, z
    forward), of any scale.  confidence: V times (H, W), or None.  shared: one focal length from the pixels of
    all views, repeated in the result.  confidence_percentile: pixels below this percentile of their view's
    confidence are ignored.  principal_point: (x, y) in pixels, the same for all views; (W/2, H/2) by default.
    pixel_centre: the coordinate of the first pixel's centre: 0.5 as everywhere in this package, 0 as in the
    official code.  max_pixels: maximum number of pixels used per view.
    """
    points = [torch.as_tensor(view) for view in points_camera]
    views, (height, width) = len(points), points[0].shape[:2]
    centre = principal_point or (width / 2, height / 2)
    pixels, rays, usable = _pixels_and_rays(
        points, confidence, confidence_percentile, centre, pixel_centre, max_pixels
    )
    if shared:
        pixels, rays = pixels.transpose(0, 1).reshape(1, 2, -1), rays.transpose(0, 1).reshape(1, 2, -1)
        usable = usable.reshape(1, -1)
    focal = _slope_median(pixels, rays, usable)
    inlier = _inliers(pixels, rays, usable, focal)
    focal = _weiszfeld(pixels, rays, inlier, focal)
    inlier = _inliers(pixels, rays, usable, focal)
    focal = _weiszfeld(pixels, rays, inlier, focal)
    residual = _masked_median(_error(pixels, rays, focal), inlier)
    share = inlier.sum(1) / usable.sum(1).clamp_min(1)
    reasons = [
        _reason(*values, min_inlier_share)
        for values in zip(usable.sum(1).tolist(), share.tolist(), focal.tolist(), strict=True)
    ]
    ok = np.array([not reason for reason in reasons])
    numbers = [value.cpu().numpy() for value in (focal, residual, share)]
    repeat = views if shared else 1
    focal_values, residuals, shares, ok = (np.repeat(value, repeat) for value in (*numbers, ok))
    return FocalEstimate(
        np.where(ok, focal_values, np.nan),
        residuals,
        shares,
        ok,
        tuple(r for r in reasons for _ in range(repeat)),
    )


def first_view_focal(
    points_global: Sequence[NDArray[np.floating]] | NDArray[np.floating],
    confidence: Sequence[NDArray[np.floating]] | NDArray[np.floating],
) -> float | None:
    """The focal length in pixels from view 0's global points; None when the estimate fails.

    Only view 0's global points are in its own camera frame.  The official release uses its focal length for
    all views.
    """
    focal = estimate_focal(points_global[0][None], confidence[0][None], min_inlier_share=0.0).focal[0]
    return float(focal) if np.isfinite(focal) else None


def _reason(count: int, share: float, focal: float, min_inlier_share: float) -> str:
    if count < MIN_PIXELS:
        return f"only {count} confident pixels with a point in front of the camera, {MIN_PIXELS} are needed"
    if not focal > 0.0:
        return f"the points do not project like a camera's (focal length {focal:.3g})"
    if share < min_inlier_share:
        return f"only {share:.0%} of the pixels agree on a focal length, {min_inlier_share:.0%} are needed"
    return ""


def _pixels_and_rays(
    points: Sequence[Tensor],
    confidence: Maps | None,
    percentile: float,
    principal_point: tuple[float, float],
    pixel_centre: float,
    max_pixels: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sampled pixels relative to the principal point, their (x, y) / z, both (V, 2, N), and which to use."""
    views, (height, width), device = len(points), points[0].shape[:2], points[0].device
    chosen = sample_indices(height * width, max_pixels, device)

    def sampled(maps: Iterable[Tensor]) -> Tensor:
        return torch.stack([view.flatten(0, 1).index_select(0, chosen) for view in maps])

    columns, rows = chosen % width, torch.div(chosen, width, rounding_mode="floor")
    centre = torch.tensor(principal_point, dtype=torch.float64, device=device)
    pixels = torch.stack([columns, rows]) + pixel_centre - centre[:, None]
    x, y, z = sampled(points).double().unbind(2)
    rays = torch.stack([x / z, y / z], 1)
    usable = (z > 0) & torch.isfinite(rays.sum(1))
    if confidence is not None:
        values = sampled(torch.as_tensor(view, device=device) for view in confidence)
        threshold = torch.nanquantile(values.double(), percentile / 100, dim=1, keepdim=True)
        usable &= values >= threshold
    return pixels.expand(views, 2, -1), torch.where(usable[:, None], rays, 0.0), usable


def _slope_median(pixels: Tensor, rays: Tensor, usable: Tensor) -> Tensor:
    """Median (B,) of per-pixel focal lengths <p, ray> / <ray, ray>, weighted by distance from the centre.

    The weight reduces the influence of pixels near the principal point, which carry no information.  It
    depends only on the pixel, so that no wrong point can have a large weight.
    """
    slopes = (pixels * rays).sum(1) / rays.square().sum(1).clamp_min(TINY)
    weights = torch.where(usable, pixels.square().sum(1).sqrt(), 0.0)
    order = ascending(slopes)
    cumulative = weights.gather(1, order).cumsum(1)
    middle = torch.searchsorted(cumulative, 0.5 * cumulative[:, -1:]).clamp_max(slopes.shape[1] - 1)
    return slopes.gather(1, order.gather(1, middle))[:, 0]


def _error(pixels: Tensor, rays: Tensor, focal: Tensor) -> Tensor:
    """Reprojection errors (B, N) in pixels."""
    return (pixels - focal[:, None, None] * rays).square().sum(1).sqrt()


def _inliers(pixels: Tensor, rays: Tensor, usable: Tensor, focal: Tensor) -> Tensor:
    error = _error(pixels, rays, focal)
    cut = (OUTLIER_MEDIANS * _masked_median(error, usable)).clamp_min(1e-6)
    return usable & (error <= cut[:, None])


def _masked_median(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, torch.nan).nanmedian(1).values


def _weiszfeld(pixels: Tensor, rays: Tensor, mask: Tensor, focal: Tensor) -> Tensor:
    """Minimise the sum of reprojection errors over the masked pixels, from a start (B,)."""
    pixels, rays = (torch.where(mask[:, None], each, 0.0) for each in (pixels, rays))
    along, square, start = (pixels * rays).sum(1), rays.square().sum(1), pixels.square().sum(1)
    terms = torch.stack([along, square], 1)
    for _ in range(WEISZFELD_STEPS):
        # the square of `_error`, multiplied out: rounding at the tiny ones does not matter for a weight
        error = (square * focal[:, None] - 2 * along) * focal[:, None] + start
        weights = error.clamp_min(1e-16).rsqrt()
        along_sum, square_sum = (terms @ weights[:, :, None])[:, :, 0].unbind(1)
        focal = along_sum / square_sum.clamp_min(TINY)
    return focal

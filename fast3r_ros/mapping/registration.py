"""Fitting a window to the map: the overlap's pixels correspond one to one, so the fit is closed-form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fast3r_ros.geometry.camera_pose import CameraPoses, pointmap_weights, poses_from_pointmaps
from fast3r_ros.geometry.robust_similarity import RobustOptions, SimilarityFit, fit_similarity_robust
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.config import RegistrationConfig
from fast3r_ros.mapping.data import Float32, Float64, Reconstruction

# Errors of a network are alike over patches of about this share of a view's pixels; the covariance grows by
# it.
_CORRELATED_SHARE = 1 / 64
_NO_OVERLAP = "no view of the window that the map knows could be placed"
_MOST_CONFIDENT = 50.0  # confidences above count the same, so that no single view decides


@dataclass(frozen=True)
class Overlap:
    """One view that the window shares with the map, on the keyframe's pixel grid.

    view: its number in the window.  points_map: (N, 3) float32 in `map`, NaN where the keyframe has none.
    confidence: (N,).  depth: (N,) distance of the points from the keyframe's camera plane, in map units.
    pixels: (N,) flat pixel numbers in the view.
    """

    view: int
    points_map: Float32
    confidence: Float32
    depth: Float32
    pixels: NDArray[np.int32]


@dataclass(frozen=True)
class Registration:
    """`map_from_window` and how far to trust it; reason is empty when it passed the gates.

    residual: robust standard deviation per axis in map units.  covariance: (7, 7), see `SimilarityFit`.
    """

    map_from_window: Sim3
    inlier_share: float
    residual: float
    covariance: Float64
    reason: str


def place_views(
    reconstruction: Reconstruction, intrinsics: Float64 | None, config: RegistrationConfig
) -> CameraPoses:
    """Camera poses in the window: each view's local points fitted to its global points.

    intrinsics: (V, 3, 3) at network size if every view has them.  Views below `min_view_share` are not ok.
    """
    confidences = reconstruction.confidence_local, reconstruction.confidence_global
    pixels = max(view.numel() for view in confidences[0])
    options = RobustOptions(
        max_points=config.pixels,
        inlier_distance=config.inlier_distance,
        min_inlier_share=config.min_view_share,
        points_per_observation=_per_observation(min(pixels, config.pixels)),
    )
    return poses_from_pointmaps(
        reconstruction.points_local,
        reconstruction.points_global,
        lambda sample: pointmap_weights(*(sample(maps).clamp_max(_MOST_CONFIDENT) for maps in confidences)),
        intrinsics,
        options,
    )


def register(
    overlaps: Sequence[Overlap],
    points_window: Sequence[Tensor],
    confidence: Sequence[Tensor],
    config: RegistrationConfig,
    min_inlier_share: float | None = None,
) -> Registration:
    """The robust similarity from the window to the map over all shared pixels, and whether it is believed.

    points_window: per view (h, w, 3) in `window`.  confidence: per view (h, w).  Computed on their device.
    """
    least = config.min_inlier_share if min_inlier_share is None else min_inlier_share
    if not overlaps:
        return Registration(Sim3.identity(), 0.0, np.inf, np.full((7, 7), np.inf), _NO_OVERLAP)
    per_view = max(1, config.pixels // 2)
    parts = [_thin(overlap, per_view) for overlap in overlaps]
    device = points_window[0].device
    known = [np.c_[part.points_map, part.depth, part.confidence] for part in parts]
    target, depth, target_confidence = (
        torch.from_numpy(np.concatenate(known)).to(device).split([3, 1, 1], dim=1)
    )
    pixels = torch.from_numpy(np.concatenate([part.pixels for part in parts])).to(device)
    pixels_of = pixels.split([len(part.pixels) for part in parts])
    source, source_confidence = (
        torch.cat([maps[part.view].flatten(0, 1)[n] for part, n in zip(parts, pixels_of, strict=True)])
        for maps in (points_window, confidence)
    )
    weights = pointmap_weights(
        source_confidence.clamp_max(_MOST_CONFIDENT), target_confidence[:, 0].clamp_max(_MOST_CONFIDENT)
    )
    depth = depth[:, 0]
    # errors grow with the distance from the camera: nearby points say more about the pose
    weights = torch.where(torch.isfinite(target).all(dim=-1), weights / depth.clamp_min(1e-6).square(), 0.0)
    options = RobustOptions(
        max_points=12288,
        min_inlier_share=0.0,
        inlier_distance=config.inlier_distance,
        points_per_observation=_per_observation(len(source) // len(parts)),
    )
    fit = fit_similarity_robust(source, target, weights, options)
    return _judge(fit, source, target, depth, weights > 0, config.inlier_distance, least)


def _judge(
    fit: SimilarityFit,
    source: Tensor,
    target: Tensor,
    depth: Tensor,
    used: Tensor,
    inlier_distance: float,
    least: float,
) -> Registration:
    """Count the pixels whose points agree relative to their distance from the camera."""
    place = fit.target_from_source
    matrix = torch.from_numpy(np.vstack([place.scale * place.rotation.T, place.translation])).to(source)
    error = (source @ matrix[:3] + matrix[3] - target).square().sum(dim=-1).sqrt()
    agree = used & (error < inlier_distance * depth)
    agreeing, all_used = torch.stack([agree, used]).sum(1).tolist()
    share = agreeing / max(all_used, 1)
    reason = fit.reason
    if not reason and share < least:
        reason = f"only {share:.0%} of the shared pixels agree with the map, {least:.0%} are needed"
    return Registration(fit.target_from_source, share, fit.residual, fit.covariance, reason)


def _thin(overlap: Overlap, most: int) -> Overlap:
    """An even sample of at most `most` pixels with a point."""
    present = np.flatnonzero(np.isfinite(overlap.depth) & (overlap.confidence > 0))
    if len(present) > most:
        present = present[np.linspace(0, len(present) - 1, most).astype(np.int64)]
    return Overlap(
        overlap.view,
        overlap.points_map[present],
        overlap.confidence[present],
        overlap.depth[present],
        overlap.pixels[present],
    )


def _per_observation(points_per_view: int) -> float:
    return max(1.0, points_per_view * _CORRELATED_SHARE)

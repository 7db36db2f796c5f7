"""Registration of a window to the map: the overlap's pixels correspond one to one, so the fit is closed-form.

The scale is the median ratio of depths, each in its view's own camera.  Errors of the poses, in the window or
in the map, cannot bias it, nor can averaging of several windows in the map.  Rotation and translation follow
from the points at that scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fast3r_ros.geometry.camera_pose import CameraPoses, known_poses, pointmap_weights, poses_from_pointmaps
from fast3r_ros.geometry.robust_similarity import (
    RobustOptions,
    SimilarityFit,
    ascending,
    fit_similarity_robust,
)
from fast3r_ros.geometry.rotation import vector_from_matrix
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.calibration import WindowCameras
from fast3r_ros.mapping.config import RegistrationConfig
from fast3r_ros.mapping.data import Float32, Float64, Reconstruction
from fast3r_ros.mapping.view_errors import ViewErrors, baselines, squares

# A network's errors are correlated over patches of about this share of a view's pixels; the covariance grows
# by it.
_CORRELATED_SHARE = 1 / 64
_NO_OVERLAP = "none of the window's views known to the map could be placed"
_MOST_CONFIDENT = 50.0  # larger confidences are clipped, so that no single view dominates
_TUKEY_CUT = 4.685
_PRIOR_WEIGHT = 4.0  # of the usual errors, in views


@dataclass(frozen=True)
class Overlap:
    """One view shared by the window and the map, on the keyframe's pixel grid.

    view: its number in the window.  map_from_camera: (4, 4) its pose in the map.  points_map: (N, 3)
    float32 in `map`, NaN without a point.  confidence: (N,).  depth: (N,) distance of the points
    from the keyframe's camera plane, in map units.  pixels: (N,) flat pixel numbers in the view.
    """

    view: int
    map_from_camera: Float64
    points_map: Float32
    confidence: Float32
    depth: Float32
    pixels: NDArray[np.int32]


@dataclass(frozen=True)
class Registration:
    """`map_from_window` and its quality; reason is empty if it was accepted.

    residual: robust standard deviation per axis in map units.  covariance: (7, 7), see `SimilarityFit`,
    including the scatter of the views.  views: numbers of the fitted views.  errors: (N, 7) their deviations
    from the fit, in their cameras: (translation / depth, rotation vector, log scale).  weights: (N,), 0 for
    views that contradict the others.  baselines: (N,), see `baselines`.
    """

    map_from_window: Sim3
    inlier_share: float
    residual: float
    covariance: Float64
    reason: str
    views: tuple[int, ...] = ()
    errors: Float64 = field(default_factory=lambda: np.zeros((0, 7)))
    weights: Float64 = field(default_factory=lambda: np.zeros(0))
    baselines: Float64 = field(default_factory=lambda: np.zeros(0))


def place_views(
    reconstruction: Reconstruction, cameras: WindowCameras, config: RegistrationConfig
) -> CameraPoses:
    """Camera poses in the window: the network's, or from fitting each view's local points to its global ones.

    Both use the network's own rays.  Views below `min_view_share` are not ok.
    """
    if reconstruction.window_from_camera is not None:
        return known_poses(
            reconstruction.window_from_camera,
            reconstruction.points_local,
            reconstruction.points_global,
            RobustOptions(
                max_points=config.pixels,
                inlier_distance=config.inlier_distance,
                min_inlier_share=config.min_view_share,
            ),
        )
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
        cameras.network_intrinsics,
        options,
    )


def register(
    overlaps: Sequence[Overlap],
    reconstruction: Reconstruction,
    poses: CameraPoses,
    cameras: WindowCameras,
    config: RegistrationConfig,
    usual: ViewErrors | None = None,
    min_inlier_share: float | None = None,
) -> Registration:
    """The similarity from the window to the map over all shared pixels, and whether it is accepted.

    poses, cameras: of the window's views.  usual: typical errors of views, for fits to few of them.  Computed
    on the device of the reconstruction.
    """
    least = config.min_inlier_share if min_inlier_share is None else min_inlier_share
    usual = usual or ViewErrors()
    thinned = [_thin(overlap, max(1, config.pixels // 2)) for overlap in overlaps]
    parts = [part for part in thinned if len(part.pixels)]  # a keyframe may have no point
    if not parts:
        return Registration(Sim3.identity(), 0.0, np.inf, np.full((7, 7), np.inf), _NO_OVERLAP)
    shared = _shared(parts, reconstruction, poses, cameras)
    ratios = shared.log_ratios()
    options = RobustOptions(
        max_points=12288,
        with_scale=False,
        min_inlier_share=0.0,
        inlier_distance=config.inlier_distance,
        points_per_observation=_per_observation(len(shared.target) // len(parts)),
    )
    poses_known = _Poses.of(parts, poses)
    log_scale, weights = _consensus(poses_known, ratios, usual)
    fit = _rigid_fit(shared, float(np.exp(log_scale)), weights, options)
    place = fit.target_from_source
    errors = poses_known.errors(place.rotation, place.translation, place.scale, ratios)
    result = _judge(fit, shared, config.inlier_distance, least)
    covariance = fit.covariance + _scatter(parts, result.map_from_window, errors, weights, usual)
    return replace(
        result,
        covariance=covariance,
        views=tuple(part.view for part in parts),
        errors=errors,
        weights=weights,
        baselines=poses_known.baselines(result.map_from_window.scale),
    )


@dataclass(frozen=True)
class _Shared:
    """The pixels shared by window and map, view by view.

    source: (N, 3) in `window`, on the cameras' rays.  source_depth, depth: (N,) in the view's camera, by the
    window and by the map.  target: (N, 3) in `map`.  weights: (N,).  counts: pixels of each view.
    """

    source: Tensor
    source_depth: Tensor
    target: Tensor
    depth: Tensor
    weights: Tensor
    counts: tuple[int, ...]

    def log_ratios(self) -> Float64:
        """Median log ratio of the map's to the window's depth of each view; 0 for a view without any."""
        logs = torch.where(self.source_depth > 0, (self.depth / self.source_depth).log(), torch.nan)
        rows = pad_sequence(list(logs.split(self.counts)), batch_first=True, padding_value=torch.nan)
        return np.nan_to_num(_middle(rows).double().cpu().numpy())


def _middle(rows: Tensor) -> Tensor:
    """Median (V,) of (V, N) without the NaN: the mean of the two middle values for an even number."""
    rows = rows.nan_to_num(torch.inf)
    order = ascending(rows)
    count = torch.isfinite(rows).sum(1, keepdim=True)
    two = torch.cat(
        [(count - 1).clamp_min(0).div(2, rounding_mode="floor"), count.div(2, rounding_mode="floor")], 1
    )
    return rows.gather(1, order.gather(1, two.clamp_max(rows.shape[1] - 1))).mean(1)


def _shared(
    parts: Sequence[Overlap], reconstruction: Reconstruction, poses: CameraPoses, cameras: WindowCameras
) -> _Shared:
    device = reconstruction.points_global[0].device
    counts = tuple(len(part.pixels) for part in parts)
    known = [np.c_[part.points_map, part.depth, part.confidence] for part in parts]
    target, depth, trust = torch.from_numpy(np.concatenate(known)).to(device).split([3, 1, 1], dim=1)
    pixels = torch.from_numpy(np.concatenate([part.pixels for part in parts])).to(device)
    found, confidence = (
        torch.cat(
            [
                maps[part.view].flatten(0, 1).index_select(0, n)
                for part, n in zip(parts, pixels.split(counts), strict=True)
            ]
        )
        for maps in (reconstruction.points_global, reconstruction.confidence_global)
    )
    widths = [reconstruction.points_global[part.view].shape[1] for part in parts]
    table = _camera_table(parts, poses, cameras, widths).repeat_interleave(torch.tensor(counts), 0).to(device)
    pose, translation, lateral, given, camera = table.split([9, 3, 1, 1, 5], dim=1)
    rotation = pose.view(-1, 3, 3)
    local = torch.einsum("nij,ni->nj", rotation, found - translation)
    source_depth = local[:, 2]
    focal_x, focal_y, centre_x, centre_y, width = camera.unbind(1)
    rays = torch.stack(
        [
            (pixels % width + 0.5 - centre_x) / focal_x,
            (torch.div(pixels, width, rounding_mode="floor") + 0.5 - centre_y) / focal_y,
        ],
        1,
    )
    sides = torch.where(given > 0, rays * source_depth[:, None], lateral * local[:, :2])
    on_rays = torch.cat([sides, source_depth[:, None]], 1)
    source = torch.einsum("nij,nj->ni", rotation, on_rays) + translation
    weights = pointmap_weights(confidence.clamp_max(_MOST_CONFIDENT), trust[:, 0].clamp_max(_MOST_CONFIDENT))
    depth = depth[:, 0]
    # errors grow with the distance from the camera, so nearby points determine the pose better
    present = torch.isfinite(target).all(dim=-1)
    weights = torch.where(present, weights / depth.clamp_min(1e-6).square(), 0.0)
    return _Shared(source, source_depth, target, depth, weights, counts)


def _camera_table(
    parts: Sequence[Overlap], poses: CameraPoses, cameras: WindowCameras, widths: Sequence[int]
) -> Tensor:
    """(P, 19) float32 per view: rotation, translation, lateral factor, calibrated, fx, fy, cx, cy, width."""
    rows = []
    for part, width in zip(parts, widths, strict=True):
        pose, matrix = poses.window_from_camera[part.view], cameras.intrinsics[part.view]
        own = (cameras.lateral[part.view], float(cameras.given[part.view]))
        camera = (matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2], float(width))
        rows.append([*pose[:3, :3].ravel(), *pose[:3, 3], *own, *camera])
    return torch.tensor(rows, dtype=torch.float32)


def _rigid_fit(shared: _Shared, scale: float, weights: Float64, options: RobustOptions) -> SimilarityFit:
    """The fit at a given scale, with weights of the views; its similarity includes the scale."""
    each = torch.from_numpy(np.repeat(weights, shared.counts)).to(shared.weights)
    fit = fit_similarity_robust(scale * shared.source, shared.target, each * shared.weights, options)
    rigid = fit.target_from_source
    return replace(fit, target_from_source=Sim3(scale, rigid.rotation, rigid.translation))


@dataclass(frozen=True)
class _Poses:
    """Cameras of N views in the window and in the map.

    (N, 3, 3) rotations, (N, 3) positions, and (N,) scene depths in map units.
    """

    rotation: Float64
    position: Float64
    known_rotation: Float64
    known_position: Float64
    depth: Float64

    @staticmethod
    def of(parts: Sequence[Overlap], poses: CameraPoses) -> _Poses:
        """The cameras of the overlaps' views."""
        window = poses.window_from_camera[[part.view for part in parts]]
        known = np.stack([part.map_from_camera for part in parts])
        depth = [max(float(np.median(part.depth)), 1e-9) if len(part.depth) else 1.0 for part in parts]
        return _Poses(window[:, :3, :3], window[:, :3, 3], known[:, :3, :3], known[:, :3, 3], np.array(depth))

    def errors(self, rotation: Float64, translation: Float64, scale: float, log_ratios: Float64) -> Float64:
        """(..., N, 7) of windows that rotations (..., 3, 3) and translations (..., 3) bring to the map, see
        `Registration.errors`.
        """
        back = np.swapaxes(self.known_rotation, 1, 2)
        moved = scale * self.position @ np.swapaxes(rotation, -1, -2) + translation[..., None, :]
        errors = np.empty((*moved.shape[:-1], 7))
        errors[..., :3] = (back @ (moved - self.known_position)[..., None])[..., 0] / self.depth[:, None]
        errors[..., 3:6] = vector_from_matrix(back @ rotation[..., None, :, :] @ self.rotation)
        errors[..., 6] = np.log(scale) - log_ratios
        return errors

    def baselines(self, scale: float) -> Float64:
        """(N,), see `baselines`; scale: map units per unit of the window."""
        return baselines(self.rotation, self.position, self.depth / scale)

    def placed(self, scale: float) -> tuple[Float64, Float64]:
        """Rotations (N, 3, 3) and translations (N, 3) of the window at a scale that bring one view each to
        where the map has it.
        """
        rotation = self.known_rotation @ np.swapaxes(self.rotation, 1, 2)
        return rotation, self.known_position - scale * (rotation @ self.position[..., None])[..., 0]


def _consensus(poses: _Poses, log_ratios: Float64, usual: ViewErrors) -> tuple[float, Float64]:
    """The log scale of most views, and the weights (N,) of the views.

    Each view alone determines a pose of the window in the map; the one that agrees with most others decides
    which views are wrong.  A few views cannot determine their usual spread, so `usual` does.
    """
    weights = _agreement(np.abs(log_ratios - np.median(log_ratios))[:, None], usual.sigma()[2:])
    scale, sigma = float(np.exp(_mean(log_ratios, weights))), usual.sigma()
    # (hypotheses, views, 3)
    away = np.sqrt(squares(poses.errors(*poses.placed(scale), scale, log_ratios)))
    cost = np.minimum(np.square(away / (_TUKEY_CUT * np.sqrt(2.0) * sigma)).sum(2), 1.0).sum(1)
    weights = weights * _agreement(away[int(cost.argmin())], np.sqrt(2.0) * sigma)
    return _mean(log_ratios, weights), weights


def _agreement(away: Float64, usual: Sequence[float] | Float64) -> Float64:
    """(N,) Tukey weights of views with squared deviations (N, K), given the usual ones (K,).

    The spread is that of the views, but at least the usual one.
    """
    spread = np.maximum(1.4826 * np.median(away, axis=0), usual)
    square = np.square(away / (_TUKEY_CUT * spread)).mean(axis=1)
    return np.square(np.clip(1.0 - square, 0.0, None))


def _mean(values: Float64, weights: Float64) -> float:
    return float((weights * values).sum() / weights.sum())


def _scatter(
    parts: Sequence[Overlap], place: Sim3, errors: Float64, weights: Float64, usual: ViewErrors
) -> Float64:
    """(7, 7) covariance of the mean of these views, from their spread; `usual` counts as further views."""
    spread = (weights[:, None] * squares(errors)).sum(axis=0) + _PRIOR_WEIGHT * usual.variance()
    count = weights.sum() ** 2 / np.square(weights).sum()
    rotation, translation, scale = spread / (weights.sum() + _PRIOR_WEIGHT) / count
    depth = float(np.mean([np.median(part.depth) if len(part.depth) else 1.0 for part in parts]))
    centre = np.mean([part.map_from_camera[:3, 3] for part in parts], axis=0)
    x, y, z = lever = place.translation - centre
    motion = np.eye(7)
    motion[:3, 3:6] = [[0.0, z, -y], [-z, 0.0, x], [y, -x, 0.0]]
    motion[:3, 6] = lever
    at_centre = np.diag([*[translation * depth**2] * 3, *[rotation] * 3, scale])
    return np.asarray(motion @ at_centre @ motion.T)


def _judge(fit: SimilarityFit, shared: _Shared, inlier_distance: float, least: float) -> Registration:
    """Count the pixels whose points agree relative to their distance from the camera."""
    place, used = fit.target_from_source, shared.weights > 0
    matrix = torch.from_numpy(np.vstack([place.scale * place.rotation.T, place.translation])).to(
        shared.source
    )
    error = (shared.source @ matrix[:3] + matrix[3] - shared.target).square().sum(dim=-1).sqrt()
    agree = used & (error < inlier_distance * shared.depth)
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
        overlap.map_from_camera,
        overlap.points_map[present],
        overlap.confidence[present],
        overlap.depth[present],
        overlap.pixels[present],
    )


def _per_observation(points_per_view: int) -> float:
    return max(1.0, points_per_view * _CORRELATED_SHARE)

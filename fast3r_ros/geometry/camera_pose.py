"""Camera poses from a network's result for a window.

`poses_from_pointmaps` fits each view's local points (its own camera frame) to its global points (the `window`
frame), in closed form, for all views at once and without a focal length.  `poses_by_pnp` is the official
method, RANSAC PnP on pixels and global points, for comparison and for networks without a local head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fast3r_ros.geometry.intrinsics import centred_intrinsics
from fast3r_ros.geometry.rigid import inverse, rigid_matrix
from fast3r_ros.geometry.robust_similarity import RobustOptions, fit_similarities_robust, sample_indices
from fast3r_ros.geometry.rotation import matrix_from_vector

Float64 = NDArray[np.float64]
Maps = Sequence[NDArray[np.floating]] | Sequence[Tensor] | NDArray[np.floating] | Tensor
Sample = Callable[[Maps], Tensor]

REPROJECTION_ERROR = 5.0
FOCAL_CANDIDATES = 24
SEARCH_POINTS = 1500
REFINED_POINTS = 50000
SQPNP_SPREAD = 10.0
LARGEST_CONFIDENCE = 1e9  # so that its square fits float32


@dataclass(frozen=True)
class CameraPoses:
    """Poses of V views in `window`, the frame of the global points.

    window_from_camera: (V, 4, 4) rigid, NaN where not ok.  scale: (V,) window units per unit of the view's
    local points (1 from PnP).  inlier_share: (V,).  covariance: (V, 6, 6) of (camera position, rotation
    vector) in the window frame; NaN from PnP.  focal: (V,) in pixels as used by
    PnP, NaN otherwise.  ok: (V,) bool.  reasons: of the failure, per view (empty when ok).  All float64.
    """

    window_from_camera: Float64
    scale: Float64
    inlier_share: Float64
    covariance: Float64
    focal: Float64
    ok: NDArray[np.bool_]
    reasons: tuple[str, ...]


def pointmap_weights(confidence_local: Tensor, confidence_global: Tensor) -> Tensor:
    """Weights for a fit between two pointmaps from their confidences (of any equal shape, at least 1).

    The training loss makes the expected error proportional to 1 / confidence; the variances of both ends add.
    """
    local, other = (
        confidence.clamp_max(LARGEST_CONFIDENCE).square().reciprocal()
        for confidence in (confidence_local, confidence_global)
    )
    return 1.0 / (local + other)


def poses_from_pointmaps(
    points_local: Maps,
    points_global: Maps,
    weights: Maps | Callable[[Sample], Tensor],
    intrinsics: Float64 | None = None,
    options: RobustOptions | None = None,
) -> CameraPoses:
    """Robust weighted similarity of each view's local points to its global points.

    points_local, points_global: per view (H, W, 3), of any size.  weights: per view (H, W), at least 0, see
    `pointmap_weights`; or a function that returns the weights (V, N) of the sampled pixels, given a function
    that samples maps (H, W).  intrinsics: (V, 3, 3) of the camera on whose rays the local points should lie
    (pixel centres at integer + 0.5), NaN for a view where they are unknown.  Where they are known, only the
    depth of the local points is used, along the exact ray of the pixel.  The points stay on the device of
    `points_local`.
    """
    options = options or RobustOptions()
    local = [torch.as_tensor(points) for points in points_local]
    views, device = len(local), local[0].device
    pixels = [view.shape[0] * view.shape[1] for view in local]
    samples = {count: sample_indices(count, options.max_points, device) for count in set(pixels)}
    chosen = [samples[count] for count in pixels]

    def sample(maps: Maps) -> Tensor:
        return _sampled([torch.as_tensor(view, device=device) for view in maps], chosen)

    source, target = sample(local), sample(points_global)
    sampled = weights(sample) if callable(weights) else sample(weights)
    if intrinsics is not None:
        on_rays = _rays(intrinsics, chosen, [view.shape[1] for view in local]) * source[..., 2:]
        known = torch.as_tensor(np.isfinite(intrinsics).all((1, 2)), device=device)
        source = torch.where(known[:, None, None], on_rays, source)
    batch = fit_similarities_robust(source, target, sampled, options)
    ok = np.array(batch.ok, dtype=bool)
    fit = batch.similarity
    poses = rigid_matrix(fit.rotation.numpy(), fit.translation.numpy())
    poses[~ok] = np.nan
    return CameraPoses(
        poses,
        fit.scale.numpy(),
        batch.inlier_share,
        batch.covariance[:, :6, :6],
        np.full(views, np.nan),
        ok,
        batch.reasons,
    )


def known_poses(
    window_from_camera: Float64, points_local: Maps, points_global: Maps, options: RobustOptions
) -> CameraPoses:
    """Poses (V, 4, 4) from a network that outputs them with its pointmaps.

    inlier_share: share of the pixels whose local points they map to the global ones.
    """
    local = [torch.as_tensor(points) for points in points_local]
    chosen = [
        sample_indices(view.shape[0] * view.shape[1], options.max_points, view.device) for view in local
    ]
    share = torch.zeros(len(local))
    for number, (pose, view, other, pixels) in enumerate(
        zip(window_from_camera, local, points_global, chosen, strict=True)
    ):
        source, target = (torch.as_tensor(each).flatten(0, 1)[pixels].double() for each in (view, other))
        matrix = torch.as_tensor(pose, dtype=torch.float64, device=view.device)
        error = (source @ matrix[:3, :3].T + matrix[:3, 3] - target).norm(dim=-1)
        share[number] = (error < options.inlier_distance * source.norm(dim=-1)).double().mean()
    shares = share.double().numpy()
    ok = np.isfinite(window_from_camera).all((1, 2)) & (shares >= options.min_inlier_share)
    views = len(local)
    return CameraPoses(
        np.where(ok[:, None, None], window_from_camera, np.nan),
        np.ones(views),
        shares,
        np.zeros((views, 6, 6)),
        np.full(views, np.nan),
        ok,
        tuple("" if good else "the network's pose disagrees with its points" for good in ok),
    )


def _sampled(maps: Sequence[Tensor], chosen: Sequence[Tensor]) -> Tensor:
    """The chosen pixels, numbered row by row, of maps (H, W, ...) as (V, N, ...).

    Views with fewer pixels are padded with zeros, which as weights mean unused.
    """
    parts = [view.flatten(0, 1).index_select(0, pixels) for view, pixels in zip(maps, chosen, strict=True)]
    return _stacked(parts)


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Tensors (n, ...) as one (V, N, ...), padded with zeros; the usual equal lengths take one operation."""
    if len({len(part) for part in parts}) == 1:
        return torch.stack(list(parts))
    return pad_sequence(list(parts), batch_first=True)


def _rays(intrinsics: Float64, chosen: Sequence[Tensor], widths: Sequence[int]) -> Tensor:
    """Directions (V, N, 3) with z = 1 through the centres of the chosen pixels of views of these widths."""
    pixels = _stacked(chosen)
    width = torch.tensor(widths, device=pixels.device)[:, None]
    matrix = torch.as_tensor(intrinsics, dtype=torch.float64, device=pixels.device)[:, None]
    x = (pixels % width + 0.5 - matrix[..., 0, 2]) / matrix[..., 0, 0]
    y = (torch.div(pixels, width, rounding_mode="floor") + 0.5 - matrix[..., 1, 2]) / matrix[..., 1, 1]
    return torch.stack([x, y, torch.ones_like(x)], 2)


def poses_by_pnp(
    points_global: Sequence[NDArray[np.floating]] | NDArray[np.floating],
    confidence: Sequence[NDArray[np.floating]] | NDArray[np.floating],
    focal: float | None = None,
    *,
    min_confidence: float = 1.0,
    iterations: int = 100,
    pixel_centre: float = 0.5,
    min_inlier_share: float = 0.0,
) -> CameraPoses:
    """RANSAC PnP (SQPNP) of each view: global points (H, W, 3) whose confidence (H, W) exceeds a bound.

    focal: in pixels, with the principal point at (W/2, H/2); None searches one per view, from half to three
    times the longer side, and refines it together with the pose.  pixel_centre: the coordinate of the first
    pixel's centre: 0.5 as everywhere in this package, 0 as in the official code.
    """
    results = [
        _pose_of_view(points, conf > min_confidence, focal, iterations, pixel_centre, min_inlier_share)
        for points, conf in zip(points_global, confidence, strict=True)
    ]
    poses, focals, shares, reasons = zip(*results, strict=True)
    return CameraPoses(
        np.stack(poses),
        np.ones(len(poses)),
        np.array(shares),
        np.full((len(poses), 6, 6), np.nan),
        np.array(focals),
        np.array([not reason for reason in reasons]),
        reasons,
    )


_Result = tuple[Float64, float, float, str]


def _pose_of_view(
    points: NDArray[np.floating],
    mask: NDArray[np.bool_],
    focal: float | None,
    iterations: int,
    pixel_centre: float,
    min_inlier_share: float,
) -> _Result:
    height, width = mask.shape
    mask = mask & np.isfinite(points).all(axis=-1)
    count = int(mask.sum())
    if count < 4:
        return _failure(f"only {count} pixels of enough confidence, 4 are needed")
    rows, columns = np.nonzero(mask)
    pixels: Float64 = np.stack([columns, rows], axis=1).astype(np.float64) + pixel_centre
    world: Float64 = points[mask].astype(np.float64)
    searched = focal is None
    if focal is None:
        focal = _search_focal(world, pixels, height, width, iterations)
        if focal is None:
            return _failure(
                "no focal length between half and three times the longer side explains the points"
            )
    camera = centred_intrinsics(focal, height, width)
    solution = _ransac(world, pixels, camera, iterations)
    if solution is None:
        return _failure("RANSAC found no pose")
    inliers = solution[2]
    rotation, translation = solution[:2]
    if searched:  # the search used few points; with a known focal length RANSAC fits all inliers itself
        start = np.concatenate([rotation, translation, [np.log(focal)]])
        parameters = _refined(world[inliers], pixels[inliers], (height, width), start)
        rotation, translation, focal = parameters[:3], parameters[3:6], float(np.exp(parameters[6]))
    share = len(inliers) / count
    if share < min_inlier_share:
        return _failure(f"only {share:.0%} of the pixels agree, {min_inlier_share:.0%} are needed")
    return inverse(rigid_matrix(matrix_from_vector(rotation), translation)), focal, share, ""


def _failure(reason: str) -> _Result:
    return np.full((4, 4), np.nan), np.nan, 0.0, reason


def _ransac(
    world: Float64, pixels: Float64, camera: Float64, iterations: int
) -> tuple[Float64, Float64, NDArray[np.int32]] | None:
    """Rotation vector, translation (camera_from_world) and inlier indices; None when there is no solution."""
    # SQPNP raises for nearly coincident points, by an absolute bound, so the spread is enlarged
    centre = np.median(world, axis=0)
    scale = SQPNP_SPREAD / max(float(np.median(np.linalg.norm(world - centre, axis=1))), 1e-12)
    try:
        found, rotation, translation, inliers = cv2.solvePnPRansac(
            scale * (world - centre),
            pixels,
            camera,
            None,
            iterationsCount=iterations,
            reprojectionError=REPROJECTION_ERROR,
            flags=cv2.SOLVEPNP_SQPNP,
        )
    except cv2.error:
        return None
    if not found or inliers is None or not (np.isfinite(rotation).all() and np.isfinite(translation).all()):
        return None
    vector = np.asarray(rotation[:, 0], np.float64)
    shift = np.asarray(translation[:, 0], np.float64) / scale - matrix_from_vector(vector) @ centre
    return vector, shift, np.asarray(inliers[:, 0], np.int32)


def _refined(world: Float64, pixels: Float64, size: tuple[int, int], parameters: Float64) -> Float64:
    """The parameters of `_reprojection` that bring points (N, 3) nearest to the rays of their pixels.

    Distances, not pixels: the network's errors are lengths, and near points would dominate in pixels.
    Returns the given parameters if the refinement fails.
    """
    if len(world) > REFINED_POINTS:
        chosen = np.random.default_rng(0).permutation(len(world))[:REFINED_POINTS]
        world, pixels = world[chosen], pixels[chosen]
    height, width = size

    def distances(full: Float64) -> Float64:
        depth = world @ matrix_from_vector(full[:3])[2] + full[5]
        errors = _reprojection(full, world, pixels, height, width)
        result: Float64 = (errors * (np.maximum(depth, 1e-6) / np.exp(full[6]))[:, None]).ravel()
        return result

    if 2 * len(world) < len(parameters):
        return parameters
    try:
        found = least_squares(distances, parameters, method="lm", x_scale="jac")
    except ValueError:  # non-finite values
        return parameters
    refined: Float64 = np.asarray(found.x, np.float64)
    return refined if np.isfinite(refined).all() else parameters


def _search_focal(world: Float64, pixels: Float64, height: int, width: int, iterations: int) -> float | None:
    """Grid search with a truncated error as the score, then refinement of the best together with its pose.

    The official search counts inliers within five pixels; many focal lengths reach the maximum, and it takes
    the smallest, which is up to 12 % off.
    """
    chosen = np.random.default_rng(0).permutation(len(world))[:SEARCH_POINTS]
    world, pixels = world[chosen], pixels[chosen]
    size = max(height, width)
    best: tuple[float, Float64] | None = None
    for focal in np.geomspace(size / 2, 3 * size, FOCAL_CANDIDATES):
        solution = _ransac(world, pixels, centred_intrinsics(focal, height, width), iterations)
        if solution is None:
            continue
        parameters = np.concatenate([solution[0], solution[1], [np.log(focal)]])
        errors = np.linalg.norm(_reprojection(parameters, world, pixels, height, width), axis=1)
        score = float(np.minimum(errors, REPROJECTION_ERROR).sum())
        if best is None or score < best[0]:
            best = score, parameters
    if best is None:
        return None
    refined = least_squares(
        lambda parameters: _reprojection(parameters, world, pixels, height, width).ravel(),
        best[1],
        loss="cauchy",
        f_scale=1.0,
        x_scale="jac",
    )
    return float(np.exp(refined.x[6]))


def _reprojection(parameters: Float64, world: Float64, pixels: Float64, height: int, width: int) -> Float64:
    """Errors (N, 2) in pixels for (rotation vector, translation, log focal), large behind the camera."""
    camera_points = world @ matrix_from_vector(parameters[:3]).T + parameters[3:6]
    depth = np.maximum(camera_points[:, 2:], 1e-6)
    return np.exp(parameters[6]) * camera_points[:, :2] / depth + (width / 2, height / 2) - pixels

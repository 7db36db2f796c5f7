"""Trajectory metrics: absolute (ATE) and relative (RPE) pose errors.

After Sturm et al., "A Benchmark for the Evaluation of RGB-D SLAM Systems" (IROS 2012); the alignment is
Umeyama's (1991).  Where positions do not determine the rotation (a straight line, a pure rotation), the
attitudes do.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fast3r_ros.errors import UserError
from fast3r_ros.geometry.rotation import angle_between
from fast3r_ros.geometry.sim3 import Sim3

SECONDS = 1e-9
# Positions count as a line below this ratio of the spread across the main axis to that along it.
LINE = 0.02
# Positions count as a point within this share of their distance to the origin, or within a micrometre.
POINT = 1e-6
# Weight of attitudes relative to positions on a line: so small that positions determine the line's direction.
ATTITUDE_WEIGHT = 1e-3


@dataclass(frozen=True)
class TrajectoryScores:
    """Errors of a trajectory; lengths in the ground truth's units, normally metres.

    ate: RMSE of positions after one similarity.  ate_percent: the same in percent of the true path; NaN for a
    pure rotation.  ate_se3: RMSE of positions after a rigid alignment, without a scale.  rotation: RMSE of
    attitudes in degrees.  rpe_translation, rpe_rotation: RMSE between consecutive poses (length, degrees).
    scale: of the similarity, true length per estimated length; NaN for a pure rotation.  path: length of the
    true path.  poses: number of compared poses.
    """

    ate: float
    ate_percent: float
    ate_se3: float
    rotation: float
    rpe_translation: float
    rpe_rotation: float
    scale: float
    path: float
    poses: int

    def row(self) -> dict[str, float]:
        """Name -> value, for tables."""
        return asdict(self)


def trajectory_scores(world_from_camera: ArrayLike, true_world_from_camera: ArrayLike) -> TrajectoryScores:
    """Compare two trajectories (N, 4, 4) pose by pose; NaN poses are ignored.

    Raises UserError with fewer than three poses, or when the estimate is stationary and the ground truth
    moves.
    """
    estimate = np.asarray(world_from_camera, dtype=np.float64)
    truth = np.asarray(true_world_from_camera, dtype=np.float64)
    known = np.isfinite(estimate).all(axis=(1, 2)) & np.isfinite(truth).all(axis=(1, 2))
    estimate, truth = estimate[known], truth[known]
    if len(estimate) < 3:
        raise UserError(f"a trajectory comparison needs at least 3 poses, got {len(estimate)}")
    path = float(np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1).sum())
    moves = not _is_point(truth[:, :3, 3])
    aligned = align_trajectory(estimate, truth)
    rigid = _about_centroids(aligned.rotation, 1.0, estimate, truth)
    moved = aligned.apply(estimate[:, :3, 3])
    ate = _rms(moved - truth[:, :3, 3])
    steps, true_steps = _steps(estimate, aligned.scale), _steps(truth, 1.0)
    difference = np.linalg.inv(true_steps) @ steps
    return TrajectoryScores(
        ate=ate,
        ate_percent=100 * ate / path if moves else np.nan,
        ate_se3=_rms(rigid.apply(estimate[:, :3, 3]) - truth[:, :3, 3]),
        rotation=_rms_degrees(aligned.rotation @ estimate[:, :3, :3], truth[:, :3, :3]),
        rpe_translation=_rms(difference[:, :3, 3]),
        rpe_rotation=_rms_degrees(steps[:, :3, :3], true_steps[:, :3, :3]),
        scale=aligned.scale if moves else np.nan,
        path=path,
        poses=len(estimate),
    )


def stamped_trajectory_scores(
    stamps_ns: NDArray[np.int64],
    world_from_camera: ArrayLike,
    true_stamps_ns: NDArray[np.int64],
    true_world_from_camera: ArrayLike,
    max_difference_s: float = 0.02,
) -> TrajectoryScores:
    """Compare two trajectories; each pose with the nearest true stamp, if it is near enough.

    true_stamps_ns: ascending.  Raises UserError like `trajectory_scores`, or when no two stamps match.
    """
    stamps, true_stamps = np.asarray(stamps_ns, np.int64), np.asarray(true_stamps_ns, np.int64)
    after = np.clip(np.searchsorted(true_stamps, stamps), 1, max(len(true_stamps) - 1, 1))
    before = after - 1
    after = np.minimum(after, len(true_stamps) - 1)
    later = np.abs(true_stamps[after] - stamps) < np.abs(true_stamps[before] - stamps)
    nearest = np.where(later, after, before)
    paired = np.abs(true_stamps[nearest] - stamps) <= max_difference_s / SECONDS
    if not paired.any():
        raise UserError(f"no two stamps are within {max_difference_s} s of each other")
    truth = np.asarray(true_world_from_camera)[nearest[paired]]
    return trajectory_scores(np.asarray(world_from_camera)[paired], truth)


def align_trajectory(
    estimate: NDArray[np.float64], truth: NDArray[np.float64], by_attitudes: bool = False
) -> Sim3:
    """The similarity `true_from_estimate` of two trajectories (N, 4, 4).

    Least squares over positions.  On a line the attitudes determine the rotation about it; for a pure
    rotation they alone determine the rotation, with scale 1.  by_attitudes: they always do, for maps whose
    cameras move little relative to the depth.  Raises UserError when the estimate is stationary and the
    ground truth moves.
    """
    places, true_places = (poses[:, :3, 3] - poses[:, :3, 3].mean(axis=0) for poses in (estimate, truth))
    attitudes = np.einsum("nij,nkj->ik", truth[:, :3, :3], estimate[:, :3, :3])
    attitudes /= np.linalg.norm(attitudes)
    if _is_point(truth[:, :3, 3]):
        return _about_centroids(_nearest_rotation(attitudes), 1.0, estimate, truth)
    if _is_point(estimate[:, :3, 3]):
        raise UserError(
            "the trajectory cannot be aligned to the ground truth: it is stationary, the ground truth moves"
        )
    correlation = true_places.T @ places
    correlation /= np.linalg.norm(correlation)
    spreads = np.linalg.svd(correlation, compute_uv=False)
    if by_attitudes:
        correlation = attitudes
    elif spreads[1] < LINE**2 * spreads[0]:
        correlation = correlation + ATTITUDE_WEIGHT * attitudes
    rotation = _nearest_rotation(correlation)
    scale = float(np.sum(true_places * (places @ rotation.T)) / np.sum(places**2))
    if scale <= 0:
        raise UserError("the trajectory cannot be aligned to the ground truth: their motions are unrelated")
    return _about_centroids(rotation, scale, estimate, truth)


def _about_centroids(
    rotation: NDArray[np.float64], scale: float, estimate: NDArray[np.float64], truth: NDArray[np.float64]
) -> Sim3:
    """The similarity with this rotation and scale that maps the centroid to the true one."""
    shift = truth[:, :3, 3].mean(axis=0) - scale * rotation @ estimate[:, :3, 3].mean(axis=0)
    return Sim3(scale, rotation, shift)


def _nearest_rotation(correlation: NDArray[np.float64]) -> NDArray[np.float64]:
    left, _, right = np.linalg.svd(correlation)
    return left @ np.diag([1.0, 1.0, np.linalg.det(left @ right)]) @ right


def _is_point(places: NDArray[np.float64]) -> bool:
    """Whether positions (N, 3) are equal within the precision of float64 and text files."""
    reach = np.abs(places - places.mean(axis=0)).max()
    return bool(reach < max(POINT, POINT * np.abs(places).max()))


def _steps(poses: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """Motions (N - 1, 4, 4) between consecutive poses, their translations scaled."""
    steps = np.linalg.inv(poses[:-1]) @ poses[1:]
    steps[:, :3, 3] *= scale
    return steps


def _rms(vectors: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.sum(vectors**2, axis=1))))


def _rms_degrees(rotations: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.rad2deg(angle_between(rotations, others)) ** 2)))

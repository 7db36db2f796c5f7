"""Trajectory metrics through the `evo` package: absolute (ATE) and relative (RPE) pose error."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from evo.core import metrics, sync
from evo.core.geometry import GeometryException
from evo.core.metrics import PoseRelation, StatisticsType, Unit
from evo.core.trajectory import PosePath3D, PoseTrajectory3D
from numpy.typing import ArrayLike, NDArray

from fast3r_ros.errors import UserError

SECONDS = 1e-9


@dataclass(frozen=True)
class TrajectoryScores:
    """After one similarity to the truth; lengths in the truth's units, normally metres.

    ate: RMSE of positions.  ate_percent: the same in percent of the true path.  rotation: RMSE of attitudes
    in degrees.  rpe_translation, rpe_rotation: RMSE between consecutive poses (length, degrees).  scale: of
    the similarity.  path: length of the true path.  poses: how many were compared.
    """

    ate: float
    ate_percent: float
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
    """Compare two trajectories (N, 4, 4) pose by pose; poses that are NaN are left out.

    Raises UserError when fewer than three poses are left or their positions determine no similarity.
    """
    estimate = np.asarray(world_from_camera, dtype=np.float64)
    truth = np.asarray(true_world_from_camera, dtype=np.float64)
    known = np.isfinite(estimate).all(axis=(1, 2)) & np.isfinite(truth).all(axis=(1, 2))
    return _scores(
        PosePath3D(poses_se3=list(estimate[known])),
        PosePath3D(poses_se3=list(truth[known])),
        int(known.sum()),
    )


def stamped_trajectory_scores(
    stamps_ns: NDArray[np.int64],
    world_from_camera: ArrayLike,
    true_stamps_ns: NDArray[np.int64],
    true_world_from_camera: ArrayLike,
    max_difference_s: float = 0.02,
) -> TrajectoryScores:
    """Compare two trajectories whose poses belong together when their stamps differ by little enough.

    Raises UserError as `trajectory_scores` does.
    """
    estimate = PoseTrajectory3D(
        poses_se3=list(np.asarray(world_from_camera)), timestamps=np.asarray(stamps_ns) * SECONDS
    )
    truth = PoseTrajectory3D(
        poses_se3=list(np.asarray(true_world_from_camera)), timestamps=np.asarray(true_stamps_ns) * SECONDS
    )
    try:
        truth, estimate = sync.associate_trajectories(truth, estimate, max_diff=max_difference_s)
    except sync.SyncException as error:
        raise UserError(f"no two stamps are within {max_difference_s} s of each other: {error}") from error
    return _scores(estimate, truth, estimate.num_poses)


def _scores(estimate: PosePath3D, truth: PosePath3D, count: int) -> TrajectoryScores:
    if count < 3:
        raise UserError(f"a trajectory needs at least 3 poses to be compared, {count} are left")
    try:
        _, _, scale = estimate.align(truth, correct_scale=True)
    except GeometryException as error:
        raise UserError(f"the trajectory cannot be aligned to the truth: {error}") from error
    ate = _rmse(metrics.APE(PoseRelation.translation_part), truth, estimate)
    path = float(truth.path_length)
    return TrajectoryScores(
        ate=ate,
        ate_percent=100 * ate / path if path > 0 else np.nan,
        rotation=_rmse(metrics.APE(PoseRelation.rotation_angle_deg), truth, estimate),
        rpe_translation=_rmse(_consecutive(PoseRelation.translation_part), truth, estimate),
        rpe_rotation=_rmse(_consecutive(PoseRelation.rotation_angle_deg), truth, estimate),
        scale=float(scale),
        path=path,
        poses=count,
    )


def _consecutive(relation: PoseRelation) -> metrics.RPE:
    return metrics.RPE(relation, delta=1, delta_unit=Unit.frames)


def _rmse(metric: metrics.PE, truth: PosePath3D, estimate: PosePath3D) -> float:
    metric.process_data((truth, estimate))
    return float(metric.get_statistic(StatisticsType.rmse))

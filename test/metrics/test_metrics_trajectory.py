"""Trajectory metrics: what they must not see, and what they must."""

from __future__ import annotations

import numpy as np
import pytest

from fast3r_ros.errors import UserError
from fast3r_ros.geometry.rigid import rigid_matrix
from fast3r_ros.geometry.rotation import matrix_from_vector
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.metrics.trajectory import stamped_trajectory_scores, trajectory_scores


def walk(count: int = 50) -> np.ndarray:
    """Poses on a rising spiral."""
    turn = np.linspace(0, 5, count)
    positions = np.stack([3 * np.cos(turn), 3 * np.sin(turn), 0.2 * turn], axis=1)
    return rigid_matrix(matrix_from_vector(np.outer(turn, [0.0, 0.0, 1.0])), positions)


def test_a_similarity_is_no_error() -> None:
    truth = walk()
    moved = Sim3(0.3, matrix_from_vector([0.3, -0.4, 0.5]), np.array([1.0, 2.0, 3.0]))
    scores = trajectory_scores(np.stack([moved.move_camera(pose) for pose in truth]), truth)
    assert scores.ate < 1e-9
    assert scores.ate_se3 == pytest.approx(0.7 * np.sqrt(np.var(truth[:, :3, 3], axis=0).sum()))
    assert scores.rotation < 1e-5
    assert scores.scale == pytest.approx(1 / 0.3)
    assert scores.path == pytest.approx(15, abs=0.2)
    assert scores.poses == 50


def test_position_noise_is_the_ate() -> None:
    truth = walk(500)
    noisy = truth.copy()
    noisy[:, :3, 3] += 0.01 * np.random.default_rng(0).standard_normal((500, 3))
    scores = trajectory_scores(noisy, truth)
    assert scores.ate == pytest.approx(0.01 * np.sqrt(3), rel=0.1)
    assert scores.rpe_translation == pytest.approx(0.01 * np.sqrt(6), rel=0.1)
    assert scores.ate_percent == pytest.approx(100 * scores.ate / scores.path)


def test_missing_poses_are_left_out() -> None:
    truth = walk()
    estimate = truth.copy()
    estimate[10:20] = np.nan
    scores = trajectory_scores(estimate, truth)
    assert scores.poses == 40
    assert scores.ate < 1e-9


def test_stamps_pair_the_poses() -> None:
    truth = walk()
    stamps = np.arange(50, dtype=np.int64) * 100_000_000
    scores = stamped_trajectory_scores(stamps[::5] + 3_000_000, truth[::5], stamps, truth)
    assert scores.poses == 10
    assert scores.ate < 1e-9
    with pytest.raises(UserError, match="stamps"):
        stamped_trajectory_scores(stamps + 10**12, truth, stamps, truth)


def test_an_impossible_comparison_is_reported() -> None:
    with pytest.raises(UserError, match="got 2"):
        trajectory_scores(walk(2), walk(2))
    with pytest.raises(UserError, match="aligned"):
        trajectory_scores(np.tile(np.eye(4), (5, 1, 1)), walk(5))


def disturbed(poses: np.ndarray, seed: int) -> np.ndarray:
    """Moved by a similarity, with noise in position (5 cm) and attitude (2 degrees)."""
    rng = np.random.default_rng(seed)
    moved = Sim3(0.4, matrix_from_vector(rng.normal(size=3)), rng.normal(size=3))
    estimate = np.stack([moved.move_camera(pose) for pose in poses])
    estimate[:, :3, :3] @= matrix_from_vector(np.deg2rad(2) * rng.normal(size=(len(poses), 3)))
    estimate[:, :3, 3] += 0.4 * 0.05 * rng.normal(size=(len(poses), 3))
    return estimate


@pytest.mark.parametrize("seed", range(3))
def test_evo_measures_the_same(seed: int) -> None:
    from evo.core import metrics
    from evo.core.trajectory import PosePath3D

    truth = walk(80)
    estimate = disturbed(truth, seed)
    ours = trajectory_scores(estimate, truth)
    rigid, judge, reference = (PosePath3D(poses_se3=list(each)) for each in (estimate, estimate, truth))
    _, _, scale = judge.align(reference, correct_scale=True)
    rigid.align(reference)

    def rmse(metric: metrics.PE, path: PosePath3D = judge) -> float:
        metric.process_data((reference, path))
        return float(metric.get_statistic(metrics.StatisticsType.rmse))

    translation, degrees = metrics.PoseRelation.translation_part, metrics.PoseRelation.rotation_angle_deg
    consecutive = {"delta": 1, "delta_unit": metrics.Unit.frames}
    assert ours.scale == pytest.approx(scale, rel=1e-9)
    assert ours.path == pytest.approx(reference.path_length, rel=1e-9)
    assert ours.ate == pytest.approx(rmse(metrics.APE(translation)), rel=1e-7)
    assert ours.ate_se3 == pytest.approx(rmse(metrics.APE(translation), rigid), rel=1e-7)
    assert ours.rotation == pytest.approx(rmse(metrics.APE(degrees)), rel=1e-5)
    assert ours.rpe_translation == pytest.approx(rmse(metrics.RPE(translation, **consecutive)), rel=1e-7)
    assert ours.rpe_rotation == pytest.approx(rmse(metrics.RPE(degrees, **consecutive)), rel=1e-5)


def test_on_a_straight_line_the_attitudes_decide_the_roll() -> None:
    """A corridor: positions leave the rotation about it open, and evo refuses it."""
    truth = walk(60)
    truth[:, :3, 3] = np.outer(np.linspace(0, 12, 60), [0.6, 0.8, 0.0])
    scores = trajectory_scores(disturbed(truth, 0), truth)
    assert scores.ate == pytest.approx(0.05 * np.sqrt(3), rel=0.2)
    assert scores.scale == pytest.approx(1 / 0.4, rel=0.01)
    assert scores.rotation == pytest.approx(2 * np.sqrt(3), rel=0.25)
    exact = np.stack(
        [Sim3(0.3, matrix_from_vector([0.3, -0.4, 2.0]), np.ones(3)).move_camera(p) for p in truth]
    )
    assert trajectory_scores(exact, truth).ate < 1e-9
    assert trajectory_scores(exact, truth).rotation < 1e-5


def test_a_turn_on_the_spot_has_attitudes_only() -> None:
    truth = walk(40)
    truth[:, :3, 3] = [1.0, 2.0, 3.0]
    turned = rigid_matrix(matrix_from_vector([0.1, 0.2, 0.3]), [4.0, 5.0, 6.0]) @ truth
    scores = trajectory_scores(turned, truth)
    assert scores.rotation < 1e-5
    assert scores.ate < 1e-9
    assert np.isnan(scores.ate_percent)
    assert np.isnan(scores.scale)
    turned[:, :3, 3] += 0.1 * np.random.default_rng(0).normal(size=(40, 3))
    assert trajectory_scores(turned, truth).ate == pytest.approx(0.1 * np.sqrt(3), rel=0.2)


def test_stamps_at_the_ends_and_single_ones_are_paired() -> None:
    truth = walk(5)
    stamps = np.arange(5, dtype=np.int64) * 10**9
    scores = stamped_trajectory_scores(stamps - 5_000_000, truth, stamps, truth)
    assert scores.poses == 5
    with pytest.raises(UserError, match="got 1"):
        stamped_trajectory_scores(stamps, truth, stamps[:1], truth[:1])

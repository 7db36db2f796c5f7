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


def test_what_cannot_be_compared_is_said() -> None:
    with pytest.raises(UserError, match="2 are left"):
        trajectory_scores(walk(2), walk(2))
    with pytest.raises(UserError, match="aligned"):
        trajectory_scores(np.tile(np.eye(4), (5, 1, 1)), walk(5))

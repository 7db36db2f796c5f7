"""Pose metrics against the official evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fast3r_ros.geometry.rigid import rigid_matrix
from fast3r_ros.geometry.rotation import matrix_from_vector
from fast3r_ros.metrics.pose import pair_errors, pose_scores

TEST = Path(__file__).parents[1]
GOLDEN = json.loads((TEST / "golden" / "metric" / "ten_views.json").read_text())
MORE = json.loads((TEST / "golden_more" / "pose_metrics.json").read_text())["cases"]


def build(case: dict) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true poses of a case by its recipe."""
    rng = np.random.Generator(np.random.PCG64(case["seed"]))
    predicted, true = [], []
    for _ in range(case["num_views"]):
        rotation = matrix_from_vector(case["gt_rot_scale"] * rng.standard_normal(3))
        translation = case["gt_t_scale"] * rng.standard_normal(3)
        wrong = matrix_from_vector(case["noise_rot"] * rng.standard_normal(3))
        offset = case["noise_t"] * rng.standard_normal(3)
        true.append(rigid_matrix(rotation, translation))
        predicted.append(rigid_matrix(rotation @ wrong, case["pred_scale"] * (translation + offset)))
    return np.stack(predicted), np.stack(true)


def test_golden_case() -> None:
    scores = pose_scores(pair_errors(GOLDEN["predicted_cam_to_world"], GOLDEN["true_cam_to_world"]))
    for name, value in scores.items():
        assert value == pytest.approx(GOLDEN[name.replace("(", "").replace(")", "")], abs=1e-6)


@pytest.mark.parametrize("case", MORE, ids=lambda case: case["name"])
def test_more_golden_cases(case: dict) -> None:
    errors = pair_errors(*build(case))
    expected = case["expected"]
    official = np.array(expected["rotation_error_deg"])
    # Below 0.82 degrees the official error is a linear approximation that never falls under 0.4.
    exact = official > 0.82
    np.testing.assert_allclose(errors.rotation[exact], official[exact], atol=2e-3)
    assert (errors.rotation[~exact] <= official[~exact] + 1e-3).all()
    np.testing.assert_allclose(errors.translation, expected["translation_error_deg"], atol=0.05)
    for name, value in pose_scores(errors).items():
        key = name.replace("@", "_at_").replace("(", "_").replace(")", "")
        assert value == pytest.approx(expected[key], abs=1e-6)


def test_a_missing_pose_fails_in_all_of_its_pairs() -> None:
    _, true = build(MORE[0])
    predicted = true.copy()
    predicted[1] = np.nan
    errors = pair_errors(predicted, true)
    assert np.isinf(errors.rotation).sum() == np.isinf(errors.translation).sum() == len(true) - 1
    assert pose_scores(errors)["RRA@30"] == pytest.approx(0.6)


def test_random_poses_score_near_chance() -> None:
    rng = np.random.default_rng(0)
    poses = [
        rigid_matrix(matrix_from_vector(2 * rng.standard_normal((40, 3))), rng.standard_normal((40, 3)))
        for _ in range(2)
    ]
    scores = pose_scores(pair_errors(*poses))
    assert scores["RRA@15"] < 0.1
    assert scores["RTA@15"] < 0.15
    assert scores["mAA(30)"] < 0.05


def test_one_pose_has_no_pairs() -> None:
    with pytest.raises(ValueError, match="two poses"):
        pair_errors(np.eye(4)[None], np.eye(4)[None])

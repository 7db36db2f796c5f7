"""Cloud and depth metrics against the official evaluation and against cases with a known answer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fast3r_ros.geometry.rotation import matrix_from_vector
from fast3r_ros.metrics.dense import align, depth_scores, estimate_normals, reconstruction_scores

GOLDEN = Path(__file__).parents[1] / "golden_more" / "recon_metrics.json"
CASES = json.loads(GOLDEN.read_text())["cases"]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden_cases(case: dict) -> None:
    rng = np.random.Generator(np.random.PCG64(case["seed"]))
    true = rng.standard_normal((case["num_gt"], 3))
    predicted = true[rng.integers(0, case["num_gt"], case["num_pred"])]
    predicted = predicted + case["noise"] * rng.standard_normal((case["num_pred"], 3))
    true_normals = unit(rng.standard_normal((case["num_gt"], 3)))
    predicted_normals = unit(rng.standard_normal((case["num_pred"], 3)))
    scores = reconstruction_scores(predicted, true, predicted_normals, true_normals)
    expected = case["expected"]
    for name in ("accuracy", "accuracy_median", "completion", "completion_median"):
        assert getattr(scores, name) == pytest.approx(expected[name], abs=1e-6)
    assert scores.normal_consistency == pytest.approx((expected["nc1"] + expected["nc2"]) / 2, abs=1e-6)
    both = (expected["nc1_median"] + expected["nc2_median"]) / 2
    assert scores.normal_consistency_median == pytest.approx(both, abs=1e-6)

    weights = rng.uniform(size=case["num_pred"]) < 0.3
    rotation = matrix_from_vector(0.9 * rng.standard_normal(3))
    target = case["scale"] * predicted @ rotation.T + 0.1 * rng.standard_normal(predicted.shape)
    target += rng.standard_normal(3)
    fit = align(predicted.astype(np.float32), target.astype(np.float32), weights)
    assert fit.scale == pytest.approx(expected["alignment"]["s"], abs=1e-5)
    np.testing.assert_allclose(fit.rotation, expected["alignment"]["R"], atol=1e-5)
    np.testing.assert_allclose(fit.translation, expected["alignment"]["t"], atol=1e-5)


def test_normals_of_a_sphere_point_outwards() -> None:
    points = unit(np.random.default_rng(0).standard_normal((4000, 3)))
    normals = estimate_normals(points)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1.0)
    assert np.abs(np.sum(normals * points, axis=1)).min() > 0.98


def test_a_shifted_plane_has_that_distance_and_perfect_normals() -> None:
    grid = np.stack([*np.meshgrid(np.arange(20.0), np.arange(20.0)), np.zeros((20, 20))], -1).reshape(-1, 3)
    shifted = grid + np.array([0.0, 0.0, 0.3])
    scores = reconstruction_scores(
        shifted, grid, estimate_normals(shifted, 9), estimate_normals(grid, 9), threshold=0.31
    )
    assert scores.accuracy == scores.completion == scores.chamfer == pytest.approx(0.3)
    assert scores.normal_consistency == pytest.approx(1.0)
    assert scores.f_score == pytest.approx(1.0)
    assert reconstruction_scores(shifted, grid, threshold=0.29).f_score == 0.0


def test_a_half_of_the_cloud_is_accurate_but_not_complete() -> None:
    true = np.random.default_rng(0).uniform(size=(2000, 3))
    scores = reconstruction_scores(true[:1000], true, threshold=1e-3)
    assert scores.accuracy == 0.0
    assert scores.completion > 0.0
    assert scores.f_score == pytest.approx(2 / 3, abs=0.01)
    assert np.isnan(scores.normal_consistency)


def test_depth() -> None:
    true = np.full((2, 4, 5), 2.0)
    true[0, 0] = 0.0
    predicted = np.full_like(true, 1.0)
    predicted[1, 0] = np.nan
    perfect = depth_scores(predicted, true)
    assert perfect == {"AbsRel": 0.0, "delta<1.25": 1.0, "valid": 30 / 35}
    assert depth_scores(predicted, true, align_scale=False)["AbsRel"] == pytest.approx(0.5)
    assert depth_scores(predicted, true, align_scale=False)["delta<1.25"] == 0.0
    assert np.isnan(depth_scores(np.zeros_like(true), true)["AbsRel"])

"""Similarity fits: exact on exact data, robust against outliers, honest about their errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fast3r_ros.geometry.robust_similarity import RobustOptions, fit_similarity_robust
from fast3r_ros.geometry.rotation import angle_between, matrix_from_vector, vector_from_matrix
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.geometry.similarity import fit_similarity

coordinates = st.floats(-3, 3)
similarities = st.builds(
    lambda scale, rotation, translation: Sim3(
        scale, matrix_from_vector(np.array(rotation)), np.array(translation)
    ),
    st.floats(0.05, 20),
    st.tuples(coordinates, coordinates, coordinates),
    st.tuples(coordinates, coordinates, coordinates),
)
MIRROR_FLAT = np.array([1.0, 1.0, 0.0])


def points(seed: int, count: int = 3000, extent: tuple[float, float, float] = (2, 1.5, 0.5)) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3)) * extent + np.array([0, 0, 4])


def assert_equal(fit: Sim3, truth: Sim3, tolerance: float) -> None:
    assert abs(np.log(fit.scale / truth.scale)) < tolerance
    assert angle_between(fit.rotation, truth.rotation) < tolerance
    assert np.linalg.norm(fit.translation - truth.translation) < tolerance * 10 * truth.scale


@settings(max_examples=40, deadline=None)
@given(truth=similarities, seed=st.integers(0, 1000))
def test_both_fits_recover_a_similarity_from_exact_points(truth: Sim3, seed: int) -> None:
    source = points(seed, 200)
    target = truth.apply(source)
    assert_equal(fit_similarity(source, target), truth, 1e-9)
    fit = fit_similarity_robust(source, target)
    assert fit.ok
    assert_equal(fit.target_from_source, truth, 1e-9)


@settings(max_examples=20, deadline=None)
@given(truth=similarities, seed=st.integers(0, 1000))
def test_a_flat_wall_gives_a_proper_rotation(truth: Sim3, seed: int) -> None:
    source = points(seed, 200) * MIRROR_FLAT
    fit = fit_similarity(source, truth.apply(source))
    assert np.linalg.det(fit.rotation) == pytest.approx(1.0)
    assert_equal(fit, truth, 1e-8)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), share=st.floats(0, 0.4), offset=st.tuples(*[st.floats(-8, 8)] * 3))
def test_outliers_that_agree_with_each_other_do_not_move_the_robust_fit(
    seed: int, share: float, offset: tuple[float, float, float]
) -> None:
    rng = np.random.default_rng(1000 + seed)
    truth = Sim3(2.3, matrix_from_vector(rng.standard_normal(3)), rng.standard_normal(3))
    source = points(seed)
    target = truth.apply(source) + 0.01 * rng.standard_normal(source.shape)
    wrong = rng.uniform(size=len(source)) < share
    target[wrong] += np.array(offset) + 0.3 * rng.standard_normal((wrong.sum(), 3))
    fit = fit_similarity_robust(source, target)
    assert fit.ok
    assert_equal(fit.target_from_source, truth, 0.01)


@pytest.mark.parametrize("outliers", [0.0, 0.3])
def test_covariance_is_the_spread_of_the_errors(outliers: float) -> None:
    """The squared errors in units of the covariance average to the number of parameters."""
    squares = []
    for seed in range(40):
        rng = np.random.default_rng(1000 + seed)
        truth = Sim3(2.3, matrix_from_vector(rng.standard_normal(3)), rng.standard_normal(3))
        source = points(seed)
        target = truth.apply(source) + 0.02 * rng.standard_normal(source.shape)
        wrong = rng.uniform(size=len(source)) < outliers
        target[wrong] = rng.uniform(-8, 8, (wrong.sum(), 3))
        source += 0.02 / truth.scale * rng.standard_normal(source.shape)
        fit = fit_similarity_robust(source, target)
        found = fit.target_from_source
        error = np.concatenate(
            [
                found.translation - truth.translation,
                vector_from_matrix(found.rotation @ truth.rotation.T),
                [np.log(found.scale / truth.scale)],
            ]
        )
        squares.append(error @ np.linalg.solve(fit.covariance, error))
    assert 4.5 < np.mean(squares) < 11


def test_noise_on_both_sides_does_not_shrink_the_scale() -> None:
    rng = np.random.default_rng(1000)
    source = points(3, 12000)
    target = source + 0.2 * rng.standard_normal(source.shape)
    source = source + 0.2 * rng.standard_normal(source.shape)
    assert fit_similarity_robust(source, target).target_from_source.scale == pytest.approx(1, abs=5e-3)
    assert fit_similarity(source, target).scale < 0.99


def test_pure_noise_is_not_ok() -> None:
    rng = np.random.default_rng(0)
    fit = fit_similarity_robust(rng.standard_normal((5000, 3)), rng.standard_normal((5000, 3)))
    assert not fit.ok
    assert "agree" in fit.reason


def test_weights_choose_the_points() -> None:
    truth = Sim3(0.5, matrix_from_vector([0.1, 0.2, 0.3]), np.array([1.0, 2.0, 3.0]))
    source = points(1)
    target = truth.apply(source)
    target[:2000] += 5.0
    weights = np.r_[np.zeros(2000), np.ones(1000)]
    assert_equal(fit_similarity(source, target, weights), truth, 1e-9)
    assert_equal(fit_similarity_robust(source, target, weights).target_from_source, truth, 1e-9)


def test_without_scale_the_scale_is_one() -> None:
    source = points(1)
    fit = fit_similarity_robust(
        source, 2.0 * source, options=RobustOptions(with_scale=False, inlier_distance=9)
    )
    assert fit.target_from_source.scale == 1.0
    assert fit.covariance[6, 6] == 0.0


def test_coordinates_too_large_for_a_solution_are_a_refused_fit() -> None:
    source = np.random.default_rng(0).normal(size=(500, 3))
    fit = fit_similarity_robust(source, 1e160 * source)
    assert not fit.ok
    assert fit.reason


def test_points_that_are_not_finite_are_ignored() -> None:
    source = points(1)
    target = source + 1.0
    target[::3] = np.nan
    source[::7] = np.inf
    fit = fit_similarity_robust(source, target)
    assert fit.ok
    assert_equal(fit.target_from_source, Sim3(1.0, np.eye(3), np.ones(3)), 1e-9)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (np.zeros((100, 3)), "place"),
        (np.linspace(0, 1, 100)[:, None] * [1.0, 2.0, 3.0], "line"),
        (points(0, 10), "only 10"),
        (np.full((100, 3), np.nan), "only 0"),
    ],
)
def test_too_little_is_a_reason_and_never_an_identity(source: np.ndarray, reason: str) -> None:
    fit = fit_similarity_robust(source, source)
    assert not fit.ok
    assert reason in fit.reason


def test_the_closed_form_refuses_a_line() -> None:
    line = np.linspace(0, 1, 100)[:, None] * [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="line"):
        fit_similarity(line, line)


def test_torch_and_numpy_agree_and_repeat() -> None:
    source, target = points(1, 30000), points(2, 30000)
    fits = [
        fit_similarity_robust(source, target),
        fit_similarity_robust(torch.from_numpy(source), torch.from_numpy(target)),
    ]
    assert fits[0].target_from_source.scale == fits[1].target_from_source.scale
    np.testing.assert_array_equal(fits[0].covariance, fits[1].covariance)

"""Similarity fits: exact on exact data, robust against outliers, with correct covariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fast3r_ros.geometry.robust_similarity import RobustOptions, _pseudo_inverse, fit_similarity_robust
from fast3r_ros.geometry.rotation import angle_between, matrix_from_vector, vector_from_matrix
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.geometry.similarity import (
    DEGENERATE_GAP,
    TINY,
    ScaleRule,
    augment,
    fit_similarity,
    solve,
    weighted_moments,
)

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


def test_coordinates_too_large_for_a_solution_give_a_rejected_fit() -> None:
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


def test_the_closed_form_rejects_a_line() -> None:
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


def solved_by_torch(moments: torch.Tensor, scale_rule: ScaleRule) -> tuple[torch.Tensor, ...]:
    """Scale, rotation, translation and gap by the same formula in PyTorch, as it would run on a device."""
    moments = moments / moments[:, 3:4, 3:4].clamp_min(TINY)
    source_centre, target_centre = moments[:, :3, 3], moments[:, 3, :3]
    s = moments[:, :3, :3] - source_centre[:, :, None] * target_centre[:, None]
    source_spread = (moments[:, 4, 3] - source_centre.square().sum(1)).clamp_min(TINY)
    target_spread = (moments[:, 3, 4] - target_centre.square().sum(1)).clamp_min(0.0)
    skew = torch.stack([s[:, i, j] - s[:, j, i] for i, j in ((1, 2), (2, 0), (0, 1))], 1)
    trace = torch.einsum("bii->b", s)
    matrix = torch.zeros(len(s), 4, 4, dtype=torch.float64)
    matrix[:, 0, 0], matrix[:, 0, 1:], matrix[:, 1:, 0] = trace, skew, skew
    matrix[:, 1:, 1:] = s + s.transpose(1, 2) - trace[:, None, None] * torch.eye(3)
    values, vectors = torch.linalg.eigh(torch.nan_to_num(matrix, nan=0.0, posinf=0.0, neginf=0.0))
    w, v = vectors[:, 0, 3], vectors[:, 1:, 3]
    cross = torch.linalg.cross(torch.eye(3, dtype=torch.float64)[None], v[:, None].expand(-1, 3, 3))
    rotation = (
        (w.square() - v.square().sum(1))[:, None, None] * torch.eye(3)
        + 2 * v[:, :, None] * v[:, None]
        + 2 * w[:, None, None] * cross
    )
    scale = torch.ones_like(trace)
    if scale_rule == "symmetric":
        scale = (target_spread / source_spread).sqrt()
    elif scale_rule == "least squares":
        scale = torch.einsum("bij,bji->b", rotation, s) / source_spread
    translation = target_centre - scale[:, None] * (rotation @ source_centre[:, :, None])[:, :, 0]
    gap = (values[:, 3] - values[:, 2]) / values.abs().amax(1).clamp_min(TINY)
    return scale, rotation, translation, gap


def difficult_moments() -> tuple[torch.Tensor, np.ndarray]:
    """Moments (B, 5, 5) of ordinary and of degenerate points, and which of them determine the rotation."""
    rng = np.random.default_rng(0)
    truth = Sim3(1.7, matrix_from_vector(np.array([0.4, -0.9, 0.2])), np.array([1.0, -2.0, 3.0]))
    source = points(0, 200)
    line = np.linspace(0, 1, 200)[:, None] * [1.0, 2.0, 3.0]
    cases = {
        "exact": (source, truth.apply(source), True),
        "noisy": (source, truth.apply(source) + 0.1 * rng.standard_normal(source.shape), True),
        "half a turn": (source, source * [-1.0, -1.0, 1.0], True),
        "mirrored": (source, source * [1.0, 1.0, -1.0], True),
        "flat": (source * MIRROR_FLAT, truth.apply(source * MIRROR_FLAT), True),
        "far away": (source + 1e4, truth.apply(source) - 1e4, True),
        "tiny": (1e-7 * source, 1e-7 * truth.apply(source), True),
        "too large": (source, 1e200 * source, True),
        "line": (line, truth.apply(line), False),
        "one place": (np.ones((200, 3)), np.full((200, 3), 2.0), False),
        "one point": (np.zeros((200, 3)), np.ones((200, 3)), False),
        "no weight": (source, truth.apply(source), False),
        "not finite": (source, np.full((200, 3), np.nan), False),
    }
    weights = np.ones((len(cases), 200))
    weights[list(cases).index("no weight")] = 0.0
    weights[list(cases).index("one point"), 1:] = 0.0
    both = (torch.from_numpy(np.stack([case[i] for case in cases.values()])) for i in (0, 1))
    moments = weighted_moments(*(augment(each) for each in both), torch.from_numpy(weights))
    return moments, np.array([case[2] for case in cases.values()])


@pytest.mark.parametrize("rule", ["least squares", "symmetric", "one"])
@pytest.mark.filterwarnings("error")
def test_the_fit_on_the_host_is_that_of_the_device(rule: ScaleRule) -> None:
    moments, determined = difficult_moments()
    fit = solve(moments.numpy(), rule)
    expected = solved_by_torch(moments, rule)
    found = [each.numpy() for each in (fit.scale, fit.rotation, fit.translation, fit.gap)]
    for ours, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours[determined], other.numpy()[determined], rtol=1e-9, atol=1e-9)
    assert (found[3][determined] > DEGENERATE_GAP).all()
    # for undetermined rotations the solver may return any
    assert (found[3][~determined] <= DEGENERATE_GAP).all()
    assert (expected[3].numpy()[~determined] <= DEGENERATE_GAP).all()
    np.testing.assert_allclose(np.linalg.det(found[1]), 1.0, atol=1e-9)
    if rule == "symmetric":
        np.testing.assert_allclose(found[0], expected[0].numpy(), rtol=1e-9)


@pytest.mark.filterwarnings("error")
def test_the_pseudo_inverse_is_pytorchs_and_never_raises() -> None:
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((4, 7, 9)) * rng.uniform(0.1, 10, (4, 7, 1))
    matrices = factors @ factors.transpose(0, 2, 1)
    matrices[1, 6] = matrices[1, :, 6] = 0.0
    matrices[2] = 0.0
    matrices[3, 0, 0] = np.nan
    found = _pseudo_inverse(matrices)
    expected = torch.linalg.pinv(torch.from_numpy(matrices[:3]), hermitian=True, rtol=1e-15)
    np.testing.assert_allclose(found[:3], expected.numpy(), rtol=1e-9, atol=1e-12)
    assert np.isnan(found[3]).all()


@pytest.mark.parametrize("with_scale", [True, False])
def test_the_covariance_is_that_of_the_normal_equations(with_scale: bool) -> None:
    """Summed up point by point; unlike the moments these sums know the residuals."""
    rng = np.random.default_rng(1)
    truth = Sim3(2.3 if with_scale else 1.0, matrix_from_vector(rng.standard_normal(3)), np.ones(3))
    source, weights = points(1, 600), rng.uniform(0.2, 3, 600)
    target = truth.apply(source) + 0.05 * rng.standard_normal(source.shape)
    fit = fit_similarity_robust(source, target, weights, RobustOptions(with_scale=with_scale))
    found = fit.target_from_source
    residual = np.linalg.norm(found.apply(source) - target, axis=1)
    kernel = np.clip(1 - (residual / (6 * fit.residual)) ** 2, 0, None)
    robust = weights * kernel**2
    jacobian = np.zeros((600, 3, 7))
    jacobian[:, :, :3] = np.eye(3)
    lever = source @ (found.scale * found.rotation.T)
    jacobian[:, :, 3:6] = np.cross(np.eye(3)[None], lever[:, None]).transpose(0, 2, 1)
    jacobian[:, :, 6] = lever
    jacobian = jacobian[:, :, : 7 if with_scale else 6]
    information = np.einsum("nij,n,nik->jk", jacobian, robust, jacobian)
    slope = (weights * (kernel**2 - 4 / 3 * (1 - kernel) * kernel)).sum()
    variance = ((robust * residual) ** 2).sum() / 3 * robust.sum() / slope**2
    size = len(information)
    expected = variance * np.linalg.inv(information)
    # the median of a sample, of which all points are part, decides the cut: equal up to that
    np.testing.assert_allclose(fit.covariance[:size, :size], expected, rtol=1e-6, atol=1e-9 * expected.max())
    assert not fit.covariance[size:].any()

"""Focal length from pointmaps beyond the golden cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fast3r_ros.geometry.focal import estimate_focal
from fast3r_ros.geometry.intrinsics import intrinsics_matrix, pixel_rays


def pointmap(focal: float, height: int = 48, width: int = 64, principal: tuple | None = None) -> np.ndarray:
    intrinsics = intrinsics_matrix(focal, principal or (width / 2, height / 2))
    depth = 2 + np.sin(np.arange(width) / 9) + 0.5 * np.cos(np.arange(height) / 7)[:, None]
    return pixel_rays(intrinsics, height, width) * depth[..., None]


@settings(max_examples=30, deadline=None)
@given(
    focal=st.floats(15, 500), scale=st.floats(0.01, 100), share=st.floats(0, 0.25), seed=st.integers(0, 99)
)
def test_a_quarter_of_outliers_does_not_matter(focal: float, scale: float, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = pointmap(focal)
    wrong = rng.uniform(size=points.shape[:2]) < share
    points[wrong] = rng.uniform(-3, 3, (wrong.sum(), 3))
    assert estimate_focal(scale * points[None]).focal[0] == pytest.approx(focal, rel=2e-3)


def test_each_view_has_its_own_unless_shared() -> None:
    points = np.stack([pointmap(50.0), pointmap(60.0)])
    np.testing.assert_allclose(estimate_focal(points).focal, [50, 60], rtol=1e-6)
    shared = estimate_focal(np.stack([pointmap(55.0)] * 2), shared=True)
    np.testing.assert_allclose(shared.focal, [55, 55], rtol=1e-6)
    assert shared.ok.shape == (2,)


def test_principal_point_may_be_given() -> None:
    points = pointmap(50.0, principal=(20.0, 30.0))[None]
    assert estimate_focal(points, principal_point=(20.0, 30.0)).focal[0] == pytest.approx(50.0)


def test_no_camera_no_focal_length() -> None:
    behind = -pointmap(50.0)[None]
    assert not estimate_focal(behind).ok[0]
    noise = np.random.default_rng(0).standard_normal((1, 48, 64, 3))
    for estimate in (estimate_focal(behind), estimate_focal(np.full((1, 48, 64, 3), np.nan))):
        assert np.isnan(estimate.focal[0])
        assert "only 0 confident pixels" in estimate.reasons[0]
    estimate = estimate_focal(noise)
    assert not estimate.ok[0] or estimate.residual[0] > 5

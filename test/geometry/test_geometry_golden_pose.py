"""Focal lengths and poses against the official release on the golden pose cases."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from fast3r_ros.evaluation import golden as golden
from fast3r_ros.evaluation.golden_recipes import posed_view
from fast3r_ros.geometry.focal import estimate_focal

CASES = sorted((Path(__file__).parents[1] / "golden" / "pose").glob("*.json"))
CHECKS = {
    "focal length": golden.check_focal,
    "pointmaps, known focal length": partial(golden.check_pose_from_pointmaps, search=False),
    "pointmaps, no focal length": partial(golden.check_pose_from_pointmaps, search=True),
    "PnP, known focal length": partial(golden.check_pose_by_pnp, search=False),
    "PnP, searched focal length": partial(golden.check_pose_by_pnp, search=True),
}


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def case(request: pytest.FixtureRequest) -> dict:
    return json.loads(request.param.read_text())


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
def test_as_close_to_the_truth_as_the_official_release(case: dict, check: partial) -> None:
    error, bar = check(case)
    assert error < bar


def test_focal_length_survives_outliers_that_are_not_masked(case: dict) -> None:
    _, local, _ = posed_view(case)
    assert estimate_focal(local, pixel_centre=0.0).focal[0] == pytest.approx(case["focal"], rel=5e-3)

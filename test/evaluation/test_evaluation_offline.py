"""Scores of a network's answer: perfect ones score perfectly, wrong ones do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from true_answers import SIZE, true_answer

from fast3r_ros.errors import UserError
from fast3r_ros.evaluation import offline
from fast3r_ros.evaluation.offline import read_views
from fast3r_ros.model import Fast3R

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("head", offline.HEADS)
def test_a_perfect_network_scores_perfectly(walks: list, head: str) -> None:
    views = read_views(walks[0].frames, SIZE)
    placed = offline.place(true_answer(views), head)
    poses = offline.score_poses(placed, views)
    assert poses["RRA@5"] == poses["RTA@5"] == poses["placed"] == 1.0
    assert poses["mAA(30)"] > 0.96
    assert offline.score_trajectory(placed, views)["ate_percent"] < 0.5
    depth = offline.score_depth(placed, views)
    assert depth["AbsRel"] < 0.005
    assert depth["delta<1.25"] > 0.999
    points = offline.score_points(placed, views, max_points=0)
    assert points["point_error"] < 1e-3
    assert points["accuracy"] < 1e-2
    assert points["normal_consistency"] > 0.9
    assert points["f_score"] > 0.999


def test_errors_show_in_the_tables_where_they_belong(walks: list) -> None:
    views = read_views(walks[0].frames, SIZE)
    answer = true_answer(views)
    rng = np.random.default_rng(0)
    noisy = answer.points_local * rng.normal(1, 0.1, (*answer.points_local.shape[:3], 1)).astype(np.float32)
    placed = offline.place(replace(answer, points_local=noisy), "local")
    assert 0.07 < offline.score_depth(placed, views)["AbsRel"] < 0.09  # mean of |N(0, 0.1)|
    assert offline.score_poses(placed, views)["RRA@5"] == 1.0
    assert offline.score_points(placed, views)["point_error"] > 0.03

    swapped = replace(answer, points_global=np.roll(answer.points_global, 1, axis=0))
    assert offline.score_poses(offline.place(swapped, "local"), views)["RRA@5"] < 0.9


def test_only_the_confident_pixels_align(walks: list) -> None:
    """Half of the pixels are wrong with low confidence; the alignment's point error ignores them."""
    views = read_views(walks[0].frames, SIZE)
    answer = true_answer(views)
    points, confidence = answer.points_global.copy(), answer.confidence_global.copy()
    points[:, :, ::3] += 2.0
    confidence[:, :, ::3] = 1.0
    placed = offline.place(replace(answer, points_global=points, confidence_global=confidence), "global")
    assert offline.score_points(placed, views)["point_error"] < 1e-3


def test_a_network_without_a_local_head_gets_advice_for_evaluation(walks: list) -> None:
    answer = true_answer(read_views(walks[0].frames, SIZE))
    without = replace(answer, points_local=np.full_like(answer.points_local, np.nan))
    assert np.isfinite(offline.place(without, "global").window_from_camera).all()
    with pytest.raises(UserError, match="--heads global"):
        offline.place(without, "local")


def test_index_strategies_reach_the_network(walks: list, random_model: Path) -> None:
    """Two views: view 1 sits at the far end of the trained range, at a drawn place, or at 1."""
    model = Fast3R.from_pretrained(random_model)
    images = read_views(walks[0].frames[:2], SIZE).images
    points = {
        (indices, seed): offline.predictor(model, indices, seed)(images).points_global[1]
        for indices in offline.INDEX_STRATEGIES
        for seed in (0, 1)
    }
    again = offline.predictor(model, "drawn", 0)(images).points_global[1]
    np.testing.assert_array_equal(points["drawn", 0], again)
    assert not np.array_equal(points["drawn", 0], points["drawn", 1])
    for fixed in ("spread", "counted"):
        np.testing.assert_array_equal(points[fixed, 0], points[fixed, 1])
    assert not np.array_equal(points["spread", 0], points["counted", 0])

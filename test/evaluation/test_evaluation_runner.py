"""The grid of settings and scenes, averages, and published numbers beside ours."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from true_answers import SIZE, true_answer

from fast3r_ros.datasets import DATASETS
from fast3r_ros.errors import UserError
from fast3r_ros.evaluation import offline, tables
from fast3r_ros.evaluation.offline import read_views
from fast3r_ros.evaluation.runner import (
    BASELINES,
    SAME_FRAMES,
    SETTING,
    average,
    run_offline,
    settings,
)
from fast3r_ros.evaluation.tables import PUBLISHED, published_rows
from fast3r_ros.mapping.data import UInt8
from fast3r_ros.model import Fast3R

pytestmark = pytest.mark.slow


def test_untrained_weights_score_near_chance(walks: list, random_model: Path) -> None:
    model = Fast3R.from_pretrained(random_model)
    rows = run_offline(
        walks,
        lambda indices: offline.predictor(model, indices),
        settings([6], ["local"], ["spread"]),
        ["pose", "depth", "reconstruction"],
        SIZE,
    )
    still, ours = average(rows["pose"], SETTING)
    assert still["head"] == BASELINES["pose"][0]
    assert still["RTA@30"] == still["failed"] == 0.0
    assert ours["RRA@15"] < 0.3
    assert ours["RRA@15"] < still["RRA@15"]
    assert ours["RTA@15"] < 0.2
    assert ours["mAA(30)"] < 0.1
    flat, ours = average(rows["depth"], SETTING)
    assert not ours["AbsRel"] < 0.7 * flat["AbsRel"]  # NaN when no depth was positive
    (points,) = average(rows["reconstruction"], SETTING)
    assert points["point_error"] > 0.2
    assert points["f_score"] < 0.5


def test_the_grid_runs_every_setting_on_every_scene(walks: list) -> None:
    calls = []
    seen = {read_views([f], SIZE).images.tobytes(): f for walk in walks for f in walk.frames}

    def predict_with(indices: str) -> offline.Predict:
        def predict(images: UInt8) -> offline.Prediction:
            calls.append((indices, len(images)))
            return true_answer(read_views([seen[image.tobytes()] for image in images], SIZE))

        return predict

    grid = settings([4, 2], offline.HEADS, offline.INDEX_STRATEGIES)
    assert len(grid) == 12
    rows = run_offline(walks, predict_with, grid, ["depth"], SIZE)
    assert len(calls) == 2 * 2 * 3  # one pass serves both heads
    mean = average(rows["depth"], SETTING)
    assert [row["views"] for row in mean] == [2] * 7 + [4] * 7
    baseline = mean[0]
    assert baseline["head"] == BASELINES["depth"][0]
    assert baseline["AbsRel"] > 0.1
    assert all(row["AbsRel"] < 1e-4 for row in mean[1:7])
    assert all(row["scenes"] == 2 for row in mean)


def test_the_same_frames_are_scored_for_every_number_of_views(walks: list) -> None:
    """Views between the first and the last get wrong points: only tables that score all views may see it."""
    sequence = walks[0]
    frames = {read_views([frame], SIZE).images.tobytes(): frame for frame in sequence.frames}

    def predict(images: UInt8) -> offline.Prediction:
        answer = true_answer(read_views([frames[image.tobytes()] for image in images], SIZE))
        wrong, local = answer.points_global.copy(), answer.points_local.copy()
        wrong[1:-1] = np.roll(wrong[1:-1], 20, axis=2)
        local[1:-1, ..., 2] *= np.linspace(1, 2, SIZE)
        return replace(answer, points_global=wrong, points_local=local)

    grid = settings([2, 4, 6], ["local"], ["spread"])
    tables = ["pose", "reconstruction", "depth", "trajectory"]
    rows = run_offline([sequence], lambda _: predict, grid, tables, SIZE, same_frames=True)
    assert set(rows) == {*tables, *(table + SAME_FRAMES for table in tables[:3])}
    for suffix, perfect in (("", [True, False, False]), (SAME_FRAMES, [True, True, True])):
        ours = {t: [row for row in rows[t + suffix] if row["head"] == "local"] for t in tables[:3]}
        assert [row["rotation_error"] < 0.1 for row in ours["pose"]] == perfect
        assert [row["AbsRel"] < 0.005 for row in ours["depth"]] == perfect
        assert [row["point_error"] < 2e-3 for row in ours["reconstruction"]] == perfect


def test_frames_in_common_must_make_a_pair(walks: list) -> None:
    grid = settings([1, 4], ["local"], ["spread"])
    with pytest.raises(UserError, match="only 1 frame in common"):
        run_offline(walks, lambda _: pytest.fail("not run"), grid, ["pose"], SIZE, same_frames=True)


def test_failures_are_counted_and_not_averaged() -> None:
    rows = [{"scene": "a", "views": 2, "ate": 1.0}, {"scene": "b", "views": 2, "ate": np.inf}]
    assert average(rows, ["views"]) == [{"views": 2, "scenes": 2, "failed": 1, "ate": 1.0}]


def test_published_rows_are_named_as_published() -> None:
    report = {
        "dataset": "co3d",
        "model": "m",
        "settings": {},
        "tables": {"pose": {"mean": [{"views": 10, "RRA@15": 0.5}], "scenes": []}},
    }
    page = tables.markdown(report)
    assert re.search(r"\| measured \| 10 \| 50\.0 \|", page)
    assert re.search(r"\| published: Fast3R \(Yang .* Table 1, .*\) \| – \| 96\.2 \| 90\.2 \| 81\.6 \|", page)
    assert re.search(r"\| published: RelPose .* \| – \| 57\.1 \| – \|", page)


def test_published_numbers_fit_our_tables_and_units(walks: list) -> None:
    placed = offline.place(true_answer(read_views(walks[0].frames, SIZE)), "local")
    views = read_views(walks[0].frames, SIZE)
    ours = {
        "pose": offline.score_poses(placed, views),
        "reconstruction": offline.score_points(placed, views, 2000),
        "depth": offline.score_depth(placed, views),
    }
    for row in PUBLISHED:
        assert row.dataset in DATASETS
        assert row.values.keys() <= ours[row.table].keys()
        assert all(0 < value < 1 for value in row.values.values()), row  # shares, or metres in a room
    assert published_rows("7scenes", "reconstruction")[-1].values["accuracy_median"] == pytest.approx(0.0158)
    assert published_rows("synthetic", "pose") == []

"""The benchmarks run on a small network, and `report` turns their output into tables and figures."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fast3r_ros.benchmark.benchmark_report import tables
from fast3r_ros.benchmark.mapping_promises import SCENARIOS
from fast3r_ros.benchmark.measure import summarised
from fast3r_ros.cli import main

INF = float("inf")
SCORES = [{"rmse": 0.1, "sigma": INF}, {"rmse": 0.6, "sigma": INF}, {"rmse": 0.2, "sigma": 1.0}]
REFUSALS = [
    {"refused": True, "reason": "near", "worst": float("nan")},
    {"refused": False, "reason": "far", "worst": INF},
]


def document(*arguments: str) -> dict[str, Any]:
    """The output of `fast3r benchmark`."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["benchmark", *arguments]) == 0
    found: dict[str, Any] = json.loads(printed.getvalue())
    return found


@pytest.fixture(scope="module")
def documents(model_directory: str) -> dict[str, dict[str, Any]]:
    small = ["--model", model_directory, "--size", "64x48"]
    return {
        "network": document("network", *small, "--views", "1", "2", "--runs", "1"),
        "window": document("window", *small, "--views", "4", "--slides", "1", "2", "--runs", "2"),
        "scale": document("scale", *small, "--views", "5", "3", "--runs", "2"),
        "mapping": {
            "benchmark": "mapping",
            "machine": {"cpus": 2},
            "scenarios": {"loop": summarised(SCORES), "noise": summarised(REFUSALS)},
        },
        "node": {"benchmark": "node", "machine": {"cpus": 2}, "node": {"drops": {"overload": 3}}},
    }


def test_a_window_is_measured_from_frame_to_message(documents: dict[str, dict[str, Any]]) -> None:
    found = documents["window"]
    assert [result["slide"] for result in found["results"]] == [1, 2]
    for result in found["results"]:
        stages = {name: stage["median_s"] for name, stage in result["stages"].items()}
        total = stages.pop("total")
        assert min(stages[name] for name in ("preprocess", "encode", "fuse", "heads", "registration")) > 0
        assert sum(stages.values()) == pytest.approx(total, rel=0.5)
        assert result["windows_accepted"] > 0
        for times in (result, result["processor"]):
            assert times["outside_share"] == pytest.approx(times["outside_network_s"] / times["network_s"])
            assert times["network_s"] > 0
        assert result["network_s"] + result["outside_network_s"] == pytest.approx(total)
        assert result["processor"]["network_s"] < 1.1 * result["network_s"] * os.cpu_count()


def test_a_pass_over_many_views_is_reported_with_its_roofline(documents: dict[str, dict[str, Any]]) -> None:
    results = documents["scale"]["results"]
    assert [result["views"] for result in results] == [3, 5]
    for result in results:
        assert set(result["stages"]) == {"encode", "fuse", "heads"}
        for stage in result["stages"].values():
            assert 0 < stage["fastest_s"] <= stage["median_s"] <= stage["slowest_s"]
            assert stage["runs"] == 2
            assert stage["times_floor"] == pytest.approx(stage["median_s"] / stage["floor_s"])
            reached = stage["flops"] / stage["median_s"]
            rate = documents["scale"]["ceilings"]["float32"]["matrix_rate"]
            assert stage["share_of_matrix_rate"] == pytest.approx(reached / rate)
        medians = sum(stage["median_s"] for stage in result["stages"].values())
        assert result["total_s"] == pytest.approx(medians)  # of two runs the median is the mean


def test_slides_as_long_as_the_window_are_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "window", "--views", "4", "--slides", "4"]) == 2
    assert "--slides 4" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["64x64", "70x48", "8x8"])
@pytest.mark.parametrize("name", ["window", "scale"])
def test_sizes_that_preprocessing_changes_are_rejected(
    name: str, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", name, "--size", size]) == 2
    assert size in capsys.readouterr().err


def test_every_document_becomes_tables_and_pictures(
    documents: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    files = []
    for name, content in documents.items():
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(content))
    written = document("report", *map(str, files), "--output", str(tmp_path / "out"))["written"]
    assert {Path(path).name for path in written} == {
        "report.md",
        "network_network_64x48_float32.png",
        "window_window.png",
        "scale_scale.png",
    }
    for path in written[1:]:
        with Image.open(path) as picture:
            assert picture.size[0] > 500
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| node.drops.overload | 3 |" in text
    assert "| loop | rmse | 0.2 | 0.1 | 0.6 | 3 |" in text
    assert f"| {documents['scale']['results'][1]['total_s']:.2f} |" in text


@pytest.mark.parametrize("name", ["network", "window", "scale", "node", "mapping"])
def test_table_rows_are_as_wide_as_their_heading(documents: dict[str, dict[str, Any]], name: str) -> None:
    for table in tables(documents[name]):
        assert {len(row) for row in table.rows} == {len(table.columns)}


def test_a_pass_that_did_not_fit_is_a_row_without_numbers(documents: dict[str, dict[str, Any]]) -> None:
    failed = {"views": 9, "size_wh": [64, 48], "dtype": "float32", "failed": "out of memory"}
    table = tables({**documents["scale"], "results": [failed]})[0]
    assert [len(row) for row in table.rows] == [len(table.columns)]
    assert "out of memory" in table.rows[0]


def test_runs_are_summarised_by_median_and_spread() -> None:
    assert summarised(SCORES) == {
        "rmse": {"median": 0.2, "least": 0.1, "most": 0.6, "runs": 3},
        "sigma": {"median": 1.0, "least": 1.0, "most": 1.0, "runs": 1},
    }
    assert summarised(REFUSALS) == {
        "refused": {"yes": 1, "runs": 2},
        "reason": {"texts": ["far", "near"], "runs": 2},
        "worst": {"median": None, "least": None, "most": None, "runs": 0},
    }


def test_a_mapping_scenario_is_repeated_with_other_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCENARIOS, "many_outliers", lambda seed: {"rmse": 0.1 * seed})
    found = document("mapping", "many_outliers", "--runs", "3")
    scenario = found["scenarios"]["many_outliers"]
    assert scenario["rmse"] == {"median": 0.1, "least": 0.0, "most": 0.2, "runs": 3}
    assert scenario["processor_s"]["runs"] == 3
    assert {"device", "torch", "python", "fast3r_ros"} <= set(found["machine"])


@pytest.mark.parametrize("content", ["", "[1]", "{}"])
def test_a_file_that_is_not_from_a_benchmark_is_rejected(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    assert main(["benchmark", "report", str(path), "--output", str(tmp_path / "out")]) == 2
    assert "other.json" in capsys.readouterr().err

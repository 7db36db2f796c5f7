"""The network benchmark: its document, and that memory is measured."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fast3r_ros.benchmark.measure import measure
from fast3r_ros.cli import main


@pytest.mark.slow
def test_document_has_every_stage_of_every_combination(
    model_directory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--views", "1", "3", "--size", "64x48", "--runs", "2"]
    assert main(["benchmark", "network", "--model", model_directory, *options]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["machine"]["torch"] == torch.__version__
    assert [(result["dtype"], result["views"]) for result in document["results"]] == [
        ("float32", 1),
        ("float32", 3),
    ]
    for result in document["results"]:
        assert list(result["stages"]) == ["encode", "fuse", "heads", "pose"]
        for stage in result["stages"].values():
            assert 0 < stage["fastest_s"] <= stage["median_s"] <= stage["slowest_s"]
            assert stage["runs"] == 2
        medians = [stage["median_s"] for stage in result["stages"].values()]
        assert result["total_median_s"] == pytest.approx(sum(medians))


def test_choices_of_indices_are_compared(model_directory: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--views", "2", "--scenes", "1"]
    assert main(["benchmark", "indices", "--model", model_directory, *options]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [result["indices"] for result in results][::4] == ["spread", "counted"]
    assert all(result["local_error"] > 0 for result in results)


def test_peak_memory_of_a_stage_is_found() -> None:
    size = 64 * 2**20
    _, measurement = measure(lambda: np.ones(size, dtype=np.uint8).sum(), torch.device("cpu"), runs=2)
    if measurement.peak_bytes is None:
        pytest.skip("this system does not report a process's peak memory")
    assert 0.9 * size < measurement.peak_bytes < 2 * size


def test_an_invalid_size_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "network", "--size", "512"]) == 2
    assert "'512', expected WIDTHxHEIGHT" in capsys.readouterr().err

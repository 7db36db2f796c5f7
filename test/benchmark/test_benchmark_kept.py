"""A benchmark's results survive an abort; its default dtype and number of runs."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fast3r_ros.benchmark import models, one_pass_time
from fast3r_ros.benchmark.measure import collected
from fast3r_ros.cli import main
from fast3r_ros.cli.benchmark import BENCHMARKS
from fast3r_ros.errors import UserError
from fast3r_ros.model import Fast3R, fast3r

MODULES = {name: module for name, module, _ in BENCHMARKS}
# benchmark -> arguments that make it short
SHORT = {
    "network": ["--views", "1", "2", "--runs", "1"],
    "window": ["--views", "4", "--slides", "1", "2", "--runs", "1"],
    "scale": ["--views", "2", "3", "--runs", "1"],
    "acceleration": ["--views", "3", "--runs", "1", "--accelerate", "merge=2", "stream=2"],
}
ONE_CASE = {"network": ["--views", "1"], "scale": ["--views", "2"]}  # each in its own process


def run(name: str, model: str, *arguments: str) -> int:
    return main(["benchmark", name, "--model", model, "--size", "64x48", *SHORT[name], *arguments])


def test_a_run_that_is_cut_off_keeps_the_cases_it_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "kept.json"

    def results() -> Iterator[dict[str, Any]]:
        yield {"views": 320, "total_s": 12.3456, "stages": {"fuse": 1.0}}
        assert json.loads(path.read_text())["results"][0]["views"] == 320  # before the next one ends
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collected({"benchmark": "scale"}, results(), path)
    kept = json.loads(path.read_text())
    assert kept["unfinished"]
    assert kept["results"] == [{"views": 320, "total_s": 12.3456, "stages": {"fuse": 1.0}}]
    assert capsys.readouterr().err == "scale: views 320, total_s 12.35\n"


def test_a_file_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*kept\.json"):
        collected({"benchmark": "scale"}, [{"views": 1}], tmp_path / "file" / "kept.json")


@pytest.mark.parametrize(
    "name",
    [pytest.param(each, marks=pytest.mark.slow) if each in ("network", "scale") else each for each in SHORT],
)
def test_the_saved_document_is_the_printed_one(
    name: str, model_directory: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "kept.json"
    assert run(name, model_directory, "--keep", str(path)) == 0
    printed = capsys.readouterr()
    assert json.loads(path.read_text()) == json.loads(printed.out)
    assert "unfinished" not in path.read_text()
    assert len([line for line in printed.err.splitlines() if line.startswith(f"{name}: ")]) == 2


def test_a_gpu_is_measured_in_its_own_dtype() -> None:
    assert models.default_dtype(torch.device("cuda")) == "float16"
    assert models.default_dtype(torch.device("cuda:1")) == "float16"
    assert models.default_dtype(torch.device("cpu")) == "float32"


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_the_document_has_the_device_s_dtype(
    name: str, model_directory: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(MODULES[name])
    loaded: list[torch.dtype] = []
    load = module.load

    def noted(model: str, device: torch.device, dtype: torch.dtype, attention: str) -> Any:
        loaded.append(dtype)
        return load(model, device, dtype, attention)

    monkeypatch.setattr(module, "load", noted)
    monkeypatch.setattr(module, "default_dtype", lambda device: "bfloat16")
    fewer = ONE_CASE.get(name, [])
    assert run(name, model_directory, *fewer) == 0
    document = json.loads(capsys.readouterr().out)
    told = [document["dtype"]] if "dtype" in document else [each["dtype"] for each in document["results"]]
    assert set(told) == {"bfloat16"}
    assert run(name, model_directory, *fewer, "--dtype", "float32") == 0
    assert loaded == [torch.bfloat16, torch.float32]


@pytest.mark.slow
def test_attention_is_chosen_for_the_measured_size(
    model_directory: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for a window that is not recorded, without a warm-up, and for each number of views."""
    asked: list[tuple[str, int, tuple[int, int]]] = []

    def chosen(model: Fast3R, attention: str, views: int, size: tuple[int, int]) -> str:
        asked.append((attention, views, size))
        return "flash"

    for name in ("window", "scale"):
        monkeypatch.setattr(f"{MODULES[name]}.attention_kernel", chosen)
    for options in ([], ["--no-capture"]):
        assert run("window", model_directory, *options) == 0
        assert json.loads(capsys.readouterr().out)["attention"] == "flash"
    assert run("scale", model_directory) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [result["attention"] for result in results] == ["flash", "flash"]
    assert asked == [("auto", views, (64, 48)) for views in (4, 4, 2, 3)]


def test_random_weights_lie_in_memory_as_loaded_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.RANDOM_MODELS, "base", ((32, 2, 2), (32, 10, 2)))
    monkeypatch.setattr(fast3r, "layout_on", lambda device: torch.channels_last)  # as on a GPU
    model = models.load("base", torch.device("cpu"), torch.float32, "auto")
    convolutions = [
        weight
        for head in (model.downstream_head, model.downstream_head_local)
        for weight in head.parameters()
        if weight.ndim == 4 and min(weight.shape) > 1
    ]
    assert convolutions
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in convolutions)


@pytest.mark.slow
def test_passes_over_many_views_run_once(
    model_directory: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_pass_time, "LONG", 2)

    def runs(*arguments: str) -> list[int]:
        size = ["--size", "64x48", "--views", "2", "3"]
        assert main(["benchmark", "scale", "--model", model_directory, *size, *arguments]) == 0
        results = json.loads(capsys.readouterr().out)["results"]
        return [result["stages"]["fuse"]["runs"] for result in results]

    assert runs() == [one_pass_time.FEW_RUNS, 1]
    assert runs("--runs", "2") == [2, 2]

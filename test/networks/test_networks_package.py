"""A network of a foreign package, as shown in docs/networks.md, on the command line."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from patience import HANG_SECONDS
from shown_package import ROOT, shown_files

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def fast3r(toy_folder: Path) -> Run:
    """`python -m fast3r_ros …` where the toy package is installed."""
    path = os.pathsep.join([str(ROOT), str(toy_folder), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fast3r_ros", *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS)

    return run


def test_the_page_shows_it_in_fifty_lines() -> None:
    code = shown_files()["toy_networks.py"]
    ast.parse(code)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 50


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["window", "all"])
def test_it_maps_the_walk_in_metres(mode: str, fast3r: Run, tmp_path: Path) -> None:
    output = tmp_path / "map"
    views = ["--max-views", 12] if mode == "all" else []
    done = fast3r(
        *("reconstruct", "synthetic:3", "--model=toy:small", "--scale=network", f"--mode={mode}", *views),
        *(f"--output={output}", "--device=cpu"),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((output / "report.json").read_text())
    assert report["complete"]
    assert report["unit"] == "m"
    assert report["settings"]["model"] == "toy:small"
    assert report["map_points"] > 1000
    assert report["trajectory_error"]["rmse"] < 0.02


@pytest.mark.slow
def test_it_is_evaluated_next_to_fast3r(fast3r: Run, tmp_path: Path) -> None:
    few = ["--scenes=1", "--views=2", "--walks=1", "--walk-frames=20", "--size=112", "--device=cpu"]
    tables = ["--tables", "pose", "depth", "mapper"]
    models = ["--model=demo", "--model=toy:small"]
    done = fast3r("evaluate", *models, *few, *tables, f"--output={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert report["model"] == "demo, toy:small"
    rows = {table: content["mean"] for table, content in report["tables"].items()}
    networks = [(row["model"], row["head"], row["indices"]) for row in rows["pose"]]
    assert networks == [
        ("", "none: no motion", ""),
        ("demo", "local", "spread"),
        ("toy:small", "local", "none"),
    ]
    assert [row["model"] for row in rows["depth"]] == ["", "demo", "toy:small"]
    assert [(row["model"], row["method"]) for row in rows["mapper"]] == [
        ("demo", "mapper"),
        ("toy:small", "mapper"),
    ]
    assert "| toy:small |" in done.stdout
    assert (tmp_path / "out" / "pose.png").is_file()

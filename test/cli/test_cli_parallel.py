"""`torchrun … -m fast3r_ros reconstruct --parallel`: two processes write what one writes, once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from patience import HANG_SECONDS

from fast3r_ros.cli import main
from fast3r_ros.io.results import read_results

pytestmark = pytest.mark.slow

VIEWS = 7  # two processes cannot share them evenly
NO_GATES = ("--set", "registration.min_view_share=0", "--set", "registration.min_inlier_share=0")


@pytest.fixture(scope="module")
def arguments(video: Path, small_model: Path) -> list[str]:
    model = ["--model", str(small_model), "--device", "cpu"]
    return ["reconstruct", str(video), *model, "--mode", "all", "--max-views", str(VIEWS), *NO_GATES]


@pytest.fixture(scope="module")
def alone(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one process."""
    output = tmp_path_factory.mktemp("alone") / "out"
    assert main([*arguments, "--output", str(output)]) == 0
    return output


@pytest.mark.parametrize("mode", ["tensor", "sequence"])
def test_two_processes_write_what_one_writes(
    mode: str, arguments: list[str], alone: Path, tmp_path: Path, child_environment: dict[str, str]
) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [
        *torchrun,
        "-m",
        "fast3r_ros",
        *arguments,
        "--parallel",
        mode,
        "--output",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        command, env=child_environment, capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("results in") == 1
    ours, theirs = read_results(tmp_path / "out"), read_results(alone)
    assert len(ours.cameras) == VIEWS
    for found, expected in zip(ours.cameras, theirs.cameras, strict=True):
        np.testing.assert_allclose(found.map_from_camera, expected.map_from_camera, atol=1e-3)
    assert len(ours.cloud.points) == pytest.approx(len(theirs.cloud.points), rel=0.01)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["settings"]["parallel"] == mode


def test_usage_errors_are_reported(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--output", str(tmp_path)]
    assert main([*arguments, *output, "--parallel", "tensor"]) == 2
    assert "torchrun --nproc_per_node" in capsys.readouterr().err
    assert main([*arguments, *output, "--parallel", "tensor", "--mode", "window"]) == 2
    assert "--parallel tensor needs --mode all" in capsys.readouterr().err
    assert main([*arguments, *output, "--accelerate", "magic"]) == 2
    assert "'magic' is unknown" in capsys.readouterr().err
    assert main([*arguments, *output, "--accelerate", "stream=2"]) == 2
    assert "stream is for --mode window" in capsys.readouterr().err


@pytest.mark.parametrize(("mode", "what"), [("all", "merge=2,linears=int8"), ("window", "stream=2")])
def test_approximations_are_in_the_report(arguments: list[str], tmp_path: Path, mode: str, what: str) -> None:
    assert main([*arguments, "--output", str(tmp_path), "--mode", mode, "--accelerate", what]) == 0
    settings = json.loads((tmp_path / "report.json").read_text())["settings"]
    assert settings["accelerate"] == what

"""The script for the documentation's missing GPU figures, run on the CPU."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_SECONDS

from fast3r_ros.cli import main

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gpu_figures.sh"
SMALL = {
    "DEVICE": "cpu",
    "SIZE": "64x48",
    "VIEWS": "4",
    "SLIDES": "1",
    "MANY": "3 5",
    "RUNS": "1",
    "TESTS": "test/benchmark/test_benchmark_floor.py -k weights",
    "PYTHON": sys.executable,
}
OURS = ("DEVICE", "MODELS", "OUTPUT", "RELEASE", "STEPS", "TIME_LIMIT", *SMALL)


def measure(output: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the script with settings; everything else as small as possible."""
    inherited = {name: value for name, value in os.environ.items() if name not in OURS}
    environment = {**inherited, **SMALL, "OUTPUT": str(output), **settings}
    return subprocess.run(
        ["bash", str(SCRIPT)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )


# Notes every command, and leaves the benchmarks and the report to the test's process, which has PyTorch.
NOTES = """#!/bin/bash
printf '%s\\n' "$@" '' >>CALLS
case $2 in
fast3r_ros) [ "$4" = report ] || touch "${@: -1}" ;;
*) exec PYTHON "$@" ;;
esac
"""


@pytest.mark.slow
def test_every_figure_is_measured_and_a_failed_step_is_named(tmp_path: Path) -> None:
    calls, python = tmp_path / "calls", tmp_path / "python"
    python.write_text(NOTES.replace("CALLS", str(calls)).replace("PYTHON", sys.executable))
    python.chmod(0o755)
    output = tmp_path / "out"
    done = measure(output, MODELS="demo", RELEASE=str(tmp_path / "no_checkout"), PYTHON=str(python))
    for command in calls.read_text().strip().split("\n\n"):
        _, program, *arguments = command.split("\n")
        assert program != "fast3r_ros" or main(arguments) == 0, command
    assert done.returncode == 1, done.stdout + done.stderr
    failed = [line for line in done.stdout.splitlines() if line.startswith("failed: ")]
    assert failed == [
        "failed: against_release_demo: exit status 2",  # there is no such network of the release
        "failed: against_release_demo_many: exit status 2",
    ]
    documents = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")}
    assert {name: document["benchmark"] for name, document in documents.items()} == {
        "network_demo": "network",
        "window_demo": "window",
        "window_demo_stream4": "window",
        "window_demo_no_capture": "window",
        "acceleration_demo": "acceleration",
        "scale_demo": "scale",
    }
    assert not any("unfinished" in document for document in documents.values())
    assert documents["window_demo_stream4"]["accelerate"] == "stream=4"
    assert [result["views"] for result in documents["scale_demo"]["results"]] == [3, 5]
    assert (tmp_path / "out" / "tests.xml").is_file()
    report = (tmp_path / "out" / "report" / "report.md").read_text()
    for name in documents:
        assert f"({name}.json)" in report


@pytest.mark.slow
def test_nothing_that_failed_is_success_and_old_figures_go(tmp_path: Path) -> None:
    old = tmp_path / "network_demo.json"
    old.write_text(json.dumps({"benchmark": "network", "machine": {}}))
    limited = measure(tmp_path, MODELS="demo", STEPS="network", TIME_LIMIT="0.2")
    assert limited.returncode == 1
    assert "failed: network_demo: not finished in 0.2 s" in limited.stdout.splitlines()
    assert not old.exists()
    done = measure(tmp_path, MODELS="demo", STEPS="network|report")
    assert done.returncode == 0, done.stdout
    assert {path.name for path in tmp_path.glob("*.json")} == {"network_demo.json"}
    assert (tmp_path / "report" / "report.md").is_file()


def test_a_script_that_is_stopped_stops_its_step(tmp_path: Path) -> None:
    """The step holds a pipe open, which ends when the step does."""
    alive, python = tmp_path / "alive", tmp_path / "python"
    os.mkfifo(alive)
    python.write_text(f"#!/bin/bash\nexec 3>{alive}\necho started >&3\nexec sleep infinity\n")
    python.chmod(0o755)
    environment = {**os.environ, **SMALL, "OUTPUT": str(tmp_path), "MODELS": "demo", "PYTHON": str(python)}
    script = subprocess.Popen(["bash", str(SCRIPT)], env=environment, stdout=subprocess.DEVNULL)
    with alive.open() as step:
        assert step.readline() == "started\n"
        script.terminate()
        assert script.wait(HANG_SECONDS) == 130
        assert select.select([step], [], [], HANG_SECONDS)[0], "the step goes on without its script"
        assert step.read() == ""

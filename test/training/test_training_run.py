"""The trainer: it learns, survives kills, and several processes equal one."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from patience import HANG_SECONDS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import TINY, tiny

from fast3r_ros.cli import main
from fast3r_ros.datasets import DATASETS
from fast3r_ros.errors import UserError
from fast3r_ros.model import Fast3R
from fast3r_ros.training.processes import join_processes
from fast3r_ros.training.trainer import train
from fast3r_ros.training.training_config import read_config

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]


def start(config: Path, output: Path, *options: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "fast3r_ros", "train", "--config", str(config), "--output", str(output)]
    return subprocess.Popen(
        [*command, "--device", "cpu", *options],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    text, _ = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, text
    return text


def losses(output: Path) -> dict[int, list[float]]:
    """Every loss that was logged for each step, in order."""
    found: dict[int, list[float]] = {}
    for line in (output / "log.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "loss" in row:
            found.setdefault(row["step"], []).append(row["loss"])
    return found


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The tiny configuration's file and the folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("unbroken")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    train(tiny(), folder / "run", join_processes("cpu"))
    return folder / "tiny.yaml", folder / "run"


def test_eighty_steps_on_one_scene_bring_the_loss_down_fivefold(tmp_path: Path) -> None:
    config = tiny(
        data={"samples": 1, "noise": 0.0, "exposure": 0.0, "width": 32, "height": 32},
        curriculum=[{"views": [2]}],
        run={"steps": 80, "views_per_step": 2, "checkpoint_every": 80},
        optimizer={"learning_rate": 0.006, "warmup_steps": 10, "ema": 0.0},
    )
    train(config, tmp_path, join_processes("cpu"))
    curve = losses(tmp_path)
    assert curve[80][0] < curve[1][0] / 5


KILLED = """
import os, signal, sys
from pathlib import Path
from fast3r_ros.training import trainer
from fast3r_ros.training.processes import join_processes
from fast3r_ros.training.training_config import read_config
step = trainer.train_step
def last_step(run, *arguments):
    if run.step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(run, *arguments)
trainer.train_step = last_step
trainer.train(read_config(Path(sys.argv[1])), Path(sys.argv[2]), join_processes("cpu"))
"""


def test_a_killed_run_resumes_on_the_same_curve(unbroken: tuple[Path, Path], tmp_path: Path) -> None:
    """Killed after three steps, of which two are in a state."""
    config, reference = unbroken
    run = tmp_path / "run"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, config, run],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert set(losses(run)) == {1, 2, 3}
    assert main(["train", "--config", str(config), "--output", str(run), "--device", "cpu", "--resume"]) == 0
    wanted, got = losses(reference), losses(run)
    assert set(got) == set(wanted) == set(range(1, 6))
    for step, values in got.items():
        for value in values:  # steps after the last state are run twice
            assert value == pytest.approx(wanted[step][0], abs=1e-4), f"step {step}"
    ours, theirs = (Fast3R.from_pretrained(folder / "model") for folder in (run, reference))
    for (name, own), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(own, other, atol=1e-3, rtol=1e-3, msg=name)


WITHOUT_DEEPSPEED = importlib.util.find_spec("deepspeed") is None


@pytest.mark.parametrize(
    "parallel",
    [
        "ddp",
        "fsdp",
        pytest.param(
            "deepspeed",
            marks=pytest.mark.skipif(WITHOUT_DEEPSPEED, reason="the optional package deepspeed is missing"),
        ),
    ],
)
def test_two_processes_train_as_one_with_the_same_global_batch(
    unbroken: tuple[Path, Path], tmp_path: Path, parallel: str
) -> None:
    _, reference = unbroken
    content = {**TINY, "run": {**TINY["run"], "parallel": parallel}}
    if parallel == "fsdp":
        content["optimizer"] = {**TINY["optimizer"], "ema": 0.0}
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(content))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]  # as torchrun gives them
    processes = [start(config, tmp_path / "run", **rank, **group) for rank in ranks]
    for process in processes:
        finish(process)
    wanted, got = losses(reference), losses(tmp_path / "run")
    assert set(got) == set(wanted)
    for step, values in got.items():
        assert values[0] == pytest.approx(wanted[step][0], abs=1e-4), f"step {step}"


@pytest.mark.skipif(not WITHOUT_DEEPSPEED, reason="deepspeed is installed")
def test_a_missing_deepspeed_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="install the package deepspeed, or use fsdp"):
        train(tiny(run={"parallel": "deepspeed"}), tmp_path, join_processes("cpu"))


def test_a_second_stage_starts_from_the_weights_of_the_first(
    unbroken: tuple[Path, Path], tmp_path: Path
) -> None:
    first = unbroken[1] / "model"
    model = {**TINY["model"], "encoder_args": {**TINY["model"]["encoder_args"], "img_size": 96}}
    standing = {"learning_rate": 1e-12, "final_learning_rate": 0.0, "ema": 0.0}
    run = {"steps": 1, "initial_weights": str(first), "evaluate_scenes": 1}
    data = {"width": 96, "height": 64}
    train(tiny(model=model, data=data, optimizer=standing, run=run), tmp_path, join_processes("cpu"))
    weights = [Fast3R.from_pretrained(folder).state_dict() for folder in (first, tmp_path / "model")]
    assert Fast3R.from_pretrained(tmp_path / "model").config.encoder.img_size == 96
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-6)
    model["encoder_args"]["depth"] = 1
    with pytest.raises(UserError, match=r"different layers than the section model: .*enc_blocks\.1"):
        train(tiny(model=model, run=run), tmp_path, join_processes("cpu"))


def test_accumulation_equals_one_large_pass(unbroken: tuple[Path, Path], tmp_path: Path) -> None:
    wanted = losses(unbroken[1])
    train(tiny(run={"accumulation": 2, "recompute": True}), tmp_path, join_processes("cpu"))
    got = losses(tmp_path)
    for step in (1, 3, 5):
        assert got[step][0] == pytest.approx(wanted[step][0], abs=1e-4), f"step {step}"


def test_a_run_ends_in_time_with_weights_and_a_state(tmp_path: Path) -> None:
    metrics = train(tiny(), tmp_path, join_processes("cpu"), minutes=1e-6)
    assert set(metrics) >= {"rra_15", "rta_15", "global_error", "local_error"}
    assert (tmp_path / "state-00000001.pt").exists()
    assert Fast3R.from_pretrained(tmp_path / "model").config == tiny().model


def test_the_papers_recipe_takes_a_step_at_a_tiny_size(tmp_path: Path) -> None:
    """Its 20 views, precision and checkpointing, at our sizes, in rooms; the log goes to TensorBoard, too."""
    paper = read_config(REPOSITORY / "config" / "train" / "paper.yaml")
    assert paper.views_per_step(0) == 128 * 20
    assert paper.optimizer.decay_vectors
    assert len({item.dataset for item in paper.recorded} & set(DATASETS)) == 6
    assert sum(item.share for item in paper.recorded) == pytest.approx(1)
    small = dataclasses.replace(
        paper,
        model=tiny().model,
        recorded=(),
        data=dataclasses.replace(paper.data, width=64, height=48),
        run=dataclasses.replace(paper.run, steps=1, views_per_step=20, log_every=1, evaluate_scenes=1),
    )
    metrics = train(small, tmp_path, join_processes("cpu"))
    row = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert row["views"] == 20
    assert row["learning_rate"] == pytest.approx(1e-4 / 17400)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name, value in [*row.items(), *metrics.items()]:
        if name not in ("step", "time"):
            (scalar,) = events.Scalars(name)
            assert scalar.step == 1
            assert scalar.value == pytest.approx(value, rel=1e-5)

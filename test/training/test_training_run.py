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

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fast3r_ros.cli import main
from fast3r_ros.datasets import DATASETS
from fast3r_ros.errors import UserError
from fast3r_ros.geometry.rigid import rigid_matrix, transform_points
from fast3r_ros.geometry.rotation import matrix_from_vector
from fast3r_ros.metrics.pose import pair_errors, pose_scores
from fast3r_ros.model import Fast3R
from fast3r_ros.training.losses import GroundTruth, points_in_first_view
from fast3r_ros.training.objective import Objective
from fast3r_ros.training.processes import join_processes
from fast3r_ros.training.stream import held_out_batch, training_batch, view_count
from fast3r_ros.training.trainer import learning_rate, make_optimizers, train
from fast3r_ros.training.training_config import TrainConfig, config_from_dict, read_config
from fast3r_ros.training.validation import accuracy, validate

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
TINY = {
    "seed": 3,
    "model": {
        "encoder_args": {"embed_dim": 48, "depth": 2, "num_heads": 2, "img_size": 64},
        "decoder_args": {"embed_dim": 48, "enc_embed_dim": 48, "depth": 10, "num_heads": 2},
        "head_args": {
            "with_local_head": True,
            "dpt_reassemble_dims": [16, 16, 16, 16],
            "dpt_feature_dim": 16,
            "dpt_last_dim": 16,
        },
    },
    "data": {"width": 64, "height": 48, "noise": 0.02, "exposure": 0.1},
    "curriculum": [{"from_step": 0, "views": [2]}, {"from_step": 2, "views": [2, 3]}],
    "optimizer": {"learning_rate": 0.001, "warmup_steps": 4, "ema": 0.9},
    "run": {
        "steps": 5,
        "views_per_step": 12,
        "precision": "float32",
        "log_every": 1,
        "checkpoint_every": 2,
        "evaluate_every": 100,
        "evaluate_scenes": 2,
    },
}


def tiny(**sections: dict) -> TrainConfig:
    """The tiny configuration with some values of its sections replaced."""
    content = {name: dict(value) if isinstance(value, dict) else value for name, value in TINY.items()}
    for name, values in sections.items():
        content[name] = {**content[name], **values} if isinstance(values, dict) else values
    return config_from_dict(content, "the test's configuration")


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
    text, _ = process.communicate(timeout=240)
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


def test_batches_are_a_function_of_seed_and_step() -> None:
    config = tiny()
    first, again, other = training_batch(config, 5), training_batch(config, 5), training_batch(config, 6)
    for name in ("images", "points_camera", "valid", "world_from_camera", "image_indices"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    assert first.images.shape != other.images.shape or not torch.equal(first.images, other.images)
    views = view_count(config, 5)
    assert first.images.shape == (12 // views, views, 3, 48, 64)
    assert (first.image_indices[:, 0] == 0).all()
    assert (first.image_indices[:, 1:] > 0).all()


def test_parts_of_a_batch_are_the_batch() -> None:
    config = tiny(data={"noise": 0.0})
    whole = training_batch(config, 4)
    parts = [training_batch(config, 4, part=part, parts=2) for part in range(2)]
    assert torch.equal(torch.stack([part.images for part in parts], 1).flatten(0, 1), whole.images)


def test_partial_views_are_blank_and_left_out() -> None:
    batch = training_batch(tiny(data={"partial": 1.0, "noise": 0.0, "exposure": 0.0}), 0)
    missing = ~batch.valid
    assert 0.02 < missing.float().mean() < 0.5
    assert (batch.images.movedim(2, -1)[missing] == 0).all()


def test_held_out_scenes_do_not_depend_on_training() -> None:
    data = tiny().data
    first = held_out_batch(data, range(2), 3, 1.0)
    assert torch.equal(
        first.images, held_out_batch(dataclasses.replace(data, noise=0.5), range(2), 3, 1.0).images
    )
    assert torch.equal(first.images[1:], held_out_batch(data, range(1, 2), 3, 1.0).images)


def test_untrained_weights_fail_the_validation() -> None:
    torch.manual_seed(0)
    result = validate(Fast3R(tiny().model), tiny().data, scenes=4, views=4, motion=2.0)
    assert result["rra_15"] < 0.7
    assert result["rta_15"] < 0.2
    assert result["global_error"] > 0.2


def test_the_ground_truth_passes_the_validation_at_every_scale() -> None:
    batch = held_out_batch(tiny().data, range(2), 4, 1.0)
    truth = GroundTruth(batch.points_camera, batch.valid, batch.world_from_camera)
    scale = torch.tensor([0.5, 1.0, 2.0, 3.0])[None, :, None, None, None]
    in_first, local = 0.3 * points_in_first_view(truth), scale * batch.points_camera
    result = accuracy(in_first, torch.ones_like(batch.points_camera[..., 0]), local, batch)
    assert result["rra_15"].all()
    assert result["rta_15"].all()
    assert result["rotation_error"].max() < 0.1
    assert result["global_error"].max() < 1e-4
    assert result["local_error"].max() < 1e-4


def test_validation_scores_pairs_as_the_evaluation_does() -> None:
    """The golden metric takes directions up to sign: who went backwards along the true line is right."""
    batch = held_out_batch(tiny().data, range(2), 4, 1.0)
    rng = np.random.default_rng(0)
    moved = batch.world_from_camera.numpy().copy()
    moved[0] = moved[0] @ rigid_matrix(matrix_from_vector(0.2 * rng.standard_normal((4, 3))), np.zeros(3))
    moved[1, :, :3, 3] *= -1
    first = np.linalg.inv(moved[:, :1]) @ moved
    in_first = torch.from_numpy(
        np.stack(
            [
                [transform_points(pose, view) for pose, view in zip(poses, views, strict=True)]
                for poses, views in zip(first, batch.points_camera.numpy(), strict=True)
            ]
        )
    )
    result = accuracy(in_first, torch.ones_like(batch.points_camera[..., 0]), batch.points_camera, batch)
    for scene in range(2):
        scores = pose_scores(pair_errors(moved[scene], batch.world_from_camera[scene]))
        assert result["rra_15"][scene].double().mean() == pytest.approx(scores["RRA@15"])
        assert result["rta_15"][scene].double().mean() == pytest.approx(scores["RTA@15"])
    assert result["rta_15"][1].all()
    assert not result["rra_15"][0].all()


def test_learning_rate_warms_up_and_decays() -> None:
    options = tiny(optimizer={"warmup_steps": 10, "final_learning_rate": 1e-5}).optimizer
    rates = [learning_rate(options, step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == rates[9] == pytest.approx(1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(1e-5)


@pytest.mark.parametrize(("vectors", "of_vectors"), [(True, 0.05), (False, 0.0)])
def test_weight_decay_is_on_all_parameters_or_on_matrices_only(vectors: bool, of_vectors: float) -> None:
    config = tiny(optimizer={"decay_vectors": vectors})
    (optimizer,) = make_optimizers(Objective(Fast3R(config.model)), config.optimizer)
    decay = {
        parameter.ndim > 1: group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert decay == {True: 0.05, False: of_vectors}


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("run", {"stepz": 5}, "run.stepz is not known"),
        ("run", {"steps": "many"}, "run.steps is 'many'"),
        ("run", {"precision": "float8"}, "precision is 'float8'; it must be one of float32, bfloat16"),
        ("run", {"parallel": "horovod"}, "parallel is 'horovod'; it must be one of ddp, fsdp, deepspeed"),
        ("run", {"views_per_step": 2}, "views_per_step is 2"),
        ("data", {"width": 100}, "multiples of 16"),
        ("optimizer", {"betas": 0.9}, "optimizer.betas"),
        ("model", {"decoder_args": {}}, "enc_embed_dim is 1024, expected 48"),
    ],
)
def test_wrong_configurations_are_named(section: str, values: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiny(**{section: values})


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "config" / "train").glob("*.yaml")), ids=lambda p: p.stem
)
def test_shipped_configurations_can_be_read(path: Path) -> None:
    config = read_config(path)
    assert config.run.steps > 0


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "--steps is 0"),
        (["--minutes", "-1"], "--minutes is -1.0"),
        (["--config", "missing.yaml"], "cannot read missing.yaml"),
        pytest.param(
            ["--device", "cuda"],
            "PyTorch finds no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_a_usage_error_gives_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = REPOSITORY / "config" / "train" / "demo.yaml"
    assert main(["train", "--config", str(config), "--output", str(tmp_path / "run"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_model_of_the_users_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("the user's")
    with pytest.raises(UserError, match="not from a training run"):
        train(tiny(), tmp_path, join_processes("cpu"))
    assert (tmp_path / "model" / "config.json").read_text() == "the user's"
    assert len(list(tmp_path.iterdir())) == 1

"""Training configurations are read and checked; learning rate and weight decay follow them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_training import tiny

from fast3r_ros.cli import main
from fast3r_ros.errors import UserError
from fast3r_ros.model import Fast3R
from fast3r_ros.training.objective import Objective
from fast3r_ros.training.processes import join_processes
from fast3r_ros.training.trainer import learning_rate, make_optimizers, train
from fast3r_ros.training.training_config import read_config

REPOSITORY = Path(__file__).parents[2]


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

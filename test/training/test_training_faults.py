"""Faults of a training run: damaged configurations and states, full disks, kills.

FAST3R_FAULTS=1000 mutates as many, FAST3R_KILLS=100 kills as often; figures in docs/reliability.md.
"""

from __future__ import annotations

import json
import math
import os
import random
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fast3r_ros.cli import main
from fast3r_ros.errors import UserError
from fast3r_ros.model import Fast3R
from fast3r_ros.training import zero
from fast3r_ros.training.processes import join_processes
from fast3r_ros.training.state import load_state, save_state
from fast3r_ros.training.trainer import train
from fast3r_ros.training.training_config import TrainConfig, config_from_dict, read_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]  # as in the killed processes

FAULTS = int(os.environ.get("FAST3R_FAULTS", "60"))
KILLS = int(os.environ.get("FAST3R_KILLS", "1"))
CONTENT: dict[str, Any] = {
    "seed": 3,
    "model": {
        "encoder_args": {"embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": 32},
        "decoder_args": {"embed_dim": 16, "enc_embed_dim": 16, "depth": 10, "num_heads": 2},
        "head_args": {"dpt_reassemble_dims": [4, 4, 4, 4], "dpt_feature_dim": 4, "dpt_last_dim": 4},
    },
    "data": {"width": 32, "height": 32, "turn": [0, 8], "noise": 0.02},
    "curriculum": [{"from_step": 0, "views": [2]}, {"from_step": 2, "views": [2, 3]}],
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 4, "ema": 0.9, "betas": [0.9, 0.95]},
    "run": {
        "steps": 2 + KILLS,
        "views_per_step": 6,
        "precision": "float32",
        "log_every": 1,
        "checkpoint_every": 1,
        "evaluate_every": 100,
        "evaluate_scenes": 1,
    },
}
campaign = settings(
    max_examples=FAULTS, deadline=None, derandomize=FAULTS < 1000, suppress_health_check=list(HealthCheck)
)


def with_value(section: str, key: str, value: Any) -> dict[str, Any]:
    return {**CONTENT, section: {**CONTENT[section], key: value}}


def attempt(call: Callable[[], Any]) -> tuple[Any, str]:
    """(the result of a call, ""), or (None, the one line that it ended with)."""
    try:
        return call(), ""
    except UserError as error:
        line = str(error)
    assert "\n" not in line
    assert len(line) < 1200
    return None, line


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("optimizer", "learning_rate", math.nan),
        ("optimizer", "learning_rate", -1.0),
        ("optimizer", "learning_rate", "fast"),
        ("optimizer", "betas", [0.9, 1.0]),
        ("optimizer", "betas", [0.9]),
        ("optimizer", "betas", {"a": 1}),
        ("optimizer", "clip", 0),
        ("optimizer", "ema", 1.5),
        ("optimizer", "kind", ["adamw"]),
        ("data", "width", 10**9),
        ("data", "width", 40),
        ("data", "height", -32),
        ("data", "horizontal_fov", [80, 60]),
        ("data", "horizontal_fov", [0, 180]),
        ("data", "noise", math.inf),
        ("data", "walks", 0.99),
        ("run", "steps", 0),
        ("run", "steps", 10**40),
        ("run", "log_every", 0),
        ("run", "checkpoint_every", -5),
        ("run", "accumulation", 0),
        ("run", "views_per_step", True),
        ("run", "initial_weights", 5),
        ("run", "attention", "fast"),
        ("run", "recompute", "yes please"),
    ],
)
def test_an_absurd_value_gives_a_one_line_error_with_its_key(section: str, key: str, value: Any) -> None:
    _, line = attempt(lambda: config_from_dict(with_value(section, key, value), "train.yaml"))
    assert f"{section}" in line
    assert key in line


@pytest.mark.parametrize(
    "section",
    [
        {"curriculum": []},
        {"curriculum": 3},
        {"curriculum": [{"views": []}]},
        {"curriculum": [{"views": [0]}]},
        {"curriculum": [{"views": 2}]},
        {"curriculum": [{"from_step": 5}]},
        {"curriculum": [{"from_step": 0}, {"from_step": 0}]},
        {"curriculum": [{}] * 2000},
        {"recorded": {"dataset": "scannet"}},
        {"recorded": [{"share": math.nan}]},
        {"seed": -1},
        {"seed": "a"},
        {"seed": 10**30},
        {"model": None},
        {"model": []},
        {"data": []},
        {"optimizer": "adamw"},
        {1: 2},
        {None: 2},
        {"dta": {}},
    ],
)
def test_an_absurd_section_gives_a_one_line_error(section: dict[Any, Any]) -> None:
    config, line = attempt(lambda: config_from_dict({**CONTENT, **section}, "train.yaml"))
    assert config is None
    assert line.startswith("train.yaml")


LAUGHS = "\n".join(
    ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
)
BASE = yaml.safe_dump(CONTENT)


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS + "\nmodel: *a29\n",
        LAUGHS + "\nmodel: {encoder_args: *a29, decoder_args: *a29, head_args: *a29}\n",
        BASE + LAUGHS.replace("a0:", "data:", 1),
        BASE.replace("learning_rate: 0.001", "learning_rate: &x [*x]"),
        "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 900)),
        "{" * 9 + "a: 1," * 5000,
        BASE + "more: &x {y: *x}\n",
        BASE.replace("seed: 3", "seed: 2001-13-45"),
        BASE.replace("seed: 3", "seed: 0x" + "f" * 20000),
        BASE.replace("seed: 3", "seed: !!python/object/apply:os.system ['true']"),
        "[" * 20000,
        "{a: " * 5000,
        "- " * 20000,
        "model: {? [a]: b}",
        BASE + "seed: 4\n",
        BASE.replace("learning_rate:", "ema: 0.5\n  learning_rate:"),
        "a: b: c",
        "\t",
        "model: \x00",
        "%YAML 9.9\n---\nmodel: 1",
        "x" * (1 << 17),
        "",
        "model: {}",
    ],
    ids=lambda text: repr(text[:25]),
)
def test_a_malicious_yaml_quickly_gives_a_one_line_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "train.yaml").write_text(text)
    before = time.process_time()
    config, line = attempt(lambda: read_config(tmp_path / "train.yaml"))
    assert config is None
    assert "train.yaml" in line
    assert time.process_time() - before < 5  # a second where nothing else runs


def test_numbers_that_yaml_reads_as_text_are_accepted(tmp_path: Path) -> None:
    text = BASE.replace("learning_rate: 0.001", "learning_rate: 1e-3")
    assert isinstance(yaml.safe_load(text)["optimizer"]["learning_rate"], str)
    (tmp_path / "train.yaml").write_text(text)
    assert read_config(tmp_path / "train.yaml").optimizer.learning_rate == 1e-3


NUMBERS = st.sampled_from([0, -1, 1, 7, 10**9, 10**40, 0.5, 1e300, math.nan, math.inf, True])
ANYTHING = st.one_of(
    NUMBERS,
    st.integers(1, 100),
    st.floats(0, 1),
    st.text(max_size=4),
    st.none(),
    st.lists(NUMBERS, max_size=3),
    st.dictionaries(st.text(max_size=2), NUMBERS, max_size=2),
)


@campaign
@given(st.data())
def test_mutated_configurations_load_equal_or_are_one_line(data: st.DataObject) -> None:
    content: dict[str, Any] = json.loads(json.dumps(CONTENT))
    for _ in range(data.draw(st.integers(1, 3))):
        section = data.draw(st.sampled_from([*CONTENT, "recorded"]))
        place = content.get(section)
        if isinstance(place, list) and place and isinstance(place[0], dict):
            place = place[data.draw(st.integers(0, len(place) - 1))]
        if isinstance(place, dict) and place and data.draw(st.booleans()):
            place[data.draw(st.sampled_from(sorted(place)))] = data.draw(ANYTHING)
        else:
            content[section] = data.draw(ANYTHING)
    config, _ = attempt(lambda: config_from_dict(content, "train.yaml"))
    assert config is None or config == config_from_dict(content, "train.yaml")


# ---------------------------------------------------------------- states


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return config_from_dict(CONTENT, "test")


@pytest.fixture(scope="module")
def finished(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("finished")
    train(config, folder, join_processes("cpu"))
    return folder


def drop(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def spoil_weight(value: Callable[[torch.Tensor], Any]) -> Callable[[dict[str, Any]], Any]:
    def edit(state: dict[str, Any]) -> dict[str, Any]:
        name, tensor = next(iter(state["network"].items()))
        return {**state, "network": {**state["network"], name: value(tensor)}}

    return edit


SPOILT: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no network": drop("network"),
    "no average": drop("average"),
    "no step": drop("step"),
    "step text": lambda state: {**state, "step": "8"},
    "step negative": lambda state: {**state, "step": -8},
    "network a number": lambda state: {**state, "network": 3},
    "network empty": lambda state: {**state, "network": {}},
    "average empty": lambda state: {**state, "average": {}},
    "average a list": lambda state: {**state, "average": [1]},
    "optimizer empty": lambda state: {**state, "optimizer": {}},
    "optimizer a number": lambda state: {**state, "optimizer": 5},
    "a weight NaN": spoil_weight(lambda tensor: tensor * math.nan),
    "a weight of another shape": spoil_weight(lambda tensor: tensor[..., None]),
    "a weight text": spoil_weight(lambda tensor: "text"),
    "a list": lambda state: [1],
    "a tensor": lambda state: torch.zeros(3),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_corrupt_state_gives_a_one_line_error(
    config: TrainConfig, finished: Path, tmp_path: Path, name: str
) -> None:
    state = load_state(finished)
    assert state is not None
    torch.save(SPOILT[name](state), tmp_path / "state-00000008.pt")
    _, line = attempt(lambda: train(config, tmp_path, join_processes("cpu"), resume=True))
    assert "state" in line


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + bytes(100)])
def test_a_damaged_state_gives_a_one_line_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state-00000008.pt").write_bytes(content)
    _, line = attempt(lambda: load_state(tmp_path))
    assert "resume from an older one" in line


# ---------------------------------------------------------------- disks and kills


@pytest.fixture
def limited() -> Iterator[Callable[[int], None]]:
    """Limits the size of this process's files, like a full disk at any write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_older_states_and_nothing_of_the_new(
    tmp_path: Path, limited: Callable[[int], None]
) -> None:
    content = {"x": torch.arange(10**5)}
    save_state(tmp_path, 1, content)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for most in (0, 10, 1000, 10**5, len(before["state-00000001.pt"]) - 1):
        limited(most)
        _, line = attempt(lambda: save_state(tmp_path, 2, content))
        assert "cannot write" in line
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class Shards:
    """Writes like a DeepSpeed engine: a folder per tag, with files of the model and of each rank."""

    global_rank = 0

    def save_checkpoint(self, folder: str, tag: str, save_latest: bool) -> None:
        place = Path(folder) / tag
        place.mkdir(parents=True, exist_ok=True)
        torch.save({"x": torch.arange(10)}, place / "mp_rank_00_model_states.pt")
        torch.save({"x": torch.arange(10**4)}, place / "zero_pp_rank_0_mp_rank_00_optim_states.pt")


def test_a_full_disk_leaves_the_older_shards_and_nothing_of_the_new(
    tmp_path: Path, limited: Callable[[int], None]
) -> None:
    for step in (1, 2):
        zero.save(Shards(), tmp_path, step)
    before = {path: path.stat().st_size for path in tmp_path.rglob("*.pt")}
    assert len(before) == 4
    for most in (0, 10, 10_000):  # neither, a part of one, one of the two files
        limited(most)
        _, line = attempt(lambda: zero.save(Shards(), tmp_path, 3))
        assert "00000003: the disk is full" in line
        assert {path: path.stat().st_size for path in tmp_path.rglob("*.pt")} == before
        assert sorted(path.name for path in (tmp_path / zero.FOLDER).iterdir()) == ["00000001", "00000002"]


def test_training_on_a_full_disk_ends_with_one_line_and_leaves_no_part(
    tmp_path: Path, limited: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.yaml").write_text(BASE)
    limited(20_000)
    config, run = str(tmp_path / "train.yaml"), tmp_path / "run"
    assert main(["train", "--device", "cpu", "--config", config, "--output", str(run)]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "cannot write" in last
    left = [path for path in run.rglob("*") if "state" in path.name or "model" in path.name]
    assert left == []


TRAIN_ON = """
import sys
from pathlib import Path
from fast3r_ros.training.processes import join_processes
from fast3r_ros.training.trainer import train
from fast3r_ros.training.training_config import read_config
config, output = read_config(Path(sys.argv[2])), Path(sys.argv[3])
def rehearse():
    train(config, output.with_name("rehearsed"), join_processes("cpu"), minutes=1e-9)
def work():
    train(config, output, join_processes("cpu"), resume=True)
"""


def assert_same_weights(run: Path, other_run: Path) -> None:
    ours, theirs = (Fast3R.from_pretrained(folder / "model") for folder in (run, other_run))
    for (name, own), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(own, other, atol=0, rtol=0, msg=name)


def test_training_killed_between_its_last_state_and_the_export_exports_it_when_resumed(
    config: TrainConfig, finished: Path, tmp_path: Path
) -> None:
    shorter = replace(config, run=replace(config.run, steps=config.run.steps - 1))
    train(shorter, tmp_path, join_processes("cpu"))
    shutil.copy(finished / f"state-{config.run.steps:08d}.pt", tmp_path)
    metrics = train(config, tmp_path, join_processes("cpu"), resume=True)
    assert_same_weights(tmp_path, finished)
    row = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert {name: row[name] for name in metrics} == metrics != {}


def test_training_killed_at_random_resumes_equal(
    config: TrainConfig, finished: Path, tmp_path: Path, kills: Callable[..., Iterator[bool]]
) -> None:
    """After about as many calls as a run of one step makes, so that states are written in between."""
    (tmp_path / "train.yaml").write_text(BASE)
    run, rng = tmp_path / "run", random.Random(2)
    shares = [rng.uniform(0.7, 1.7) for _ in range(KILLS)]
    for _ in kills(TRAIN_ON, shares, tmp_path / "train.yaml", run):
        assert load_state(run) is not None or not list(run.glob("state-*.pt"))
    train(config, run, join_processes("cpu"), resume=True)
    assert_same_weights(run, finished)
    assert not list(run.glob(".*"))

"""Damaged checkpoints and configurations: each loads unchanged or quickly gives a one-line error.

FAST3R_FAULTS=1000 mutates as many; figures in docs/reliability.md.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_model import small_config, small_model

from fast3r_ros.errors import UserError
from fast3r_ros.model import Fast3R, Fast3RConfig
from fast3r_ros.model.checkpoint import read_pickle

pytestmark = pytest.mark.slow

FAULTS = int(os.environ.get("FAST3R_FAULTS", "60"))
CONFIG = json.loads(json.dumps(small_config().to_dict()))
CPU_SECONDS = 1.0  # processor time of a rejection, because other programs run at the same time
campaign = settings(
    max_examples=FAULTS, deadline=None, derandomize=FAULTS < 1000, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    small_model().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    shutil.copytree(good, tmp_path / "model")
    return tmp_path / "model"


def refused(call: Callable[[], Any]) -> str:
    """The one-line error of a call, in little time and memory."""
    tracemalloc.start()
    before = time.process_time()
    try:
        with pytest.raises(UserError) as caught:
            call()
        seconds, (_, peak) = time.process_time() - before, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 1200
    assert peak < 100e6
    assert seconds < 10 * CPU_SECONDS  # tracing takes most of it
    return text


def attempt(call: Callable[[], Any]) -> Any:
    """The result of a call, or None when it ended with one line."""
    try:
        return call()
    except UserError as error:
        line = str(error)
    assert "\n" not in line
    assert len(line) < 1200
    return None


VALUES: list[Any] = [
    *(0, -1, 10**9, 2**31, 10**40, 0.5, 1e300, math.nan, math.inf, -math.inf, True, None),
    *("", "1", "nan", "a\nb", "x" * 10**5, [], [1], {}, {"a": 1}, [[[]]]),
]


@pytest.mark.parametrize("group", list(CONFIG))
def test_no_absurd_value_of_any_key_is_built(group: str) -> None:
    """Any value is rejected with its key, or gives a network."""
    small = {**CONFIG, "head_args": {**CONFIG["head_args"]}}
    for key in CONFIG[group]:
        for value in VALUES:
            content = {**small, group: {**small[group], key: value}}
            config = attempt(lambda content=content: Fast3RConfig.from_dict(content))
            if config is not None:
                assert config.weights < 20e9
                assert Fast3RConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("encoder_args", "depth", 10**9),
        ("encoder_args", "num_heads", 0),
        ("encoder_args", "embed_dim", -48),
        ("encoder_args", "mlp_ratio", math.nan),
        ("encoder_args", "mlp_ratio", -4.0),
        ("encoder_args", "pos_embed", "RoPE0"),
        ("encoder_args", "pos_embed", "RoPE²"),
        ("encoder_args", "pos_embed", "RoPE" + "9" * 400),
        ("decoder_args", "depth", 10**9),
        ("decoder_args", "num_heads", 0),
        ("decoder_args", "num_heads", -4),
        ("decoder_args", "mlp_ratio", math.inf),
        ("head_args", "dpt_reassemble_dims", [8, 12, 16, 10**9]),
        ("head_args", "dpt_feature_dim", 0),
        ("head_args", "conf_mode", ["exp", math.nan, math.inf]),
        ("head_args", "conf_mode", ["exp", 5, 1]),
        ("head_args", "with_local_head", "no"),
    ],
)
def test_an_absurd_configuration_gives_a_one_line_error_with_its_key(
    folder: Path, group: str, key: str, value: Any
) -> None:
    content = {**CONFIG, group: {**CONFIG[group], key: value}}
    (folder / "config.json").write_text(json.dumps(content))
    assert key in refused(lambda: Fast3R.from_pretrained(folder))


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 200_000,
        b'{"encoder_args":' * 50_000,
        b"\xff\xfe",
        b"",
        b"null",
        b'{"encoder_args": 1, "decoder_args": 2, "head_args": 3}',
        b'{"encoder_args": {"depth": ' + b"9" * 10_000 + b"}}",
        b" " * (2 << 20) + b"{}",
        json.dumps(CONFIG).encode()[:-1] + b', "head_args": {}}',
    ],
    ids=lambda text: repr(text[:20]),
)
def test_an_invalid_configuration_gives_a_one_line_error(folder: Path, text: bytes) -> None:
    (folder / "config.json").write_bytes(text)
    refused(lambda: Fast3R.from_pretrained(folder))


def change(path: Path, edit: Callable[[torch.Tensor], torch.Tensor]) -> str:
    tensors = load_file(path)
    name = sorted(tensors)[7]
    save_file({**tensors, name: edit(tensors[name]).contiguous()}, path)
    return name


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.to(torch.int8), "not of floating-point numbers"),
        (lambda t: t.to(torch.int64), "not of floating-point numbers"),
        (lambda t: t > 0, "not of floating-point numbers"),
        (lambda t: t.to(torch.complex64), "is damaged or not a safetensors file"),
        (lambda t: t * math.nan, "with NaN or infinity"),
        (lambda t: t.double() + 1e300, "with NaN or infinity"),  # beyond float32
        (lambda t: t[..., None], "of another shape"),
    ],
)
def test_weights_that_are_no_numbers_are_named(folder: Path, edit: Any, words: str) -> None:
    name = change(folder / "model.safetensors", edit)
    text = refused(lambda: Fast3R.from_pretrained(folder))
    assert words in text
    assert name in text


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {}},
        {"weight_map": {"a": 3}},
        {"weight_map": {"a": None, "b": "x"}},
        {"weight_map": {"a": []}},
        {"weight_map": {"a": "../model.safetensors"}},
        {"weight_map": {"a": "/etc/passwd"}},
        {"weight_map": {"a": "."}},
        {"weight_map": {"a": "a\0b"}},
        {"weight_map": {"a": "x" * 5000}},
        {"weight_map": {"a": "config.json"}},
        {"weight_map": []},
        {},
        [],
        None,
    ],
)
def test_an_index_without_shards_gives_a_one_line_error(folder: Path, index: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(lambda: Fast3R.from_pretrained(folder))


def test_only_regular_files_are_read(folder: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.move(folder / name, folder / "aside")
        for make in (
            os.mkfifo,
            os.mkdir,
            lambda path: os.symlink(path, path),
            lambda p: os.symlink("/dev/zero", p),
        ):
            make(folder / name)
            refused(lambda: Fast3R.from_pretrained(folder))
            (shutil.rmtree if (folder / name).is_dir() else os.unlink)(folder / name)
        shutil.move(folder / "aside", folder / name)
    for name in ("x" * 5000, "a\0b", ".", "/dev/zero", "~nobody/x"):
        refused(lambda name=name: Fast3R.from_pretrained(name))


def test_tensors_without_values_are_rejected(folder: Path) -> None:
    """Like a network on the device meta, saved by PyTorch."""
    tensors = load_file(folder / "model.safetensors")
    name = sorted(tensors)[7]
    torch.save({**tensors, name: tensors[name].to("meta")}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert f"without values: {name}" in refused(lambda: Fast3R.from_pretrained(folder))


def test_a_pickle_that_unfolds_is_rejected(folder: Path) -> None:
    torch.save({"a": torch.zeros(1 << 24)}, folder / "plain.bin")
    with (
        zipfile.ZipFile(folder / "plain.bin") as archive,
        zipfile.ZipFile(folder / "bomb.bin", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in archive.infolist():
            bomb.writestr(entry.filename, archive.read(entry))
    assert (folder / "bomb.bin").stat().st_size < 1e6
    assert "compressed" in refused(lambda: read_pickle(folder / "bomb.bin"))


# ---------------------------------------------------------------- mutations

NUMBERS = st.sampled_from([v for v in VALUES if isinstance(v, (int, float))])
ANYTHING = st.one_of(
    NUMBERS, st.integers(1, 100), st.text(max_size=4), st.none(), st.lists(NUMBERS, max_size=4)
)


@campaign
@given(st.data())
def test_mutated_configurations_load_equal_or_are_one_line(data: st.DataObject) -> None:
    content: dict[str, Any] = json.loads(json.dumps(CONFIG))
    for _ in range(data.draw(st.integers(1, 3))):
        group = data.draw(st.sampled_from(list(CONFIG)))
        if not isinstance(content.get(group), dict):
            continue
        action = data.draw(st.sampled_from(["value", "drop", "group", "more"]))
        key = data.draw(st.sampled_from(list(CONFIG[group])))
        if action == "group":
            content[group] = data.draw(ANYTHING)
        elif action == "drop":
            content[group].pop(key, None)
        else:
            content[group][key if action == "value" else data.draw(st.text(max_size=5))] = data.draw(ANYTHING)
    config = attempt(lambda: Fast3RConfig.from_dict(content))
    if config is None:
        return
    assert Fast3RConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    if config.weights < 1e8:
        with torch.device("meta"):
            Fast3R(config)


@campaign
@given(st.data())
def test_mutated_weights_load_equal_or_are_one_line(
    good: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "mutated"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        end = data.draw(st.sampled_from([8, header, len(content)]))
        place = data.draw(st.integers(0, max(0, min(end, len(content)) - 1)))
        action = data.draw(st.sampled_from(["flip", "digit", "cut", "double"]))
        if action == "cut":
            del content[place : place + data.draw(st.integers(1, 100))]
        elif action == "double":
            content[place:place] = content[place : place + 50]
        elif content:
            content[place] = ord("9") if action == "digit" else content[place] ^ 255
    path.write_bytes(bytes(content))
    model = attempt(lambda: Fast3R.from_pretrained(folder))
    if model is None:
        return
    model.save_pretrained(folder / "again")
    again = Fast3R.from_pretrained(folder / "again").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


# ---------------------------------------------------------------- disks and kills


@pytest.fixture
def limited() -> Iterator[Callable[[int], None]]:
    """Limits the size of this process's files, like a full disk at any write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_model_and_nothing_else(
    folder: Path, limited: Callable[[int], None]
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    size = (folder / "model.safetensors").stat().st_size
    model = small_model()
    for most in (0, 100, 1000, size // 2, size - 1):
        limited(most)
        for target in (folder, folder.parent / "new"):
            with pytest.raises(UserError, match="cannot write") as caught:
                model.save_pretrained(target)
            assert "\n" not in str(caught.value)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert not list(folder.parent.joinpath("new").glob("*"))


EXPORT = """
import sys
from pathlib import Path
from small_model import small_model
model = small_model()
def rehearse():
    model.save_pretrained(Path(sys.argv[2] + "_rehearsed"))
def work():
    model.save_pretrained(Path(sys.argv[2]))
"""


def test_a_killed_export_leaves_a_model(folder: Path, kills: Callable[..., Iterator[bool]]) -> None:
    reference = Fast3R.from_pretrained(folder).state_dict()
    for killed in kills(EXPORT, None, folder):
        assert killed
        loaded = Fast3R.from_pretrained(folder).state_dict()
        assert all(torch.equal(reference[name], value) for name, value in loaded.items())

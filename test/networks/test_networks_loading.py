"""The network of a model's name, and the error for an unknown one."""

from __future__ import annotations

from pathlib import Path

import pytest

from fast3r_ros.cli import main
from fast3r_ros.errors import UserError
from fast3r_ros.mapping.network import Fast3RNetwork
from fast3r_ros.networks import NetworkOptions, load_network, split_model


@pytest.mark.parametrize(
    ("model", "network", "checkpoint"),
    [
        ("demo", "fast3r", "demo"),
        ("fast3r:demo", "fast3r", "demo"),
        ("toy:small", "toy", "small"),
        ("toy:", "toy", ""),
        ("toy:owner/name@v1", "toy", "owner/name@v1"),
        ("jedyang97/Fast3R_ViT_Large_512", "fast3r", "jedyang97/Fast3R_ViT_Large_512"),
        ("https://huggingface.co/owner/name", "fast3r", "https://huggingface.co/owner/name"),
        ("./runs/12:30", "fast3r", "./runs/12:30"),
    ],
)
def test_names(model: str, network: str, checkpoint: str) -> None:
    assert split_model(model) == (network, checkpoint)


def test_a_folder_that_is_there_is_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run:1").mkdir()
    monkeypatch.chdir(tmp_path)
    assert split_model("run:1") == ("fast3r", "run:1")


@pytest.mark.parametrize("command", ["reconstruct", "evaluate"])
def test_an_unknown_network_lists_the_known_ones(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ["synthetic:2"] if command == "reconstruct" else ["--scenes=1"]
    assert main([command, *source, "--model=none:small", f"--output={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "'none'" in error
    assert "fast3r" in error
    assert not (tmp_path / "out").exists()


def test_the_image_size_reaches_the_network() -> None:
    network = load_network("demo", NetworkOptions(device="cpu", image_size=64))
    assert isinstance(network, Fast3RNetwork)
    assert network._image_size == 64


def write_package(folder: Path, name: str, value: str, code: str) -> None:
    """A package as pip installs it: a module, and metadata with an entry point."""
    (folder / f"{value.partition(':')[0]}.py").write_text(code)
    about = folder / f"{name}_networks-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-networks\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[fast3r_ros.networks]\n{name} = {value}\n")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import no_such_module\n", "package broken-networks cannot be loaded.*no_such_module"),
        ("x = 1\n", "package broken-networks cannot be loaded.*load"),
        ("def load(checkpoint, options):\n    raise RuntimeError('no room')\n", "on cpu: no room"),
    ],
)
def test_a_package_that_fails_is_named(
    code: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"broken_{abs(hash(code))}"
    write_package(tmp_path, "broken", f"{module}:load", code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=words):
        load_network("broken:x", NetworkOptions(device="cpu"))


def test_options_of_fast3r_are_rejected_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path, "plain", "plain_networks:load", "def load(checkpoint, options): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="accelerate merge=2 is for Fast3R"):
        load_network("plain:x", NetworkOptions(device="cpu", accelerate="merge=2"))
    with pytest.raises(UserError, match="parallel tensor is for Fast3R"):
        load_network("plain:x", NetworkOptions(device="cpu", parallel="tensor"))


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="toaster"):
        load_network("demo", NetworkOptions(device="toaster"))

"""Checkpoints: every known layout, and files that must be rejected with a useful line."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_model import small_config, small_model
from torch import Tensor

from fast3r_ros.errors import UserError
from fast3r_ros.model import Fast3R, checkpoint
from fast3r_ros.model.checkpoint import aliases, initialise_from_dust3r
from fast3r_ros.model.layers import Attention

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> Fast3R:
    return small_model()


@pytest.fixture
def directory(model: Fast3R, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path)
    return tmp_path


def without_aliases(state: State) -> State:
    twice = aliases(state)
    return {key: tensor.clone() for key, tensor in state.items() if key not in twice}


def assert_equal(ours: Fast3R, reference: Fast3R) -> None:
    for (name, a), (other, b) in zip(ours.state_dict().items(), reference.state_dict().items(), strict=True):
        assert name == other
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_written_directory_has_the_official_layout_and_reads_back(model: Fast3R, directory: Path) -> None:
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "model.safetensors"]
    with safe_open(directory / "model.safetensors", "pt") as file:
        metadata, keys = file.metadata(), set(file.keys())
    modes = {path.stat().st_mode for path in directory.iterdir()}
    assert len(modes) == 1
    state = model.state_dict()
    first_names = aliases(state)
    assert keys == set(state) - set(first_names)
    assert metadata == {"format": "pt", **first_names}
    assert len(first_names) == 8
    assert set(json.loads((directory / "config.json").read_text())) == {
        "encoder_args",
        "decoder_args",
        "head_args",
    }
    loaded = Fast3R.from_pretrained(directory)
    assert_equal(loaded, model)
    assert not loaded.training
    assert loaded.config == model.config


def test_loading_casts_and_chooses_attention(directory: Path) -> None:
    loaded = Fast3R.from_pretrained(str(directory), dtype=torch.bfloat16, attention="math")
    assert {weight.dtype for weight in loaded.parameters()} == {torch.bfloat16}
    assert {module.kernel for module in loaded.modules() if isinstance(module, Attention)} == {"math"}
    with pytest.raises(UserError, match="attention is 'fast'"):
        Fast3R.from_pretrained(directory, attention="fast")


def shard(state: State, directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    state = without_aliases(state)
    names = sorted(state)
    parts = {f"model-0000{number + 1}-of-00003.safetensors": names[number::3] for number in range(3)}
    for name, keys in parts.items():
        save_file({key: state[key] for key in keys}, directory / name)
    weight_map = {key: name for name, keys in parts.items() for key in keys}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def lightning(state: State, directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    content = {f"net.{key}": tensor for key, tensor in state.items()}
    content |= {"epoch_fraction": torch.tensor(0.5), "train_total_images": torch.tensor(7)}
    torch.save({"state_dict": content, "epoch": 3}, directory / "pytorch_model.bin")


def deepspeed(state: State, directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    content = {f"_forward_module.net.{key}": tensor for key, tensor in without_aliases(state).items()}
    torch.save(content, directory / "pytorch_model.bin")


def with_aliases_only(state: State, directory: Path) -> None:
    first_names = set(aliases(state).values())
    content = {key: tensor.clone() for key, tensor in state.items() if key not in first_names}
    save_file(content, directory / "model.safetensors")


@pytest.mark.parametrize("layout", [shard, lightning, deepspeed, with_aliases_only])
def test_other_layouts(layout: Callable[[State, Path], None], model: Fast3R, directory: Path) -> None:
    layout(model.state_dict(), directory)
    assert_equal(Fast3R.from_pretrained(directory), model)


def test_a_single_file_takes_its_configuration_from_its_folder_or_from_the_caller(
    model: Fast3R, directory: Path, tmp_path: Path
) -> None:
    assert_equal(Fast3R.from_pretrained(directory / "model.safetensors"), model)
    (directory / "config.json").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors has no config\.json"):
        Fast3R.from_pretrained(directory / "model.safetensors")
    assert_equal(Fast3R.from_pretrained(directory / "model.safetensors", config=small_config()), model)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_keys(path: Path) -> None:
    save_file({key: tensor for key, tensor in load_file(path).items() if "dec_blocks.4" not in key}, path)


def add_key(path: Path) -> None:
    save_file(load_file(path) | {"encoder.mask_token": torch.zeros(3)}, path)


def change_shape(path: Path) -> None:
    save_file(load_file(path) | {"decoder.dec_norm.bias": torch.zeros(31)}, path)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (truncate, "is damaged"),
        (empty, "is damaged"),
        (drop_keys, r"12 missing: decoder\.dec_blocks\.4\.norm1\.weight, .*and 9 more"),
        (add_key, r"1 not expected: encoder\.mask_token"),
        (change_shape, r"1 of another shape: decoder\.dec_norm\.bias is \(31,\), expected \(32,\)"),
    ],
)
def test_a_bad_file_is_named_with_its_fault(
    spoil: Callable[[Path], None], complaint: str, directory: Path
) -> None:
    path = directory / "model.safetensors"
    spoil(path)
    with pytest.raises(UserError, match=complaint) as caught:
        Fast3R.from_pretrained(directory)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


class Payload:
    """Pickles to a call of `Path.touch`."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


def test_a_pickle_cannot_run_code(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    torch.save({"state_dict": {}, "more": Payload(directory / "proof")}, directory / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin .*could run code"):
        Fast3R.from_pretrained(directory)
    assert not (directory / "proof").exists()


def test_a_missing_shard_is_named(model: Fast3R, directory: Path) -> None:
    shard(model.state_dict(), directory)
    (directory / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00003"):
        Fast3R.from_pretrained(directory)


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weights"):
        Fast3R.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="neither demo"):
        Fast3R.from_pretrained("no-such-model")


def test_the_licence_is_printed_before_the_official_weights_are_downloaded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match="cannot get"):
        checkpoint.locate(checkpoint.OFFICIAL_NAME)
    assert "Noncommercial" in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/name", ("owner/name", None)),
        ("owner/name.v2@main", ("owner/name.v2", "main")),
        ("owner/name@0123abc", ("owner/name", "0123abc")),
        ("owner/name@refs/pr/3", ("owner/name", "refs/pr/3")),
        ("https://huggingface.co/owner/name", ("owner/name", None)),
        ("https://huggingface.co/owner/name/", ("owner/name", None)),
        ("https://hf.co/owner/name/tree/v1.0", ("owner/name", "v1.0")),
        ("https://huggingface.co/owner/name/blob/main/model.safetensors", ("owner/name", "main")),
        (
            "https://hf.co/owner/name/resolve/refs%2Fpr%2F3/config.json?download=true",
            ("owner/name", "refs/pr/3"),
        ),
        ("http://example.org/owner/name", None),
        ("owner/name@", None),
        ("a/b/c", None),
        ("./owner/name", None),
        ("~/name", None),
        ("owner/name with spaces", None),
    ],
)
def test_names_of_the_hub(text: str, expected: tuple[str, str | None] | None) -> None:
    assert checkpoint.hub_name(text) == expected


def test_an_incomplete_download_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--owner--name"
    snapshot = folder / "snapshots" / ("0" * 40)
    for path in (snapshot, folder / "refs", folder / "blobs"):
        path.mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (snapshot / "config.json").write_text("{}")
    (folder / "blobs" / "abc.incomplete").write_bytes(b"half")
    with pytest.raises(UserError, match=r"the download of 'owner/name' .* is incomplete"):
        checkpoint.locate("owner/name")
    with pytest.raises(UserError, match="cannot get 'owner/name@v2'"):
        checkpoint.locate("owner/name@v2")


@pytest.mark.parametrize("pinned", [True, False])
def test_the_official_name_means_one_revision_where_that_can_be_had(
    pinned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / f"models--{checkpoint.OFFICIAL_NAME.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    for revision in ["0" * 40, checkpoint.OFFICIAL_REVISION][: 1 + pinned]:
        (folder / "snapshots" / revision).mkdir(parents=True)
        (folder / "snapshots" / revision / "model.safetensors").touch()
    (found,) = checkpoint.locate(checkpoint.OFFICIAL_NAME).weights
    assert found.parent.name == (checkpoint.OFFICIAL_REVISION if pinned else "0" * 40)
    assert ("trying the newest revision" in caplog.text) == (not pinned)
    (other,) = checkpoint.locate(f"{checkpoint.OFFICIAL_NAME}@main").weights
    assert other.parent.name == "0" * 40


def dust3r_file(path: Path, source: Fast3R, head: bool) -> None:
    state = {}
    for key, tensor in source.state_dict().items():
        if key.startswith("encoder."):
            state[key.removeprefix("encoder.")] = tensor
        elif key.startswith("downstream_head.") and head:
            state[key.replace("downstream_head.", "downstream_head1.")] = tensor
    state["dec_blocks.0.norm1.weight"] = torch.ones(5)
    state["downstream_head2.dpt.head.0.weight"] = torch.ones(5)
    torch.save({"model": state, "args": argparse.Namespace(lr=1.0)}, path)


@pytest.mark.parametrize("head", [True, False])
def test_training_starts_from_a_dust3r_file(head: bool, tmp_path: Path) -> None:
    source = small_model()
    dust3r_file(tmp_path / "dust3r.pth", source, head)
    torch.manual_seed(9)
    model = Fast3R(small_config())
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    taken = initialise_from_dust3r(model, tmp_path / "dust3r.pth")
    expected = ("encoder.", "downstream_head.") if head else ("encoder.",)
    for key, tensor in model.state_dict().items():
        assert (key in taken) == key.startswith(expected)
        reference = source.state_dict() if key in taken else before
        torch.testing.assert_close(tensor, reference[key], rtol=0, atol=0)


def test_a_dust3r_file_of_another_size_is_rejected(tmp_path: Path) -> None:
    dust3r_file(tmp_path / "dust3r.pth", small_model(), head=True)
    model = Fast3R(small_config(encoder_embed_dim=64, decoder_enc_embed_dim=64))
    with pytest.raises(UserError, match=r"dust3r\.pth .*of another shape: encoder"):
        initialise_from_dust3r(model, tmp_path / "dust3r.pth")

"""Safetensors files: the package of that name and we read each other's files; invalid ones are rejected."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fast3r_ros.model.safetensors import read_safetensors, write_safetensors

TYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.bool),
]
TENSORS = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(TYPES), st.lists(st.integers(0, 4), max_size=3)),
    max_size=5,
)


def tensor(dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
    content = torch.arange(math.prod(shape) * dtype.itemsize, dtype=torch.uint8) % 2
    return content.view(dtype).reshape(shape)


def assert_equal(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert some.keys() == others.keys()
    for name, each in some.items():
        assert (each.dtype, each.shape) == (others[name].dtype, others[name].shape)
        assert each.flatten().view(torch.uint8).tolist() == others[name].flatten().view(torch.uint8).tolist()


@given(wanted=TENSORS)
@settings(max_examples=60, deadline=None)
def test_the_package_and_ours_read_each_other(wanted, tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("tensors")
    tensors = {name: tensor(*each) for name, each in wanted.items()}
    write_safetensors(folder / "ours", tensors, {"format": "pt", "ä": "ö"})
    save_file(tensors, folder / "theirs", {"format": "pt"})
    assert_equal(load_file(folder / "ours"), tensors)
    assert_equal(read_safetensors(folder / "ours"), tensors)
    assert_equal(read_safetensors(folder / "theirs"), tensors)
    with safe_open(folder / "ours", "pt") as file:
        assert file.metadata() == {"format": "pt", "ä": "ö"}


def test_a_view_is_written_as_it_is_seen(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    write_safetensors(tmp_path / "a", {"turned": whole.T, "part": whole[:, 1:3]}, {})
    assert torch.equal(load_file(tmp_path / "a")["turned"], whole.T)
    assert torch.equal(load_file(tmp_path / "a")["part"], whole[:, 1:3])
    with pytest.raises(ValueError, match="complex64"):
        write_safetensors(tmp_path / "b", {"z": torch.zeros(1, dtype=torch.complex64)}, {})


def file_of(header: object, data: bytes = b"", pad: int = 0) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * pad
    return struct.pack("<Q", len(text)) + text + data


def entry(**changes: object) -> dict[str, object]:
    return {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


def test_tensors_that_are_not_aligned_are_read(tmp_path):
    for pad in range(4):
        (tmp_path / "a").write_bytes(file_of(entry(), struct.pack("<2f", 1.5, -2), pad))
        assert read_safetensors(tmp_path / "a")["w"].tolist() == [1.5, -2]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x05",
        bytes(8),
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 3) + b"{}",
        file_of(b"\xff\xfe"),
        file_of(b"not json"),
        file_of(b"[" * 100_000),
        file_of(b"9" * 5000),
        file_of([]),
        file_of({}, b"more"),
        file_of({"__metadata__": {"a": 1}}),
        file_of({"__metadata__": 1}),
        file_of({"w": None}),
        file_of({"w": []}),
        file_of(entry(), bytes(7)),
        file_of(entry(), bytes(9)),
        file_of(entry(dtype="F33"), bytes(8)),
        file_of(entry(dtype=["F32"]), bytes(8)),
        file_of(entry(shape=[3]), bytes(8)),
        file_of(entry(shape=2), bytes(8)),
        file_of(entry(shape=[True, 2]), bytes(8)),
        file_of(entry(shape=[2.0]), bytes(8)),
        file_of(entry(shape=[-1, -2]), bytes(8)),
        file_of(entry(shape=[2**40, 2**40]), bytes(8)),
        file_of(entry(data_offsets=[8, 16]), bytes(16)),
        file_of(entry(data_offsets=[8, 0]), bytes(8)),
        file_of(entry(data_offsets=[-8, 0]), bytes(8)),
        file_of(entry(data_offsets=[0, 8, 9]), bytes(8)),
        file_of(entry(data_offsets="08"), bytes(8)),
        file_of({**entry(), "v": entry()["w"]}, bytes(8)),
        file_of({**entry(), "v": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)),
        file_of(
            b'{"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
        ),
    ],
)
def test_files_that_the_package_rejects_are_rejected(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=r"\w"):
        read_safetensors(tmp_path / "a")

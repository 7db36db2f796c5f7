"""Tensors in safetensors files: eight bytes of length, a JSON header, then the tensors' bytes.

The format is small, and robots' package lists do not include the package of that name.
https://github.com/huggingface/safetensors specifies valid files; invalid files are rejected here as well.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fast3r_ros.files import open_regular, unique_keys

_HEADER_BYTES = 1 << 24  # the official model's has 200 kB
_TYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool},
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, mapped into memory: a page is read on first use.

    Raises OSError when it cannot be opened and ValueError when it does not match its header exactly.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_BYTES):
            raise ValueError(f"its header has {length} bytes, the file {size}")
        header = _parsed(file.read(length))
    entries = {name: _Entry.of(name, entry) for name, entry in header.items() if name != "__metadata__"}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            raise ValueError(f"the bytes of {name[:60]!r} begin at {entry.begin} and not at {end}")
        end = entry.end
    start = 8 + length
    if start + end != size:
        raise ValueError(f"its tensors end at byte {start + end}, the file at {size}")
    content = (
        torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8) if end else torch.empty(0)
    )
    return {
        name: entry.tensor(content[start + entry.begin : start + entry.end])
        for name, entry in entries.items()
    }


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata like the package: wide types first, so that each is aligned.

    Raises OSError when the disk is full, and ValueError for a type that the format lacks.
    """
    unknown = [name for name, tensor in tensors.items() if tensor.dtype not in _NAMES]
    if unknown:
        raise ValueError(
            f"{unknown[0]} has type {tensors[unknown[0]].dtype}, which safetensors does not support"
        )
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        entry = {"dtype": _NAMES[tensors[name].dtype], "shape": list(tensors[name].shape)}
        header[name] = {**entry, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)


@dataclass(frozen=True)
class _Entry:
    """The type, shape and byte range (relative to the header's end) of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    @staticmethod
    def of(name: str, entry: Any) -> _Entry:
        """Check an entry of the header.  Raises ValueError."""
        label = repr(name[:60])
        try:
            dtype, shape, (begin, end) = _TYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the header's entry of {label} is {str(entry)[:80]!r}") from error
        numbers = [*shape, begin, end] if isinstance(shape, list) else [None]
        if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
            raise ValueError(f"shape or byte range of {label} are not whole numbers")
        if math.prod(shape) * dtype.itemsize != end - begin:
            raise ValueError(f"{label} of shape {str(shape)[:60]} has {end - begin} bytes")
        return _Entry(dtype, tuple(shape), begin, end)

    def tensor(self, content: Tensor) -> Tensor:
        """The bytes (N,) as the tensor; a copy if they are not aligned, as in old files."""
        if not len(content):
            return torch.empty(self.shape, dtype=self.dtype)
        aligned = content.storage_offset() % self.dtype.itemsize == 0
        return (content if aligned else content.clone()).view(self.dtype).view(self.shape)


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique_keys)
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not strings")
    return header

"""Clouds as PLY files: written binary, with colour and confidence; read in all three encodings."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fast3r_ros.errors import UserError
from fast3r_ros.files import one_line, open_regular, whole_file
from fast3r_ros.mapping.data import Cloud

_COLOURS = ("red", "green", "blue")
_COLOUR_NAMES = (
    ("r", "g", "b"),
    tuple(f"diffuse_{name}" for name in _COLOURS),
    _COLOURS,
)  # the last one wins
_SPLAT = ("f_dc_0", "f_dc_1", "f_dc_2")  # spherical harmonics of degree 0
_FLOAT_COLOUR = 2.0  # a splat's colour may be a little more than 1
_SPLAT_FACTOR = 0.5 / np.sqrt(np.pi)
_VERTEX = np.dtype(
    [*((name, "<f4") for name in "xyz"), *((name, "u1") for name in _COLOURS), ("confidence", "<f4")]
)
# PLY's names of number types, old and new -> NumPy's
_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"float": "f4", "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2"},
    **{"int32": "i4", "uint32": "u4", "float32": "f4", "float64": "f8"},
}
_NAMES = {"f4": "float", "u1": "uchar"}
_BYTE_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_LONGEST_LINE = 4096
_HEADER_LINES = 1000


def write_ply(path: str | Path, cloud: Cloud, *, comment: str = "") -> None:
    """Write `cloud` as a binary little-endian PLY with x y z (map frame), red green blue and confidence.

    comment: one line for the header, such as the unit of length.  Raises UserError when it cannot be written.
    """
    vertices = np.empty(len(cloud.points), _VERTEX)
    vertices["x"], vertices["y"], vertices["z"] = cloud.points.T
    vertices["red"], vertices["green"], vertices["blue"] = cloud.colors.T
    vertices["confidence"] = cloud.confidence
    properties = [f"property {_NAMES[_VERTEX[name].str[1:]]} {name}" for name in _VERTEX.names or ()]
    comments = [f"comment {' '.join(comment.split())}"] if comment else []
    header = ["ply", "format binary_little_endian 1.0", *comments, f"element vertex {len(vertices)}"]
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write("\n".join([*header, *properties, "end_header", ""]).encode("ascii", "replace"))
        file.write(vertices.tobytes())


def read_ply(path: str | Path) -> Cloud:
    """Read a PLY cloud of any program; missing colours become grey, missing confidence 1.

    Colours may be bytes, 16-bit numbers or floats (0 to 1, or 0 to 255 if any is that large), named red,
    diffuse_red or r, or those of Gaussian splats.  Raises UserError when the file is not a PLY, is truncated,
    or has no vertices with x, y and z.
    """
    try:
        with open_regular(path) as file:
            vertices = _read_vertices(file)
        names = vertices.dtype.names or ()
        missing = [name for name in "xyz" if name not in names]
        if missing:
            raise ValueError(f"its vertices have no {' '.join(missing)}")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is not a PLY point cloud: {one_line(error)}") from error
    with np.errstate(over="ignore"):  # a double beyond the range of a float becomes infinite
        points = np.stack([vertices[name].astype(np.float32) for name in "xyz"], 1)
    colors = np.full((len(points), 3), 128, np.uint8)
    for triple in _COLOUR_NAMES:
        if set(triple) <= set(names):
            colors = np.stack([_as_bytes(vertices[name]) for name in triple], 1)
    if set(_SPLAT) <= set(names):
        channels = [_as_bytes(0.5 + _SPLAT_FACTOR * vertices[name].astype(np.float64)) for name in _SPLAT]
        colors = np.stack(channels, 1)
    confidence = vertices["confidence"] if "confidence" in names else np.ones(len(points))
    return Cloud(points, colors, np.array(confidence, np.float32))


def _as_bytes(channel: NDArray[np.floating] | NDArray[np.integer]) -> NDArray[np.uint8]:
    """One colour as 0 to 255; floats range from 0 to 1 unless one is larger, 16-bit numbers to 65535."""
    values = channel
    if channel.dtype.kind == "f" and not (channel > _FLOAT_COLOUR).any():
        values = channel * 255.0
    elif channel.dtype.kind == "u" and channel.dtype.itemsize == 2 and (channel > 255).any():
        values = channel / 257.0
    return np.rint(np.clip(np.nan_to_num(values), 0, 255)).astype(np.uint8)


def _read_vertices(file: BinaryIO) -> NDArray[np.void]:
    """The element `vertex` as a structured array; ValueError when the file is truncated."""
    encoding, elements = _read_header(file)
    order = _BYTE_ORDERS[encoding]
    for name, count, properties in elements:
        lists = [each for each, kind in properties if kind == "list"]
        if lists and (encoding != "ascii" or name == "vertex"):
            raise ValueError(
                f"the list {lists[0]} of its element {name}, at or before the vertices, is unknown"
            )
        row = np.dtype([(each, order + _TYPES.get(kind, "f8")) for each, kind in properties])
        if name != "vertex":
            _skip(file, count, None if encoding == "ascii" else row.itemsize)
        elif encoding == "ascii":
            return _read_text(file, count, row)
        else:
            left = os.fstat(file.fileno()).st_size - file.tell()
            if count * row.itemsize > left:  # checked before allocating
                raise ValueError(f"it ends within its {count} vertices")
            return np.frombuffer(file.read(count * row.itemsize), row) if count else np.empty(0, row)
    raise ValueError("it has no element vertex")


def _read_header(file: BinaryIO) -> tuple[str, list[tuple[str, int, list[tuple[str, str]]]]]:
    """The encoding and the elements up to `vertex`: name, number of rows, (property, type) each."""
    if file.readline(_LONGEST_LINE).rstrip() != b"ply":
        raise ValueError("it does not begin with the line ply")
    encoding = ""
    elements: list[tuple[str, int, list[tuple[str, str]]]] = []
    for _ in range(_HEADER_LINES):
        line = file.readline(_LONGEST_LINE)
        words = line.decode("ascii", "replace").split()
        match words:
            case ["end_header"]:
                if encoding not in _BYTE_ORDERS:
                    raise ValueError(f"its format is {encoding[:40]!r}, not {', '.join(_BYTE_ORDERS)}")
                return encoding, elements
            case ["comment" | "obj_info", *_]:
                pass
            case ["format", word, _]:
                encoding = word
            case ["element", name, count] if count.isdecimal() and len(count) < 16:
                elements.append((name, int(count), []))
            case ["property", "list", _, _, name] if elements:
                elements[-1][2].append((name, "list"))
            case ["property", kind, name] if elements and kind in _TYPES:
                elements[-1][2].append((name, kind))
            case _:
                raise ValueError(f"its header has the line {line[:60].decode('ascii', 'replace').strip()!r}")
    raise ValueError("its header does not end")


def _skip(file: BinaryIO, count: int, row_bytes: int | None) -> None:
    """Skip `count` rows of `row_bytes` each; None: lines of text."""
    if row_bytes is not None:
        file.seek(min(count * row_bytes, os.fstat(file.fileno()).st_size), os.SEEK_CUR)
        return
    for _ in range(count):
        if not file.readline():
            return


def _read_text(file: BinaryIO, count: int, row: np.dtype[np.void]) -> NDArray[np.void]:
    lines = list(itertools.islice((line for line in file if line.strip()), count))
    if len(lines) < count:
        raise ValueError(f"it ends within its {count} vertices")
    if not count:
        return np.empty(0, row)
    # via float64, so that a colour written as 128.0 can be read
    table = np.loadtxt(lines, np.float64, comments=None, ndmin=2, encoding="ascii")
    if table.shape[1] != len(row.names or ()):
        raise ValueError(f"its vertices have {table.shape[1]} numbers and not {len(row.names or ())}")
    vertices = np.empty(count, np.dtype([(name, "f8") for name in row.names or ()]))
    for column, name in enumerate(row.names or ()):
        vertices[name] = table[:, column]
        if row[name].kind != "f" and any(name in triple for triple in _COLOUR_NAMES):
            deep = row[name].itemsize == 2 and (vertices[name] > 255).any()
            vertices[name] /= 65535.0 if deep else 255.0  # the range of float colours
    return vertices

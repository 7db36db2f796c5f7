"""Clouds as PCD files, the format of the Point Cloud Library."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fast3r_ros.errors import UserError
from fast3r_ros.files import whole_file
from fast3r_ros.mapping.data import Cloud

_POINT = np.dtype([("xyz", "<f4", 3), ("rgb", "<u4"), ("confidence", "<f4")])
LARGEST_RATIO = 264  # maximum of LZF: the longest copy is 264 bytes, encoded in three
_HEADER = """\
# .PCD v0.7 - Point Cloud Data file format
VERSION 0.7
FIELDS x y z rgb confidence
SIZE 4 4 4 4 4
TYPE F F F F F
COUNT 1 1 1 1 1
WIDTH {count}
HEIGHT 1
VIEWPOINT 0 0 0 1 0 0 0
POINTS {count}
DATA binary
"""


def write_pcd(path: str | Path, cloud: Cloud) -> None:
    """Write `cloud` as a binary PCD 0.7 with x y z (map frame), rgb and confidence.

    rgb is 0x00RRGGBB in the bits of a float, as in PCL.  Raises UserError when it cannot be written.
    """
    points = np.empty(len(cloud.points), _POINT)
    points["xyz"] = cloud.points
    red, green, blue = cloud.colors.astype(np.uint32).T
    points["rgb"] = red << 16 | green << 8 | blue
    points["confidence"] = cloud.confidence
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(_HEADER.format(count=len(points)).encode("ascii"))
        file.write(points.tobytes())


def read_pcd(path: str | Path) -> Cloud:
    """Read a PCD cloud of any program; missing colours become grey, missing confidence 1.

    Raises UserError when the file is not a PCD, is truncated or has no x, y and z.
    """
    try:
        with Path(path).open("rb") as file:
            header: dict[str, list[str]] = {}
            while "DATA" not in header:
                name, *values = file.readline(1000).decode("ascii").split() or [""]
                if not name:
                    raise ValueError("its header does not end")
                header[name] = values
            points = _read_points(header, file.read())
        xyz = np.stack([points[name] for name in "xyz"], 1).astype(np.float32)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a PCD point cloud that can be read: {error}") from error
    names = points.dtype.names or ()
    colors = np.full((len(xyz), 3), 128, np.uint8)
    packed_name = next((name for name in ("rgb", "rgba") if name in names), None)
    if packed_name is not None:
        packed = np.ascontiguousarray(points[packed_name]).view(np.uint32)
        colors = (packed[:, None] >> np.array([16, 8, 0], np.uint32)).astype(np.uint8)
    confidence = points["confidence"] if "confidence" in names else np.ones(len(xyz))
    return Cloud(xyz, colors, np.array(confidence, np.float32))


def _read_points(header: dict[str, list[str]], data: bytes) -> np.ndarray:
    """The points as a structured array; `rgb` stays bit-exact."""
    kinds = {"F": "f", "U": "u", "I": "i"}
    columns = zip(header["FIELDS"], header["TYPE"], header["SIZE"], strict=True)
    counts = [int(count) for count in header.get("COUNT", ["1"] * len(header["FIELDS"]))]
    point = np.dtype(
        [
            (name, f"<{kinds[kind]}{size}", *([(count,)] if count > 1 else []))
            for (name, kind, size), count in zip(columns, counts, strict=True)
        ]
    )
    count = int(header["POINTS"][0])
    if header["DATA"] == ["binary"]:
        return np.frombuffer(data, point, count)
    if header["DATA"] == ["ascii"]:
        return np.loadtxt(data.decode("ascii").splitlines(), dtype=point, ndmin=1)
    if header["DATA"] == ["binary_compressed"]:
        return _columns(_decompressed(data), point, count)
    raise ValueError(f"DATA {' '.join(header['DATA'])} is not supported")


def _columns(data: bytes, point: np.dtype, count: int) -> np.ndarray:
    """Points from PCL's compressed layout: one field for all points after the other."""
    if len(data) != point.itemsize * count:
        raise ValueError(f"it holds {len(data)} bytes for {count} points of {point.itemsize}")
    points, place = np.empty(count, point), 0
    for name in point.names or ():
        field = point[name]
        points[name] = np.frombuffer(data, field.base, count * int(np.prod(field.shape)), place).reshape(
            count, *field.shape
        )
        place += field.itemsize * count
    return points


def _decompressed(data: bytes) -> bytes:
    """The content of PCL's block: two sizes, then LZF (literal runs, and copies from what came before)."""
    packed_size, size = np.frombuffer(data, "<u4", 2)
    packed = data[8 : 8 + int(packed_size)]
    if len(packed) != packed_size or size > LARGEST_RATIO * max(int(packed_size), 1):
        raise ValueError(f"it is cut short, or claims {size} bytes in {packed_size}")
    content, place = bytearray(), 0
    while place < len(packed):
        control, place = packed[place], place + 1
        if control < 32:
            content += packed[place : place + control + 1]
            place += control + 1
            continue
        length = control >> 5
        if length == 7:
            length, place = length + packed[place], place + 1
        offset = ((control & 31) << 8 | packed[place]) + 1
        place += 1
        start = len(content) - offset
        if start < 0:
            raise ValueError("its compressed points are damaged")
        for index in range(start, start + length + 2):  # the copy may overlap its own output
            content.append(content[index])
    if len(content) != size:
        raise ValueError(f"its compressed points are {len(content)} bytes, it claims {size}")
    return bytes(content)

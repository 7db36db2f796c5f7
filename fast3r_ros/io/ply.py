"""Clouds as PLY files: binary, with colour and confidence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from plyfile import PlyData, PlyElement, PlyParseError

from fast3r_ros.errors import UserError
from fast3r_ros.files import whole_file
from fast3r_ros.mapping.data import Cloud

_COLOURS = ("red", "green", "blue")
_VERTEX = np.dtype(
    [*((name, "<f4") for name in "xyz"), *((name, "u1") for name in _COLOURS), ("confidence", "<f4")]
)


def write_ply(path: str | Path, cloud: Cloud, *, comment: str = "") -> None:
    """Write `cloud` as a binary little-endian PLY with x y z (map frame), red green blue and confidence.

    comment: one line for the header, such as the unit of length.  Raises UserError when it cannot be written.
    """
    vertices = np.empty(len(cloud.points), _VERTEX)
    vertices["x"], vertices["y"], vertices["z"] = cloud.points.T
    vertices["red"], vertices["green"], vertices["blue"] = cloud.colors.T
    vertices["confidence"] = cloud.confidence
    element = PlyElement.describe(vertices, "vertex")
    with whole_file(path) as temporary:
        PlyData([element], byte_order="<", comments=[comment] if comment else []).write(str(temporary))


def read_ply(path: str | Path) -> Cloud:
    """Read a PLY cloud, ours or another's; missing colours are grey, missing confidence is 1.

    Raises UserError when the file is no PLY or has no vertices with x, y and z.
    """
    try:
        vertices = PlyData.read(str(path))["vertex"].data
        names = vertices.dtype.names or ()
        points = np.stack([vertices[name] for name in "xyz"], 1).astype(np.float32)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (PlyParseError, KeyError, ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a PLY point cloud: {error}") from error
    colors = np.full((len(points), 3), 128, np.uint8)
    if set(_COLOURS) <= set(names):
        colors = np.stack([vertices[name] for name in _COLOURS], 1).astype(np.uint8)
    confidence = vertices["confidence"] if "confidence" in names else np.ones(len(points))
    return Cloud(points, colors, np.array(confidence, np.float32))

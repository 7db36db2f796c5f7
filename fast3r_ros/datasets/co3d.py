"""CO3Dv2: ROOT/<category>/frame_annotations.jgz and the images and depth maps that it lists.

Poses have the conventions of PyTorch3D: x_camera = x_world R + T with x left, y up, z forward, focal length
and principal point in `ndc_isotropic` units (half of the shorter side).  Depth PNGs hold float16 bit
patterns, to be multiplied by `scale_adjustment`.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fast3r_ros.datasets.posed import PosedFrame, PosedSequence, image_reader
from fast3r_ros.errors import UserError
from fast3r_ros.geometry.intrinsics import intrinsics_matrix
from fast3r_ros.geometry.rigid import inverse, rigid_matrix
from fast3r_ros.mapping.data import Float32, Float64

OPTICAL_FROM_PYTORCH3D = np.diag([-1.0, -1.0, 1.0])
FRAME_NS = 1_000_000_000


def sequences(root: Path) -> list[PosedSequence]:
    """One sequence per turntable video of every category."""
    found = []
    for path in sorted(root.glob("*/frame_annotations.jgz")):
        frames: dict[str, list[tuple[int, PosedFrame]]] = defaultdict(list)
        for entry in _read(path):
            try:
                frames[entry["sequence_name"]].append((entry["frame_number"], _frame(root, entry)))
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{path} has a frame that lacks something: {error!r}") from error
        for name, numbered in frames.items():
            ordered = tuple(frame for _, frame in sorted(numbered, key=lambda item: item[0]))
            found.append(PosedSequence(f"{path.parent.name}/{name}", ordered))
    return found


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return list(json.load(file))
    except (OSError, EOFError, ValueError, TypeError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _frame(root: Path, entry: dict[str, Any]) -> PosedFrame:
    height, width = entry["image"]["size"]
    depth = entry.get("depth")
    read_depth = None
    if depth and (root / depth["path"]).is_file():
        read_depth = _depth_reader(root / depth["path"], float(depth.get("scale_adjustment") or 1.0))
    return PosedFrame(
        stamp_ns=int(entry["frame_number"]) * FRAME_NS,
        world_from_camera=_pose(entry["viewpoint"]),
        intrinsics=_intrinsics(entry["viewpoint"], height, width),
        read_image=image_reader(root / entry["image"]["path"]),
        read_depth=read_depth,
    )


def _pose(viewpoint: dict[str, Any]) -> Float64:
    rotation = OPTICAL_FROM_PYTORCH3D @ np.array(viewpoint["R"], dtype=np.float64).T
    return inverse(
        rigid_matrix(rotation, OPTICAL_FROM_PYTORCH3D @ np.array(viewpoint["T"], dtype=np.float64))
    )


def _intrinsics(viewpoint: dict[str, Any], height: int, width: int) -> Float64:
    if viewpoint.get("intrinsics_format", "ndc_norm_image_bounds") == "ndc_isotropic":
        half = np.array([min(height, width), min(height, width)]) / 2
    else:
        half = np.array([width, height]) / 2
    focal = np.array(viewpoint["focal_length"]) * half
    principal = np.array([width, height]) / 2 - np.array(viewpoint["principal_point"]) * half
    return intrinsics_matrix((float(focal[0]), float(focal[1])), (float(principal[0]), float(principal[1])))


def _depth_reader(path: Path, scale: float) -> Callable[[], Float32]:
    def read() -> Float32:
        bits = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if bits is None or bits.dtype != np.uint16:
            raise UserError(f"{path} is no 16-bit depth PNG")
        depth = bits.view(np.float16).astype(np.float32) * scale
        return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))

    return read

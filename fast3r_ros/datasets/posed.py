"""The common form of all datasets: frames with pose and intrinsics, read from disk on demand."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fast3r_ros.errors import UserError, optional
from fast3r_ros.geometry.rigid import rigid_matrix
from fast3r_ros.mapping.data import Float32, Float64, UInt8


@dataclass(frozen=True)
class PosedFrame:
    """One image with its ground truth.

    world_from_camera: (4, 4) float64, x right, y down, z forward, metres.  intrinsics: (3, 3) for the image's
    pixels, pixel centres at integer + 0.5.  read_image: (H, W, 3) uint8 RGB.  read_depth: (H', W') float32
    z in metres over the same field of view, 0 where unknown; None when the dataset has none.
    """

    stamp_ns: int
    world_from_camera: Float64
    intrinsics: Float64
    read_image: Callable[[], UInt8]
    read_depth: Callable[[], Float32] | None = None


@dataclass(frozen=True)
class PosedSequence:
    """The frames of one camera in one scene, in order of time.  name: unique in its dataset, for tables."""

    name: str
    frames: tuple[PosedFrame, ...]


def image_reader(path: Path) -> Callable[[], UInt8]:
    """Reads an image file as RGB; raises UserError when it cannot."""

    def read() -> UInt8:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise UserError(f"cannot read the image {path}")
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)

    return read


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image file, from its header; raises UserError when it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the image {path}: {error}") from error


def depth_reader(path: Path, metres_per_unit: float, largest: float = np.inf) -> Callable[[], Float32]:
    """Reads a depth file (16-bit PNG, PFM, EXR, HDF5, COLMAP's .bin, .npy) as metres, or raises UserError.

    Values above `largest` (in the file's units) count as unknown, as 65535 does in 7-Scenes.
    """

    def read() -> Float32:
        try:
            depth = _depth_array(path)
        except (OSError, EOFError, ValueError, RuntimeError, KeyError) as error:
            raise UserError(f"cannot read the depth file {path}: {error}") from error
        if depth is None or depth.ndim != 2:
            raise UserError(f"{path} is not a depth map of one channel")
        depth = depth.astype(np.float32)
        return np.where(np.isfinite(depth) & (depth > 0) & (depth <= largest), depth * metres_per_unit, 0)

    return read


def _depth_array(path: Path) -> NDArray[Any] | None:
    """The content of a depth file; None when OpenCV cannot read it.  UserError when a package is missing."""
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".exr":  # OpenCV 5's wheels lack EXR
        with optional("OpenEXR", path.name):
            import OpenEXR
        channels = OpenEXR.File(str(path)).channels()
        return next(iter(channels.values())).pixels
    if path.suffix == ".h5":
        with optional("h5py", path.name):
            import h5py
        with h5py.File(path, "r") as file:
            return np.asarray(file["depth"])
    if path.suffix == ".bin":  # COLMAP: "width&height&channels&", then float32 by columns
        data = path.read_bytes()
        width, height, channels, values = data.split(b"&", 3)
        shape = (int(channels), int(height), int(width))
        return np.frombuffer(values, "<f4").reshape(shape)[0]
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def sample_depth(
    depth: Float32, image_shape: tuple[int, ...], target_from_image: Float64, shape: tuple[int, ...]
) -> Float32:
    """Depth (h, w) = `shape` at the nearest pixels of a depth map with the image's field of view.

    image_shape: (H, W, ...) of the image, which may differ from the depth map's.  target_from_image: (3, 3)
    pixel transform without rotation.
    """
    rows, columns = (
        (np.arange(shape[axis]) + 0.5 - target_from_image[1 - axis, 2])
        / target_from_image[1 - axis, 1 - axis]
        * (depth.shape[axis] / image_shape[axis])
        for axis in (0, 1)
    )
    inside = (
        np.clip(np.floor(places), 0, size - 1).astype(int)
        for places, size in zip((rows, columns), depth.shape, strict=True)
    )
    return depth[np.ix_(*inside)]


def read_text(path: Path) -> str:
    """A text file's content; raises UserError when it cannot be read or is not text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def read_table(path: Path) -> Float64:
    """A text file of numbers, (lines, numbers per line); raises UserError for other content."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an empty file, which is checked by size
            return np.loadtxt(path, dtype=np.float64, ndmin=2)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read numbers from {path}: {error}") from error


def read_matrix(path: Path, *shapes: tuple[int, int]) -> Float64:
    """A text file of numbers as a matrix of the first of `shapes` with that many numbers.

    Raises UserError when the file cannot be read or no shape matches.
    """
    values = read_table(path).ravel()
    shape = next((shape for shape in shapes if shape[0] * shape[1] == values.size), None)
    if shape is None:
        names = " or ".join(f"{rows}x{columns}" for rows, columns in shapes)
        raise UserError(f"{path} holds {values.size} numbers, expected {names}")
    return values.reshape(shape)


def rigid_pose(matrix: NDArray[np.floating]) -> Float64 | None:
    """A (4, 4) pose from a file, its rotation projected to SO(3); None if it is not a pose.

    Text files are rounded: those of 7-Scenes are orthonormal only to 3e-4.  Lost frames are written as
    infinities, NaNs or zeros.
    """
    pose = np.asarray(matrix, np.float64)
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        return None
    rotation = pose[:3, :3]
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-2) or np.linalg.det(rotation) < 0:
        return None
    left, _, right = np.linalg.svd(rotation)
    return rigid_matrix(left @ right, pose[:3, 3])


def natural_order(name: str | Path) -> tuple[tuple[int, int | str], ...]:
    """A key that sorts names as a person would: IMG_9 before IMG_10."""
    parts = re.split(r"(\d+)", str(name))
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts if part)


def read_json(path: Path) -> Any:
    """A JSON file's content; raises UserError when it cannot be read or is not JSON."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON file: {error}") from error


def folders_below(root: Path) -> list[Path]:
    """`root` itself, which may be one scene, and its folders, by name."""
    return [root, *sorted(path for path in root.iterdir() if path.is_dir())]

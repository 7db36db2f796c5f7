"""TUM RGB-D: ROOT/<sequence>/{rgb.txt, depth.txt, groundtruth.txt, rgb/, depth/}, or ROOT is one sequence.

The text files list stamps in seconds and file names, or poses as stamp tx ty tz qx qy qz qw (world from
camera). Depth PNGs hold 5000 units per metre.  Images are paired with the nearest depth and pose within 20
ms.  Intrinsics: the sequence's own calibration.txt (fx fy cx cy, as in ETH3D), camera.txt, intrinsics.txt
(3x3) or .yaml (Camera.fx …, camera_matrix), else those published for freiburg1 to 3, else 525 pixels.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from fast3r_ros.datasets.posed import (
    PosedFrame,
    PosedSequence,
    depth_reader,
    image_reader,
    read_table,
    read_text,
)
from fast3r_ros.errors import UserError
from fast3r_ros.geometry.intrinsics import intrinsics_matrix
from fast3r_ros.geometry.rigid import rigid_matrix
from fast3r_ros.geometry.rotation import matrix_from_quaternion
from fast3r_ros.mapping.data import Float64

MAX_DIFFERENCE_S = 0.02
METRES = 1 / 5000
# focal x, y and principal point x, y as published, for pixel centres at integers
CAMERAS = {
    "freiburg1": (517.3, 516.5, 318.6, 255.3),
    "freiburg2": (520.9, 521.0, 325.1, 249.7),
    "freiburg3": (535.4, 539.2, 320.1, 247.6),
}
CALIBRATIONS = ("calibration.txt", "camera.txt", "intrinsics.txt")
DEFAULT_CAMERA = (525.0, 525.0, 319.5, 239.5)


def sequences(root: Path) -> list[PosedSequence]:
    """All folders with a groundtruth.txt, `root` itself included."""
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
    return [
        PosedSequence(folder.name, _frames(folder))
        for folder in folders
        if all((folder / name).is_file() for name in ("rgb.txt", "groundtruth.txt"))
    ]


def _frames(folder: Path) -> tuple[PosedFrame, ...]:
    images = _read_list(folder / "rgb.txt")
    depths = _read_list(folder / "depth.txt") if (folder / "depth.txt").is_file() else []
    depth_stamps = np.array([stamp for stamp, _ in depths])
    stamps, poses = _read_poses(folder / "groundtruth.txt")
    focal_x, focal_y, x, y = _camera(folder)
    intrinsics = intrinsics_matrix((focal_x, focal_y), (x + 0.5, y + 0.5))
    frames = []
    for stamp, name in images:
        pose, depth = _nearest(stamps, stamp), _nearest(depth_stamps, stamp)
        if pose is None:
            continue
        frames.append(
            PosedFrame(
                stamp_ns=round(stamp * 1e9),
                world_from_camera=poses[pose],
                intrinsics=intrinsics,
                read_image=image_reader(folder / name),
                read_depth=None if depth is None else depth_reader(folder / depths[depth][1], METRES),
            )
        )
    return tuple(frames)


def _camera(folder: Path) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy for pixel centres at integers.  Raises UserError for an invalid calibration file."""
    for path in [*(folder / name for name in CALIBRATIONS), *sorted(folder.glob("*.yaml"))]:
        if not path.is_file():
            continue
        values = _yaml_camera(path) if path.suffix == ".yaml" else _text_camera(read_table(path))
        if path.suffix == ".yaml" and not values:  # the configuration of another program
            continue
        if len(values) < 4 or not np.isfinite(values[:4]).all() or min(values[:2]) <= 0:
            raise UserError(f"{path} is not a calibration: expected fx fy cx cy, or a 3x3 matrix")
        return values[0], values[1], values[2], values[3]
    return next((camera for name, camera in CAMERAS.items() if name in folder.name), DEFAULT_CAMERA)


def _text_camera(table: Float64) -> list[float]:
    """fx fy cx cy of a 3x3 matrix, or of the first numbers of one line."""
    return table[[0, 1, 0, 1], [0, 1, 2, 2]].tolist() if table.shape == (3, 3) else table[0].tolist()


def _yaml_camera(path: Path) -> list[float]:
    """fx fy cx cy of a YAML file of ROS or ORB-SLAM; empty if it has no camera."""
    text = re.sub(r"^%YAML.*$|!!opencv-matrix", "", read_text(path), flags=re.MULTILINE)
    try:
        content = yaml.safe_load(text)
        if isinstance(content, dict) and "camera_matrix" in content:
            matrix = np.array(content["camera_matrix"]["data"], np.float64).reshape(3, 3)
            return _text_camera(matrix)
        for prefix in ("Camera.", "Camera1.", ""):
            if isinstance(content, dict) and f"{prefix}fx" in content:
                return [float(content[f"{prefix}{name}"]) for name in ("fx", "fy", "cx", "cy")]
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a calibration: {error}") from error
    return []


def _nearest(stamps: NDArray[np.float64], stamp: float) -> int | None:
    """Index of the nearest stamp if it is near enough."""
    if not len(stamps):
        return None
    index = int(np.argmin(np.abs(stamps - stamp)))
    return index if abs(stamps[index] - stamp) <= MAX_DIFFERENCE_S else None


def _read_list(path: Path) -> list[tuple[float, str]]:
    lines = [line.split() for line in read_text(path).splitlines() if line.strip() and line[0] != "#"]
    if not lines:
        raise UserError(f"{path} lists no files")
    try:
        return [(float(stamp), name) for stamp, name in lines]
    except ValueError as error:
        raise UserError(f"{path} is no list of stamps and file names: {error}") from error


def _read_poses(path: Path) -> tuple[NDArray[np.float64], Float64]:
    """Stamps and poses; lines without a rotation (lost tracking) are skipped."""
    rows = read_table(path)
    if rows.shape[1] != 8:
        raise UserError(f"{path} has {rows.shape[1]} numbers per line, expected stamp tx ty tz qx qy qz qw")
    rows = rows[np.isfinite(rows).all(axis=1) & (np.linalg.norm(rows[:, 4:], axis=1) > 0)]
    return rows[:, 0], rigid_matrix(matrix_from_quaternion(rows[:, 4:]), rows[:, 1:4])

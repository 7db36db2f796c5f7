"""COLMAP text models, for tools such as Gaussian splatting: cameras.txt, images.txt, points3D.txt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from fast3r_ros.errors import UserError
from fast3r_ros.files import whole_file
from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.io.cameras import CameraRecord
from fast3r_ros.mapping.data import Cloud, Float64

_NS_PER_VIEW = 100_000_000  # COLMAP keeps no times: ten views per second, as for image files


def write_colmap(
    folder: str | Path,
    cloud: Cloud,
    records: Sequence[CameraRecord],
    images: Mapping[str, str] | None = None,
) -> None:
    """Write the model into `folder` (usually `sparse/0`).

    images: view name -> name of its image, `NAME.png` without.

    Every view has a PINHOLE camera of its own; COLMAP's pixel centres are at integer + 0.5, as ours.  World
    coordinates are the map frame's.  Points have no tracks: dense points belong to no image feature.
    Raises UserError when the files cannot be written.
    """
    folder = Path(folder)
    with whole_file(folder / "cameras.txt") as path, path.open("w", encoding="utf-8") as file:
        file.write("# CAMERA_ID MODEL WIDTH HEIGHT FX FY CX CY\n")
        for number, record in enumerate(records, 1):
            matrix = record.intrinsics
            values = (matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2])
            numbers = " ".join(f"{value:.9g}" for value in values)
            file.write(f"{number} PINHOLE {record.width} {record.height} {numbers}\n")
    with whole_file(folder / "images.txt") as path, path.open("w", encoding="utf-8") as file:
        file.write("# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then a line of 2D points (none)\n")
        for number, record in enumerate(records, 1):
            camera_from_map = inverse(record.map_from_camera)
            x, y, z, w = Rotation.from_matrix(camera_from_map[:3, :3]).as_quat()
            numbers = " ".join(f"{value:.12g}" for value in (w, x, y, z, *camera_from_map[:3, 3]))
            name = (images or {}).get(record.name, f"{record.name}.png")
            file.write(f"{number} {numbers} {number} {name}\n\n")
    with whole_file(folder / "points3D.txt") as path, path.open("w", encoding="utf-8") as file:
        file.write("# POINT3D_ID X Y Z R G B ERROR TRACK[]\n")
        lines = (
            f"{number} {x:.9g} {y:.9g} {z:.9g} {red} {green} {blue} 0\n"
            for number, ((x, y, z), (red, green, blue)) in enumerate(
                zip(cloud.points.tolist(), cloud.colors.tolist(), strict=True), 1
            )
        )
        file.writelines(lines)


def is_colmap(folder: Path) -> bool:
    """Whether a folder holds a text model."""
    return all((folder / name).is_file() for name in ("cameras.txt", "images.txt", "points3D.txt"))


def read_colmap(folder: str | Path) -> tuple[Cloud, list[CameraRecord]]:
    """Read a text model: its points, with confidence 1, and its views in the order of their numbers.

    Raises UserError when it is damaged or its cameras are no pinholes: undistort such a model with COLMAP.
    """
    folder = Path(folder)
    try:
        lenses = dict(_read_lens(line) for line in _lines(folder / "cameras.txt") if line)
        lines = _lines(folder / "images.txt")[::2]  # every other line lists features
        views = sorted((line.split() for line in lines if line), key=lambda words: int(words[0]))
        records = [_read_view(index, words, lenses) for index, words in enumerate(views)]
        points = [line.split()[1:7] for line in _lines(folder / "points3D.txt") if line]
        values = np.array(points, np.float64).reshape(-1, 6)
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{folder} is not a COLMAP text model that can be read: {error}") from error
    xyz, colors = values[:, :3].astype(np.float32), values[:, 3:].astype(np.uint8)
    return Cloud(xyz, colors, np.ones(len(xyz), np.float32)), records


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]


def _read_lens(line: str) -> tuple[str, tuple[int, int, Float64]]:
    """A camera's number, and its width, height and (3, 3) intrinsics."""
    number, model, width, height, *numbers = line.split()
    if model not in ("PINHOLE", "SIMPLE_PINHOLE"):
        raise ValueError(f"camera {number} has the model {model}; undistort the images with COLMAP first")
    values = [float(value) for value in numbers]
    fx, fy, cx, cy = values if model == "PINHOLE" else (values[0], *values)
    return number, (int(width), int(height), np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]))


def _read_view(index: int, words: list[str], lenses: dict[str, tuple[int, int, Float64]]) -> CameraRecord:
    """The view of a line `IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME`."""
    w, x, y, z, *translation = (float(word) for word in words[1:8])
    camera_from_map = np.eye(4)
    camera_from_map[:3, :3] = Rotation.from_quat([x, y, z, w]).as_matrix()
    camera_from_map[:3, 3] = translation
    width, height, intrinsics = lenses[words[8]]
    name = Path(words[9]).stem
    stamp_ns = index * _NS_PER_VIEW
    return CameraRecord(name, stamp_ns, "camera", width, height, intrinsics, inverse(camera_from_map))

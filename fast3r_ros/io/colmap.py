"""COLMAP models, for tools such as Gaussian splatting: written as text, read as text or binary files."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from fast3r_ros.datasets.colmap import MODEL_FOLDERS, has_model, read_model
from fast3r_ros.errors import UserError
from fast3r_ros.files import whole_file
from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.io.cameras import CameraRecord, SourceImage
from fast3r_ros.mapping.data import Cloud, Float64

_POINT = struct.Struct("<Q3d3BdQ")  # number, place, colour, error, length of the track
_NS_PER_VIEW = 100_000_000  # COLMAP stores no times: ten views per second, as for image files


def write_colmap(
    folder: str | Path,
    cloud: Cloud,
    records: Sequence[CameraRecord],
    images: Mapping[str, str] | None = None,
) -> None:
    """Write the model into `folder` (usually `sparse/0`).

    images: view name -> name of its image; default `NAME.png`.

    Every view has a PINHOLE camera of its own; COLMAP's pixel centres are at integer + 0.5, like ours.  World
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


def find_colmap(folder: Path) -> Path | None:
    """The folder of a model: `folder`, `sparse/0` or another usual place; None if there is none."""
    return next((folder / name for name in MODEL_FOLDERS if has_model(folder / name)), None)


def read_colmap(folder: str | Path) -> tuple[Cloud, list[CameraRecord], bool]:
    """Read a model, binary or text: its points (confidence 1), its views, and whether lenses are distorted.

    The views are in the order of their numbers; each has the whole name of its image as its source's, and a
    name derived from that, without folders and suffix.  Lens distortion is ignored: the matrices then do not
    describe the images.  Raises UserError when the model is damaged or a camera model is unknown.
    """
    folder = Path(folder)
    views = read_model(folder, least=0)
    records = []
    for index, view in enumerate(views):
        lens = view.lens
        source = SourceImage(view.name, lens.width, lens.height, np.eye(3))
        name = re.sub(r"[/\\]", "_", str(Path(view.name).with_suffix("")))
        records.append(
            CameraRecord(
                *(name, index * _NS_PER_VIEW, "camera", lens.width, lens.height, lens.intrinsics),
                *(view.world_from_camera, source),
            )
        )
    return _read_points(folder), records, any(view.lens.distortion for view in views)


def _read_points(folder: Path) -> Cloud:
    """The points of a model; none if it has no file of points."""
    path = folder / "points3D.bin"
    try:
        if path.is_file():
            values = _binary_points(path.read_bytes())
        else:
            path = folder / "points3D.txt"
            lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
            points = [line.split()[1:7] for line in lines if line.strip() and not line.startswith("#")]
            values = np.array(points, np.float64).reshape(-1, 6)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, struct.error) as error:
        raise UserError(f"{path} holds no points of a COLMAP model: {error}") from error
    xyz, colors = values[:, :3].astype(np.float32), np.clip(values[:, 3:], 0, 255).astype(np.uint8)
    return Cloud(xyz, colors, np.ones(len(xyz), np.float32))


def _binary_points(data: bytes) -> Float64:
    """(N, 6) places and colours of a points3D.bin; its points have tracks of any length."""
    (count,) = struct.unpack_from("<Q", data)
    if count * _POINT.size > len(data):
        raise ValueError(f"it ends within its {count} points")
    values, place = np.empty((count, 6)), 8
    for number in range(count):
        _, *point, _, track = _POINT.unpack_from(data, place)
        values[number] = point
        place += _POINT.size + 8 * track
    return values

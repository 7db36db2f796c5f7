"""A COLMAP text model, for tools such as Gaussian splatting: cameras.txt, images.txt, points3D.txt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from fast3r_ros.io.cameras import CameraRecord
from fast3r_ros.io.files import whole_file
from fast3r_ros.mapping.data import Cloud


def write_colmap(folder: str | Path, cloud: Cloud, records: Sequence[CameraRecord]) -> None:
    """Write the model into `folder` (usually `sparse/0`); image names are `NAME.png`.

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
            camera_from_map = np.linalg.inv(record.map_from_camera)
            x, y, z, w = Rotation.from_matrix(camera_from_map[:3, :3]).as_quat()
            numbers = " ".join(f"{value:.12g}" for value in (w, x, y, z, *camera_from_map[:3, 3]))
            file.write(f"{number} {numbers} {number} {record.name}.png\n\n")
    with whole_file(folder / "points3D.txt") as path, path.open("w", encoding="utf-8") as file:
        file.write("# POINT3D_ID X Y Z R G B ERROR TRACK[]\n")
        lines = (
            f"{number} {x:.6g} {y:.6g} {z:.6g} {red} {green} {blue} 0\n"
            for number, ((x, y, z), (red, green, blue)) in enumerate(
                zip(cloud.points.tolist(), cloud.colors.tolist(), strict=True), 1
            )
        )
        file.writelines(lines)

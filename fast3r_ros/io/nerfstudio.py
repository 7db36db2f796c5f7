"""transforms.json, the input of nerfstudio and other trainers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fast3r_ros.files import whole_file
from fast3r_ros.io.cameras import CameraRecord

_CV_FROM_GL = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenGL's cameras look along -z, with y up


def write_transforms(
    path: str | Path, records: Sequence[CameraRecord], images: Mapping[str, str], cloud: str
) -> None:
    """Write one frame per view: image, pinhole intrinsics and pose, in the map frame, z up.

    images: view name -> its file.  cloud: the file of the points.  Both are relative to the folder of `path`.
    Pixel centres are at integer + 0.5, as in this package.  Raises UserError when it cannot be written.
    """
    frames = [
        {
            "file_path": images[record.name],
            "w": record.width,
            "h": record.height,
            "fl_x": float(record.intrinsics[0, 0]),
            "fl_y": float(record.intrinsics[1, 1]),
            "cx": float(record.intrinsics[0, 2]),
            "cy": float(record.intrinsics[1, 2]),
            "transform_matrix": (record.map_from_camera @ _CV_FROM_GL).tolist(),
        }
        for record in records
    ]
    content = {"camera_model": "OPENCV", "ply_file_path": cloud, "frames": frames}
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

"""Clouds as PCD files, the format of the Point Cloud Library."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fast3r_ros.io.files import whole_file
from fast3r_ros.mapping.data import Cloud

_POINT = np.dtype([("xyz", "<f4", 3), ("rgb", "<u4"), ("confidence", "<f4")])
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

    rgb is 0x00RRGGBB in the bits of a float, as PCL has it.  Raises UserError when it cannot be written.
    """
    points = np.empty(len(cloud.points), _POINT)
    points["xyz"] = cloud.points
    red, green, blue = cloud.colors.astype(np.uint32).T
    points["rgb"] = red << 16 | green << 8 | blue
    points["confidence"] = cloud.confidence
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(_HEADER.format(count=len(points)).encode("ascii"))
        file.write(points.tobytes())

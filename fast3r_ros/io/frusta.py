"""Cameras as pyramids of lines, for pictures and 3D files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fast3r_ros.io.cameras import CameraRecord
from fast3r_ros.mapping.data import Cloud, Float64

_EDGES = np.array([[0, 1], [0, 2], [0, 3], [0, 4], [1, 2], [2, 3], [3, 4], [4, 1]])


def frustum_segments(
    map_from_camera: Float64,
    intrinsics: Float64 | None = None,
    width: int = 4,
    height: int = 3,
    *,
    size: float = 1.0,
) -> Float64:
    """The eight edges of a camera's view pyramid, (8, 2, 3) in the map frame.

    intrinsics: (3, 3) for an image of width x height pixels; without them, a field of view of 60 degrees is
    drawn.  size: the depth of the image plane in map units.
    """
    if intrinsics is None:
        focal = width / 2 / np.tan(np.deg2rad(30.0))
        intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]], np.float64)
    rays = np.linalg.solve(intrinsics, corners.T).T * size
    points = np.vstack([np.zeros(3), rays]) @ map_from_camera[:3, :3].T + map_from_camera[:3, 3]
    return points[_EDGES]


def frustum_size(cloud: Cloud, records: Sequence[CameraRecord]) -> float:
    """Depth of a drawn frustum in map units: a fiftieth of the map's extent."""
    shown = cloud.points if len(cloud.points) else np.array([view.map_from_camera[:3, 3] for view in records])
    low, high = np.percentile(shown, (2, 98), axis=0)
    return max(float(np.linalg.norm(high - low)) / 50, 1e-3)

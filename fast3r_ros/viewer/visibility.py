"""When each point of a map was first seen, for showing the map at an earlier time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fast3r_ros.geometry.rigid import inverse, transform_points
from fast3r_ros.io.cameras import CameraRecord
from fast3r_ros.mapping.data import Float32

_COLUMNS, _ROWS = (
    48,
    36,
)  # of the depth buffer: coarse, so that a sparse cloud hides the points behind it
_BEHIND = 1.15  # a point is hidden when it is this many times as far away as the nearest in its cell
_MAX_POINTS, _MAX_CAMERAS = 60_000, 60  # limits of the search, for about a second


def first_seen(points: Float32, cameras: Sequence[CameraRecord]) -> NDArray[np.int64]:
    """For each point (N, 3) in the map frame, the stamp in ns of the first camera that sees it, (N,).

    cameras: in time order, at least one.  The cloud itself hides the points behind it.  Points that no camera
    sees, at the edges of views, count as seen by the last.  In a large cloud a point represents those after
    it, which are its neighbours because a map's points are sorted by voxel.
    """
    step = max(1, -(-len(points) // _MAX_POINTS))
    few = cameras[:: max(1, -(-len(cameras) // _MAX_CAMERAS))]
    sample = points[::step]
    stamps = np.full(len(sample), cameras[-1].stamp_ns, np.int64)
    for camera in reversed(few):
        stamps[_seen(sample, camera)] = camera.stamp_ns
    return np.repeat(stamps, step)[: len(points)]


def _seen(points: Float32, camera: CameraRecord) -> NDArray[np.int64]:
    """Indices of the points that a camera sees."""
    in_camera = transform_points(inverse(camera.map_from_camera), points)
    ahead = np.flatnonzero(in_camera[:, 2] > 0)
    depth = in_camera[ahead, 2]
    pixels = in_camera[ahead] @ camera.intrinsics[:2].T / depth[:, None]
    cells = np.floor(pixels / (camera.width, camera.height) * (_COLUMNS, _ROWS)).astype(np.int64)
    inside = np.all((cells >= 0) & (cells < (_COLUMNS, _ROWS)), axis=1)
    cell, depth, ahead = (cells @ (1, _COLUMNS))[inside], depth[inside], ahead[inside]
    nearest = np.full(_COLUMNS * _ROWS, np.inf)
    np.minimum.at(nearest, cell, depth)
    return ahead[depth <= nearest[cell] * _BEHIND]

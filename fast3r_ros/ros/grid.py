"""nav_msgs/OccupancyGrid from the map's points between two heights."""

from __future__ import annotations

import array

import numpy as np
from nav_msgs.msg import OccupancyGrid

from fast3r_ros.mapping.data import Float32
from fast3r_ros.ros.config import GridConfig
from fast3r_ros.ros.times import stamp_from_ns

MAX_CELLS = 25_000_000
OCCUPIED, FREE, UNKNOWN = 100, 0, -1


def occupancy_grid(points: Float32, config: GridConfig, stamp_ns: int, frame_id: str) -> OccupancyGrid:
    """Points (N, 3) in the map frame as a grid.

    A cell is occupied with `min_points` points between the heights, free when only lower points (floor)
    were seen there, unknown otherwise.  The grid covers the points below the upper height.  Raises
    ValueError when it would have more than 25 million cells.
    """
    message = OccupancyGrid()
    message.header.stamp = message.info.map_load_time = stamp_from_ns(stamp_ns)
    message.header.frame_id = frame_id
    message.info.resolution = config.resolution
    message.info.origin.orientation.w = 1.0
    points = points[np.isfinite(points).all(axis=1) & (points[:, 2] <= config.max_height)]
    if len(points) == 0:
        return message
    cells = np.floor(points[:, :2] / config.resolution).astype(np.int64)
    low = cells.min(axis=0)
    width, height = (int(value) for value in cells.max(axis=0) - low + 1)
    if width * height > MAX_CELLS:
        raise ValueError(f"a grid of {width}x{height} cells is too large; use a larger grid.resolution")
    index = (cells[:, 1] - low[1]) * width + (cells[:, 0] - low[0])
    high = points[:, 2] >= config.min_height
    obstacles = np.bincount(index[high], minlength=width * height)
    floor = np.bincount(index[~high], minlength=width * height)
    grid = np.full(width * height, UNKNOWN, np.int8)
    grid[floor > 0] = FREE
    grid[obstacles >= config.min_points] = OCCUPIED
    message.info.width, message.info.height = width, height
    message.info.origin.position.x = float(low[0] * config.resolution)
    message.info.origin.position.y = float(low[1] * config.resolution)
    message.data = array.array("b", grid.tobytes())
    return message

"""nav_msgs/OccupancyGrid from the map."""

from __future__ import annotations

import array

from nav_msgs.msg import OccupancyGrid

from fast3r_ros.mapping.occupancy import Occupancy
from fast3r_ros.ros.times import stamp_from_ns


def grid_message(occupancy: Occupancy, stamp_ns: int, frame_id: str) -> OccupancyGrid:
    """A grid as its message; its origin is the lower left corner of the first cell, on the floor."""
    message = OccupancyGrid()
    message.header.stamp = message.info.map_load_time = stamp_from_ns(stamp_ns)
    message.header.frame_id = frame_id
    message.info.resolution = occupancy.resolution
    message.info.height, message.info.width = occupancy.cells.shape
    position = message.info.origin.position
    position.x, position.y = (float(value) for value in occupancy.origin)
    position.z = occupancy.floor
    message.info.origin.orientation.w = 1.0
    message.data = array.array("b", occupancy.cells.tobytes())
    return message

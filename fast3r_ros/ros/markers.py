"""Keyframes and loop closures as lines, for RViz and Foxglove."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from geometry_msgs.msg import Point
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from fast3r_ros.io.frusta import frustum_segments
from fast3r_ros.mapping.data import Float64
from fast3r_ros.mapping.map import Keyframe
from fast3r_ros.ros.times import stamp_from_ns

MOST_KEYFRAMES = 1000  # maximum number of drawn keyframes, evenly spread, so that viewers keep up
SIZE = 0.1  # of a pyramid, in median scene depths of the keyframes
KEYFRAME_COLOR = ColorRGBA(r=0.2, g=0.7, b=1.0, a=0.8)
LOOP_COLOR = ColorRGBA(r=1.0, g=0.3, b=0.6, a=1.0)


def map_markers(
    keyframes: Mapping[int, Keyframe], loops: Iterable[tuple[int, int]], stamp_ns: int, frame_id: str
) -> MarkerArray:
    """A pyramid of lines for each keyframe, and a line for each loop closure.

    loops: ids of keyframes.  Both markers are always sent, so that an emptied map clears them.
    """
    shown = list(keyframes.values())[:: 1 + len(keyframes) // MOST_KEYFRAMES]
    depth = float(np.median([k.depth * k.map_from_local.scale for k in shown])) if shown else 1.0
    pyramids = [frustum_segments(k.map_from_camera, size=SIZE * depth).reshape(-1, 3) for k in shown]
    ends = [keyframes[i].map_from_camera[:3, 3] for pair in loops for i in pair]
    width = 0.05 * SIZE * depth
    lines = [
        _lines("keyframes", np.concatenate([np.empty((0, 3)), *pyramids]), width, KEYFRAME_COLOR),
        _lines("loops", np.reshape(ends, (-1, 3)), 2 * width, LOOP_COLOR),
    ]
    for marker in lines:
        marker.header.stamp, marker.header.frame_id = stamp_from_ns(stamp_ns), frame_id
    return MarkerArray(markers=lines)


def _lines(name: str, points: Float64, width: float, color: ColorRGBA) -> Marker:
    """Lines between pairs of (2 N, 3) points; without points, a marker that deletes earlier ones."""
    marker = Marker(ns=name, type=Marker.LINE_LIST, action=Marker.ADD if len(points) else Marker.DELETE)
    marker.pose.orientation.w = 1.0
    marker.scale.x, marker.color = width, color
    marker.points = [Point(x=x, y=y, z=z) for x, y, z in points.tolist()]
    return marker

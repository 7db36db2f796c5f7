"""Messages from the mapper's results: clouds, the occupancy grid, markers, and this package's own."""

from __future__ import annotations

import array
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from geometry_msgs.msg import Point
from nav_msgs.msg import OccupancyGrid
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from fast3r_ros.io.cameras import frustum_segments
from fast3r_ros.mapping.data import Cloud, Float64, Keyframe, ViewEstimate, WindowResult
from fast3r_ros.mapping.occupancy import Occupancy
from fast3r_ros.mapping.point_records import WORDS, cloud_bytes, view_bytes
from fast3r_ros.mapping.view_maps import mean_values
from fast3r_ros.msg import DropCount, StageLatency, WindowEstimate
from fast3r_ros.msg import ViewEstimate as ViewEstimateMessage
from fast3r_ros.ros.pose_messages import pose_with_covariance, stamp_from_ns, transform_from_matrix

NAMES = ("x", "y", "z", "rgb", "confidence")  # in the order of `fast3r_ros.mapping.point_records`
POINT_BYTES = 4 * WORDS
FIELDS = [
    PointField(name=name, offset=4 * index, datatype=PointField.FLOAT32, count=1)
    for index, name in enumerate(NAMES)
]


def cloud_to_message(cloud: Cloud, stamp_ns: int, frame_id: str) -> PointCloud2:
    """A cloud of N points as an unorganised, dense PointCloud2 of 20 bytes a point."""
    return _message(cloud_bytes(cloud), stamp_ns, frame_id)


def view_to_message(view: ViewEstimate, frame_id: str) -> PointCloud2:
    """The valid points of a view in its camera frame, at its stamp; packed on the network's device."""
    return _message(view_bytes(view), view.stamp_ns, frame_id)


def _message(data: array.array, stamp_ns: int, frame_id: str) -> PointCloud2:
    return PointCloud2(
        header=Header(stamp=stamp_from_ns(stamp_ns), frame_id=frame_id),
        height=1,
        width=len(data) // POINT_BYTES,
        fields=FIELDS,
        is_bigendian=sys.byteorder == "big",
        point_step=POINT_BYTES,
        row_step=len(data),
        data=data,
        is_dense=True,
    )


def message_to_cloud(message: PointCloud2) -> Cloud:
    """The inverse of `cloud_to_message`, for messages with its fields in any order and with any padding.

    Raises ValueError when a field is missing or the data is too short.
    """
    offsets = {field.name: field.offset for field in message.fields}
    missing = [name for name in NAMES if name not in offsets]
    if missing:
        raise ValueError(f"the cloud has no field {missing[0]!r}")
    order = ">" if message.is_bigendian else "<"
    layout: Any = {
        "names": NAMES,
        "formats": [order + "f4"] * 3 + [order + "u4", order + "f4"],
        "offsets": [offsets[name] for name in NAMES],
        "itemsize": message.point_step,
    }
    dtype = np.dtype(layout)
    data = np.frombuffer(message.data, np.uint8)
    rows = [
        np.frombuffer(data, dtype, message.width, row * message.row_step) for row in range(message.height)
    ]
    elements = np.concatenate(rows) if rows else np.empty(0, dtype)
    rgb = elements["rgb"].astype(np.uint32)
    colors = np.stack([rgb >> 16, rgb >> 8, rgb], axis=-1).astype(np.uint8)
    points = np.stack([elements["x"], elements["y"], elements["z"]], axis=-1).astype(np.float32)
    return Cloud(points, colors, elements["confidence"].astype(np.float32))


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


def counts(by_reason: Mapping[str, int]) -> list[DropCount]:
    """Counts by reason, the most frequent first.  The mapper's names become phrases: `no motion`."""
    ordered = sorted(by_reason.items(), key=lambda item: -item[1])
    return [DropCount(reason=readable_reason(reason), count=count) for reason, count in ordered]


def readable_reason(reason: str) -> str:
    """A reason of the mapper (`no_motion`) or of the node, human-readable."""
    return reason if " " in reason else reason.replace("_", " ")


def latencies(seconds: Mapping[str, float]) -> list[StageLatency]:
    """Seconds by stage, in the order of the stages."""
    return [StageLatency(stage=stage, seconds=float(value)) for stage, value in seconds.items()]


def input_intrinsics(view: ViewEstimate) -> Float64:
    """(3, 3) intrinsics in the pixels of the camera's image, centres at integer + 0.5."""
    return np.linalg.inv(view.network_from_image) @ view.intrinsics


def view_message(
    view: ViewEstimate,
    map_frame: str,
    size: tuple[int, int],
    estimated: bool,
    mean_confidence: float,
    valid_share: float,
) -> ViewEstimateMessage:
    """One view; size: (width, height) of the camera's images; estimated: intrinsics are the network's."""
    message = ViewEstimateMessage(keyframe_id=view.keyframe_id, map_frame=map_frame)
    message.header.stamp = stamp_from_ns(view.stamp_ns)
    message.header.frame_id = view.camera
    message.pose = pose_with_covariance(view.map_from_camera, view.covariance)
    message.width, message.height = size
    message.k = input_intrinsics(view).reshape(9)
    message.intrinsics_estimated = estimated
    message.mean_confidence, message.valid_share = mean_confidence, valid_share
    return message


def window_message(
    result: WindowResult,
    map_frame: str,
    metres: bool,
    size_of: Callable[[ViewEstimate], tuple[int, int]],
    estimated: Callable[[ViewEstimate], bool],
) -> WindowEstimate:
    """A window with its views and its registration."""
    message = WindowEstimate(accepted=result.accepted, reason=result.reason, metres=metres)
    message.header.stamp = stamp_from_ns(result.stamp_ns)
    message.header.frame_id = map_frame
    means = mean_values([view.maps for view in result.views])
    message.views = [
        view_message(view, map_frame, size_of(view), estimated(view), *values)
        for view, values in zip(result.views, means, strict=True)
    ]
    rigid = np.eye(4)
    rigid[:3, :3] = result.map_from_window.rotation
    rigid[:3, 3] = result.map_from_window.translation
    message.map_from_window = transform_from_matrix(rigid)
    message.scale = float(result.map_from_window.scale)
    message.residual = float(result.residual)
    message.inlier_share = float(result.inlier_share)
    message.submap = int(result.submap)
    message.map_version = int(result.map_version)
    message.loop_closed = result.loop_closed
    message.latencies = latencies(result.timings)
    return message

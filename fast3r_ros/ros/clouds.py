"""sensor_msgs/PointCloud2 with x, y, z, rgb and confidence <-> arrays, without a loop over points."""

from __future__ import annotations

import array
import sys
from typing import Any

import numpy as np
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

from fast3r_ros.mapping.data import Cloud, ViewEstimate
from fast3r_ros.mapping.records import WORDS, cloud_bytes, view_bytes
from fast3r_ros.ros.times import stamp_from_ns

NAMES = ("x", "y", "z", "rgb", "confidence")  # in the order of `fast3r_ros.mapping.records`
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

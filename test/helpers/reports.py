"""A node's reports of a mapper and of a camera without problems."""

from __future__ import annotations

from typing import Any

from fast3r_ros.mapping.data import MapperStatus
from fast3r_ros.ros.status import CameraReport


def mapper_status(**changes: Any) -> MapperStatus:
    """A status with a different value in every field; `changes` replace some."""
    values = {
        "received": 10,
        "keyframes": 4,
        "dropped": {"no_motion": 3},
        "windows": 2,
        "windows_rejected": 1,
        "submaps": 1,
        "loops_closed": 0,
        "map_points": 1000,
        "map_bytes": 2000,
        "scale_source": "odometry",
        "metres": True,
        "scale_sigma": 0.01,
        "timings": {},
        "last_error": "",
    }
    return MapperStatus(**{**values, **changes})


def camera(**changes: Any) -> CameraReport:
    """A camera without problems; `changes` replace fields."""
    values = {
        "topic": "/image",
        "publishers": ["/driver"],
        "silence": 0.1,
        "reliable": True,
        "calibrated": True,
    }
    return CameraReport(**{**values, **changes})

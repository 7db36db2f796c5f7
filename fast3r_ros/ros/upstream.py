"""ROS's own Python libraries where installed; otherwise small equivalents of this package.

| library | used for | equivalent |
| --- | --- | --- |
| cv_bridge | well-formed raw images to RGB | `image_messages` |
| sensor_msgs_py | reading our clouds back, in tests | `messages`, which packs in place at half the cost |
| tf_transformations | quaternions of matrices | `pose_messages` (scipy) |
| tf2_ros | looking up and broadcasting transforms | `transforms` |

A robot with ROS from its package manager has all; the plain Python environment has none.  Tests compare
library and equivalent wherever both exist.
"""

from __future__ import annotations

import array
import importlib
from typing import Any

from sensor_msgs.msg import Image

# bytes per pixel of encodings that cv_bridge converts to rgb8 like us; all others use `image_messages`
CV_BRIDGE_ENCODINGS = {
    **{"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1, "mono16": 2, "yuv422": 2, "yuv422_yuy2": 2},
    **{f"bayer_{pattern}8": 1 for pattern in ("rggb", "bggr", "gbrg", "grbg")},
}


def installed(module: str) -> Any | None:
    """The module, or None if it is missing or does not load."""
    try:
        return importlib.import_module(module)
    except Exception:
        return None


def working_cv_bridge() -> Any | None:
    """A CvBridge, or None if there is no working one.

    Its compiled part is loaded only at the first conversion, and fails there if it was built for another
    NumPy, so that is tested here.
    """
    module = installed("cv_bridge")
    if module is None:
        return None
    pixel = Image(height=1, width=1, step=3, encoding="bgr8", data=array.array("B", (1, 2, 3)))
    try:
        bridge = module.CvBridge()
        return bridge if bridge.imgmsg_to_cv2(pixel, "rgb8").tolist() == [[[3, 2, 1]]] else None
    except Exception:
        return None


CV_BRIDGE = working_cv_bridge()
POINT_CLOUD2 = installed("sensor_msgs_py.point_cloud2")
TF_TRANSFORMATIONS = installed("tf_transformations")
TF2_ROS = installed("tf2_ros")

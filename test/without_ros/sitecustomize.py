"""Hides ROS: with this folder on PYTHONPATH, no module of ROS can be imported in any Python process.

So the tests of the core run as on a machine without ROS, in the one environment that holds it.
"""

import sys
from importlib.abc import MetaPathFinder

ROS = {"rclpy", "rpyutils", "launch", "launch_ros", "cv_bridge", "tf2_ros", "tf_transformations"}
ROS_PREFIXES = ("ament_", "rosidl_", "rcl_")
ROS_SUFFIXES = ("_msgs", "_msgs_py", "_interfaces", "_srvs")


class WithoutRos(MetaPathFinder):
    """Refuses the modules of ROS."""

    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root in ROS or root.startswith(ROS_PREFIXES) or root.endswith(ROS_SUFFIXES):
            raise ModuleNotFoundError(f"No module named {root!r}: these tests run without ROS", name=root)
        return None


sys.meta_path.insert(0, WithoutRos())

"""The mapping node on a USB camera with the driver usb_cam or v4l2_camera.

Start its driver first: ros2 run usb_cam usb_cam_node_exe
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

from launch import LaunchDescription

SHARE = Path(get_package_share_directory("fast3r_ros"))

# arguments that differ from mapping.launch.py; its others may be given as well
ARGUMENTS = (
    ("image", "/image_raw", "image"),
    ("camera_info", "/camera_info", "its calibration, if there is one"),
)


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, default_value=value, description=text) for name, value, text in ARGUMENTS
    ]
    passed = {name: LaunchConfiguration(name) for name, _, _ in ARGUMENTS}
    source = PythonLaunchDescriptionSource(str(SHARE / "launch" / "mapping.launch.py"))
    return LaunchDescription([*declared, IncludeLaunchDescription(source, launch_arguments=passed.items())])

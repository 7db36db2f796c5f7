"""The mapping node on a Luxonis OAK, with metres from its depth.

Start its driver first: ros2 launch depthai_ros_driver camera.launch.py
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
    ("image", "/oak/rgb/image_raw", "colour image"),
    ("camera_info", "/oak/rgb/camera_info", "its calibration"),
    ("depth", "/oak/stereo/image_raw", "depth aligned with the colour image"),
    ("scale_source", "depth", "none for a camera without stereo"),
)


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, default_value=value, description=text) for name, value, text in ARGUMENTS
    ]
    passed = {name: LaunchConfiguration(name) for name, _, _ in ARGUMENTS}
    source = PythonLaunchDescriptionSource(str(SHARE / "launch" / "mapping.launch.py"))
    return LaunchDescription([*declared, IncludeLaunchDescription(source, launch_arguments=passed.items())])

"""The mapping node on several cameras, with metres from the distances between them.

The topics are NAME/image_raw and NAME/camera_info for each name; base_link -> each camera has to be on TF.
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
    ("cameras", "front,rear", "names of the cameras, separated by commas"),
    ("image", "image_raw", "image topic below each name"),
    ("scale_source", "rig", "what gives metres"),
)


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, default_value=value, description=text) for name, value, text in ARGUMENTS
    ]
    passed = {name: LaunchConfiguration(name) for name, _, _ in ARGUMENTS}
    source = PythonLaunchDescriptionSource(str(SHARE / "launch" / "mapping.launch.py"))
    return LaunchDescription([*declared, IncludeLaunchDescription(source, launch_arguments=passed.items())])

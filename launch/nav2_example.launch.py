"""Nav2's costmap fed by the mapping node, both driven by Nav2's lifecycle manager.

Needs nav2_costmap_2d, nav2_lifecycle_manager, odometry in metres (nav_msgs/Odometry) and odom -> base_link
-> camera on TF.  The costmap's settings are in config/nav2_costmap.yaml; copy them into your own parameters.
"""

from pathlib import Path

from ament_index_python.packages import (
    PackageNotFoundError,
    get_package_prefix,
    get_package_share_directory,
)
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription

SHARE = Path(get_package_share_directory("fast3r_ros"))
ARGUMENTS = (
    ("image", "image", "image topic"),
    ("odometry", "odom", "odometry topic"),
    ("scale_source", "odometry", "what gives metres: odometry, rig, depth, camera_height, network or fixed"),
    ("model", "", "demo, a checkpoint folder or a hub name of Fast3R, or name:checkpoint of another network"),
    ("costmap_params_file", str(SHARE / "config" / "nav2_costmap.yaml"), "parameters of the costmap"),
    ("use_sim_time", "false", "take the time from /clock"),
)


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, default_value=value, description=text) for name, value, text in ARGUMENTS
    ]
    use_sim_time = LaunchConfiguration("use_sim_time")
    mapping = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(SHARE / "launch" / "mapping.launch.py")),
        launch_arguments={
            "image": LaunchConfiguration("image"),
            "odometry": LaunchConfiguration("odometry"),
            "model": LaunchConfiguration("model"),
            "use_sim_time": use_sim_time,
            "tf_mode": "map_to_odom",
            "scale_source": LaunchConfiguration("scale_source"),
            "autostart": "false",
        }.items(),
    )
    costmap = Node(
        package="nav2_costmap_2d",
        executable="nav2_costmap_2d",
        namespace="costmap",  # the node is also called costmap; its parameters are below costmap/costmap
        output="screen",
        parameters=[LaunchConfiguration("costmap_params_file"), {"use_sim_time": use_sim_time}],
    )
    manager = Node(
        package="nav2_lifecycle_manager",
        executable="lifecycle_manager",
        name="lifecycle_manager_fast3r",
        output="screen",
        parameters=[
            {
                "autostart": True,
                "node_names": ["fast3r_mapping", "costmap/costmap"],
                "bond_timeout": 0.0,  # the mapping node has no bond; the manager would consider it dead
                "service_timeout": 60.0,  # loading a model takes a while (Kilted and newer)
                "use_sim_time": use_sim_time,
            }
        ],
    )
    checks = [OpaqueFunction(function=check), *declared, OpaqueFunction(function=check_scale)]
    return LaunchDescription([*checks, mapping, costmap, manager])


def check(context: LaunchContext) -> None:
    """Raises RuntimeError without Nav2, before any process is started."""
    for package in ("nav2_costmap_2d", "nav2_lifecycle_manager"):
        try:
            get_package_prefix(package)
        except PackageNotFoundError as error:
            raise RuntimeError(
                f"{package} is not installed: apt install ros-$ROS_DISTRO-nav2-bringup"
            ) from error


def check_scale(context: LaunchContext) -> None:
    """Raises RuntimeError without a metric scale source: Nav2 works in metres."""
    source = LaunchConfiguration("scale_source").perform(context)
    if source in ("", "none"):
        raise RuntimeError(
            f"scale_source is {source!r}, but Nav2 needs metres: odometry, rig, depth, camera_height, "
            "network or fixed"
        )

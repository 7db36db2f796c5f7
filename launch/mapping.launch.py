"""Starts the mapping node, and RViz with `rviz:=true`.  These are the arguments most people change;
everything else is in the params_file (config/mapping.yaml names every parameter).
"""

import os
from pathlib import Path

from ament_index_python.packages import (
    PackageNotFoundError,
    get_package_prefix,
    get_package_share_directory,
)
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription

SHARE = Path(get_package_share_directory("fast3r_ros"))

# name, default, description; an empty default leaves the value to the params_file
ARGUMENTS = (
    ("namespace", "", "namespace of the node and its topics"),
    ("params_file", str(SHARE / "config" / "mapping.yaml"), "parameters of the node"),
    ("model", "", "demo, a checkpoint folder or a hub name"),
    ("image", "image", "image topic (without /compressed)"),
    ("camera_info", "", "camera_info topic; empty: beside the image topic"),
    ("depth", "depth", "metric depth aligned with the image, for scale_source depth"),
    ("odometry", "odometry", "odometry topic (nav_msgs/Odometry)"),
    ("transport", "", "raw or compressed"),
    ("tf_mode", "", "auto, camera, base, map_to_odom or none"),
    ("scale_source", "", "none, odometry, rig, depth, camera_height or fixed"),
    ("autostart", "", "false: wait for a lifecycle manager"),
    ("map_directory", "", "where ~/save_map may write"),
    ("use_sim_time", "false", "take the time from /clock"),
    ("rviz", "false", "start RViz"),
    ("viewer_port", "", "port of the web viewer on this machine, for example 8080"),
    ("log_level", "info", "debug, info, warn, error or fatal"),
)
# launch argument -> parameter, for those that override the params_file
OVERRIDES = {
    "model": "model",
    "transport": "input.transport",
    "tf_mode": "tf_mode",
    "scale_source": "scale.source",
    "autostart": "autostart",
    "map_directory": "map_directory",
    "viewer_port": "viewer.port",
}
NO_RVIZ = "RViz (package rviz2) is not installed: going on without; viewer_port:=8080 is for a browser"
RVIZ_TOPICS = ("map_cloud", "cloud", "confidence_color", "path", "odometry")


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, default_value=value, description=text) for name, value, text in ARGUMENTS
    ]
    return LaunchDescription([*declared, *large_messages(), OpaqueFunction(function=start)])


def large_messages() -> list[SetEnvironmentVariable]:
    """Fast DDS with room for images and clouds of megabytes, unless the user has a profile of their own."""
    old, new = "FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"  # until Jazzy, since Kilted
    if old in os.environ or new in os.environ:
        return []
    name = old if os.environ.get("ROS_DISTRO") == "jazzy" else new
    return [SetEnvironmentVariable(name, str(SHARE / "config" / "fastdds.xml"))]


def start(context: LaunchContext) -> list[Node | LogInfo]:
    given = {name: LaunchConfiguration(name).perform(context) for name, _, _ in ARGUMENTS}
    parameters: dict[str, object] = {
        parameter: given[argument] for argument, parameter in OVERRIDES.items() if given[argument]
    }
    parameters["use_sim_time"] = is_true(given["use_sim_time"])
    if given["autostart"]:
        parameters["autostart"] = is_true(given["autostart"])
    if given["viewer_port"]:
        parameters["viewer.port"] = int(given["viewer_port"])
    camera_info = given["camera_info"] or beside(given["image"], "camera_info")
    mapping = Node(
        package="fast3r_ros",
        executable="mapping_node",
        name="fast3r_mapping",
        namespace=given["namespace"],
        output="screen",
        parameters=[given["params_file"], parameters],
        remappings=[
            ("image", given["image"]),
            ("camera_info", camera_info),
            ("depth", given["depth"]),
            ("odometry", given["odometry"]),
        ],
        ros_arguments=["--log-level", given["log_level"]],
    )
    return [mapping, rviz(given)] if is_true(given["rviz"]) else [mapping]


def is_installed(package: str) -> bool:
    try:
        get_package_prefix(package)
    except PackageNotFoundError:
        return False
    return True


def rviz(given: dict[str, str]) -> Node | LogInfo:
    """RViz with config/mapping.rviz, whose topics are those of a node without a namespace.

    Where it is missing, launch would end with an error after the mapping node was started.
    """
    if not is_installed("rviz2"):
        return LogInfo(msg=NO_RVIZ)
    prefix = f"/{given['namespace'].strip('/')}" if given["namespace"].strip("/") else ""
    image = given["image"] if given["image"].startswith("/") else f"{prefix}/{given['image']}"
    names = [f"/fast3r_mapping/{topic}" for topic in RVIZ_TOPICS]
    return Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", str(SHARE / "config" / "mapping.rviz")],
        parameters=[{"use_sim_time": is_true(given["use_sim_time"])}],
        remappings=[*((name, f"{prefix}{name}") for name in names), ("/image", image)],
    )


def beside(topic: str, name: str) -> str:
    """The topic `name` next to another: /front/image_raw -> /front/camera_info."""
    return f"{topic.rpartition('/')[0]}/{name}" if "/" in topic else name


def is_true(text: str) -> bool:
    return text.lower() in ("true", "1", "yes", "on")

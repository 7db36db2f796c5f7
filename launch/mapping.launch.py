"""Starts the mapping node, and RViz with `rviz:=true`.  The arguments are those most people change;
everything else is in the params_file (config/mapping.yaml lists every parameter).
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import yaml
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
    ("model", "", "demo, a checkpoint folder or a hub name of Fast3R, or name:checkpoint of another network"),
    (
        "cameras",
        "",
        "names of a rig's cameras, separated by commas; image and the other topics are then below each name",
    ),
    ("image", "image", "image topic (without /compressed)"),
    ("camera_info", "", "camera_info topic; empty: next to the image topic"),
    ("depth", "depth", "metric depth aligned with the image, for scale_source depth"),
    ("mask", "mask", "mask of the image (mono8): pixels that are not zero are not mapped"),
    ("odometry", "odometry", "odometry topic (nav_msgs/Odometry)"),
    ("transport", "", "auto, raw or compressed"),
    ("tf_mode", "", "auto, camera, base, map_to_odom or none"),
    ("scale_source", "", "none, odometry, rig, depth, camera_height, network or fixed"),
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
NO_RVIZ = "RViz (package rviz2) is not installed; viewer_port:=8080 shows the map in a browser"
NODE = "fast3r_mapping"


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
    if names(given["cameras"]):
        parameters["cameras"] = names(given["cameras"])
    mapping = Node(
        package="fast3r_ros",
        executable="mapping_node",
        name=NODE,
        namespace=given["namespace"],
        output="screen",
        parameters=[given["params_file"], parameters],
        remappings=[*camera_topics(given), ("odometry", given["odometry"])],
        ros_arguments=["--log-level", given["log_level"]],
    )
    return [mapping, rviz(given)] if is_true(given["rviz"]) else [mapping]


def is_installed(package: str) -> bool:
    try:
        get_package_prefix(package)
    except PackageNotFoundError:
        return False
    return True


def names(text: str) -> list[str]:
    """The items of a comma-separated list."""
    return [word.strip() for word in text.split(",") if word.strip()]


def camera_topics(given: dict[str, str]) -> list[tuple[str, str]]:
    """Remappings of the single camera, or of each camera of a rig: front/image -> front/image_raw."""
    topics = {
        "image": given["image"],
        "camera_info": given["camera_info"] or next_to(given["image"], "camera_info"),
        "depth": given["depth"],
        "mask": given["mask"],
    }
    cameras = names(given["cameras"])
    if not cameras:
        return list(topics.items())
    return [(f"{name}/{old}", f"{name}/{new}") for name in cameras for old, new in topics.items()]


def rviz(given: dict[str, str]) -> Node | LogInfo:
    """RViz with config/mapping.rviz, its topics and fixed frame adapted to this node.

    Without the check for a missing RViz, launch would fail after the mapping node was started.
    """
    if not is_installed("rviz2"):
        return LogInfo(msg=NO_RVIZ)
    with tempfile.NamedTemporaryFile("w", prefix="fast3r_", suffix=".rviz", delete=False) as file:
        yaml.safe_dump(rviz_settings(given), file, sort_keys=False)
    return Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", file.name],
        parameters=[{"use_sim_time": is_true(given["use_sim_time"])}],
    )


def rviz_settings(given: dict[str, str]) -> dict[str, Any]:
    """config/mapping.rviz for this node: its namespace, map frame, cameras and image transport.

    RViz derives the transport from the topic's last word, so a remapping could not choose it.
    """
    settings: dict[str, Any] = yaml.safe_load((SHARE / "config" / "mapping.rviz").read_text())
    manager = settings["Visualization Manager"]
    name = given["namespace"].strip("/")
    prefix = f"/{name}" if name else ""
    manager["Global Options"]["Fixed Frame"] = map_frame(given)
    displays: list[dict[str, Any]] = []
    for display in manager["Displays"]:
        topic = display.get("Topic", {}).get("Value", "")
        if topic.startswith(f"/{NODE}/"):
            display["Topic"]["Value"] = prefix + topic
        if topic == "/image":
            displays += [camera_display(display, label, each) for label, each in shown_images(given, prefix)]
        else:
            displays.append(display)
    manager["Displays"] = displays
    return settings


def shown_images(given: dict[str, str], prefix: str) -> list[tuple[str, str]]:
    """(label, topic) of the image of each camera."""
    cameras = names(given["cameras"]) or parameter(given, "cameras", [])
    topics = dict(camera_topics({**given, "cameras": ",".join(cameras)}))
    compressed = (given["transport"] or parameter(given, "input.transport", "")) == "compressed"
    shown = []
    for name in [each for each in cameras if each] or [""]:
        topic = topics[f"{name}/image" if name else "image"]
        topic = topic if topic.startswith("/") else f"{prefix}/{topic}"
        shown.append((f"Camera {name}".strip(), f"{topic}/compressed" if compressed else topic))
    return shown


def camera_display(display: dict[str, Any], label: str, topic: str) -> dict[str, Any]:
    """The display of the camera's image with another name and topic."""
    return {**display, "Name": label, "Topic": {**display["Topic"], "Value": topic}}


def map_frame(given: dict[str, str]) -> str:
    """The node's map frame: `frames.map`, below the namespace unless it begins with a slash."""
    frame = str(parameter(given, "frames.map", "map"))
    name = given["namespace"].strip("/")
    if frame.startswith("/") or not name or frame.startswith(f"{name}/"):
        return frame.removeprefix("/")
    return f"{name}/{frame}"


def parameter(given: dict[str, str], name: str, default: Any) -> Any:
    """A parameter's value in the params_file, nested or with dots; the default if it is not there."""
    found = default
    with open(given["params_file"], encoding="utf-8") as file:
        content = yaml.safe_load(file) or {}
    for node, section in content.items():
        if node == "/**" or node.split("/")[-1] == NODE:
            values = flat(section.get("ros__parameters", {}))
            found = values.get(name, found)
    return found


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters by dotted names."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return result


def next_to(topic: str, name: str) -> str:
    """The topic `name` next to another: /front/image_raw -> /front/camera_info."""
    return f"{topic.rpartition('/')[0]}/{name}" if "/" in topic else name


def is_true(text: str) -> bool:
    return text.lower() in ("true", "1", "yes", "on")

"""Plays a video, an image folder, a rosbag2 or the built-in walk into the mapping node.

When one of the two nodes fails, both end.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    IncludeLaunchDescription,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.events.process import ProcessExited
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription

SHARE = Path(get_package_share_directory("fast3r_ros"))
ARGUMENTS = (
    ("source", "synthetic", "a video, an image folder, a rosbag2, or the word synthetic"),
    ("topic", "", "the image topic of a rosbag2 that has several"),
    ("rate", "1.0", "speed: 1 is real time"),
    ("loop", "false", "start over at the end"),
    ("namespace", "", "namespace of both nodes"),
    ("params_file", str(SHARE / "config" / "mapping.yaml"), "parameters of the mapping node"),
    ("model", "", "demo, a checkpoint folder or a hub name of Fast3R, or name:checkpoint of another network"),
    ("rviz", "true", "start RViz"),
    ("viewer_port", "", "port of the web viewer on this machine, for example 8080"),
    ("log_level", "info", "debug, info, warn, error or fatal"),
)


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, default_value=value, description=text) for name, value, text in ARGUMENTS
    ]
    passed_on = ("namespace", "params_file", "model", "rviz", "viewer_port", "log_level")
    mapping = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(SHARE / "launch" / "mapping.launch.py")),
        launch_arguments={name: LaunchConfiguration(name) for name in passed_on}.items(),
    )
    return LaunchDescription([*declared, OpaqueFunction(function=start), mapping])


def start(context: LaunchContext) -> list[object]:
    """The replay node, and what happens when a node ends."""
    given = {name: LaunchConfiguration(name).perform(context) for name, _, _ in ARGUMENTS}
    replay = Node(
        package="fast3r_ros",
        executable="replay_node",
        name="fast3r_replay",
        namespace=given["namespace"],
        output="screen",
        parameters=[
            {
                "source": given["source"],
                "topic": given["topic"],
                "rate": float(given["rate"]),
                "wait_for_subscriber": 3600.0,  # loading takes minutes; if it fails, both nodes end
                "loop": given["loop"].lower() == "true",
            }
        ],
    )
    return [RegisterEventHandler(OnProcessExit(on_exit=ended)), replay]


def ended(event: ProcessExited, context: LaunchContext) -> list[object]:
    """After a process ended: report that the source was played, or end the other node."""
    node = event.process_name.split("-")[0]  # launch adds a number
    if node == "replay_node" and event.returncode == 0:
        text = "The source has been played.  The map stays up: save it with ~/save_map, end with Ctrl-C."
        return [LogInfo(msg=text)]
    if node in ("replay_node", "mapping_node") and not context.is_shutdown:
        return [EmitEvent(event=Shutdown(reason=f"{node} ended with status {event.returncode}"))]
    return []

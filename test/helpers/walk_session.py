"""One run of the walk: the mapping node with a stand-in network, the replay node, and their messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from fast3r_ros.msg import MappingStatus, WindowEstimate
from nav_msgs.msg import OccupancyGrid, Odometry
from nav_msgs.msg import Path as PathMessage
from patience import HANG_SECONDS, wait_until
from rclpy.duration import Duration
from rclpy.qos import QoSProfile, ReliabilityPolicy
from robot import settle
from ros_harness import DOUBLE, NODE, REPLAY, Listener, Program, arguments, domain
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import MarkerArray

from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.ros.pose_messages import ns_from_stamp

DOMAIN = domain(1)
LATCHED = {"map_cloud": PointCloud2, "path": PathMessage, "grid": OccupancyGrid, "markers": MarkerArray}
STREAMS = {
    "cloud": PointCloud2,
    "confidence": Image,
    "confidence_color": Image,
    "depth/image_rect": Image,
    "depth/camera_info": CameraInfo,
    "odometry": Odometry,
    "window": WindowEstimate,
    "status": MappingStatus,
}
OTHERS = {"/tf": TFMessage, "/diagnostics": DiagnosticArray, "/image": Image, "/ground_truth": Odometry}
PARAMETERS = {
    "grid.enabled": True,
    "grid.min_height": -0.5,
    "publish_view_frames": True,
    "output.status_rate": 10.0,
    "output.map_rate": 0.5,
    "map.voxel_size": 0.02,
    "viewer.port": 8700,
}


class Session:
    """The node, the listener, and the messages of the walk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.node = Program([*DOUBLE, "0.02", *arguments({"map_directory": directory, **PARAMETERS})], DOMAIN)
        self.listener = Listener(DOMAIN)
        for name, kind in STREAMS.items():
            self.listener.listen(kind, f"{NODE}/{name}")
        for name, kind in LATCHED.items():
            self.listener.listen(kind, f"{NODE}/{name}", latched=True)
        for topic, kind in OTHERS.items():
            self.listener.listen(kind, topic)
        self._walked: dict[str, list[Any]] = {}
        self.camera: Any = None  # the publisher of /image, from the first `publish` on

    def play(self) -> None:
        """Play the whole walk, until nothing is pending in the node."""
        self.wait_for_state(MappingStatus.WAITING)
        replay = Program([*REPLAY, *arguments({"rate": 1.2, "ground_truth": True})], DOMAIN)
        assert replay.wait() == 0, replay.output()
        settle(self.listener, most_waiting=MapperConfig().window.stride - 1)
        mapped = self.status()
        wait_until(lambda: self._shows(mapped), "the map, path, grid and markers of the last window")
        self._walked = {topic: list(messages) for topic, messages in self.listener.heard.items()}
        # until then the node takes another publisher's images for those of a second camera
        wait_until(lambda: "/image has no publisher" in self.diagnosis(0), "the end of the camera")

    def _shows(self, status: MappingStatus) -> bool:
        """Whether everything that is published of a map is that of a status."""
        heard = self.listener.heard
        if not all(heard[f"{NODE}/{name}"] for name in LATCHED):
            return False
        return heard[f"{NODE}/map_cloud"][-1].width == status.map_points

    def walked(self, topic: str) -> list[Any]:
        """The messages of the walk on a topic; a relative name is one of the node's own topics."""
        return self._walked[topic if topic.startswith("/") else f"{NODE}/{topic}"]

    def wait_for_state(self, state: int) -> MappingStatus:
        """The first status with this state, from now on."""
        return self.listener.wait_for(f"{NODE}/status", lambda message: message.state == state)

    def status(self) -> MappingStatus:
        """A status that was made after this call."""
        return self.listener.later(f"{NODE}/status")

    def drops(self) -> dict[str, int]:
        """Drops and problems by reason."""
        status = self.status()
        return {each.reason: each.count for each in [*status.drops, *status.problems]}

    def diagnosis(self, index: int) -> str:
        """The newest sentence of the input (0), the mapping (1) or the transforms (2)."""
        return self.listener.newest("/diagnostics").status[index].message

    def publish(self, messages: list[Any], topic: str = "/image", keyframes: int = 0) -> None:
        """Send messages; each image is processed before the next one.

        keyframes: number of images that may become keyframes, and wait for a window.
        """
        images = topic == "/image"
        publisher = self.camera if images else None
        if publisher is None:
            qos = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
            publisher = self.listener.node.create_publisher(type(messages[0]), topic, qos)
        self.listener.connect(publisher, adapts=images)
        before = self.status()
        for count, message in enumerate(messages, 1):
            publisher.publish(message)
            if images:
                self.listener.wait_for(
                    f"{NODE}/status",
                    lambda now, count=count: (
                        now.frames_received == before.frames_received + count
                        and now.frames_waiting <= before.frames_waiting + keyframes
                    ),
                )
        publisher.wait_for_all_acked(Duration(seconds=HANG_SECONDS))
        if images:
            self.camera = publisher
        else:
            self.listener.node.destroy_publisher(publisher)

    def withdraw_camera(self) -> None:
        """Leave /image to another publisher."""
        if self.camera is not None:
            self.listener.node.destroy_publisher(self.camera)
            self.camera = None


def stamps(messages: list[Any]) -> list[int]:
    """Their stamps in nanoseconds."""
    return [ns_from_stamp(message.header.stamp) for message in messages]

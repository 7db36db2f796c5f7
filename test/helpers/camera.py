"""A camera with meaningless images, for nodes that map by stamps: see faulty_node.py."""

from __future__ import annotations

import array
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from fast3r_ros.msg import MappingStatus
from patience import wait_until
from rclpy.qos import QoSProfile
from ros_harness import HERE, NODE, Listener, Program, arguments
from sensor_msgs.msg import Image

FAST = {
    "keyframes.motion": 0.0,
    "keyframes.sharpness": 0.0,
    "window.size": 6,
    "window.stride": 2,
    "window.overlap": 2,
    "output.status_rate": 30.0,
}
HEIGHT, WIDTH = 60, 80


def faulty_node(domain_id: int, fault: Path, **parameters: Any) -> Program:
    """A node whose faults a file switches."""
    return Program(faulty_command(fault, **parameters), domain_id)


def faulty_command(fault: Path, **parameters: Any) -> list[str]:
    """The command of `faulty_node`."""
    words = arguments({**FAST, **{name.replace("__", "."): value for name, value in parameters.items()}})
    return [sys.executable, str(HERE / "faulty_node.py"), str(fault), *words]


def ready_listener(domain_id: int) -> Listener:
    """A listener to the status of a node that is waiting for images."""
    listener = Listener(domain_id)
    listener.listen(MappingStatus, f"{NODE}/status")
    listener.wait_for(f"{NODE}/status", lambda message: message.state == MappingStatus.WAITING)
    return listener


class Camera:
    """Publishes noise with stamps 0.1 s apart."""

    def __init__(self, listener: Listener, topic: str = "/image") -> None:
        self._listener = listener
        self._publisher = listener.node.create_publisher(Image, topic, QoSProfile(depth=10))
        self._pixels = np.random.default_rng(0).integers(0, 256, (7, HEIGHT, WIDTH, 3), np.uint8)
        self.sent = 0

    def deliver(self, count: int = 1) -> None:
        """Publish images, each when the node has received the one before: none is lost or replaced."""
        heard = self._listener.heard[f"{NODE}/status"]
        for _ in range(count):
            before = heard[-1].frames_received
            self.stream(1, 0.0)
            wait_until(
                lambda before=before: heard[-1].frames_received != before, f"image {self.sent} in the node"
            )

    def stream(self, count: int, pause: float) -> None:
        """Publish images, `pause` seconds apart; some may be lost."""
        for _ in range(count):
            self.sent += 1
            message = Image(height=HEIGHT, width=WIDTH, step=3 * WIDTH, encoding="rgb8")
            message.header.frame_id = "camera"
            message.header.stamp.sec, tenths = divmod(10_000 + self.sent, 10)
            message.header.stamp.nanosec = tenths * 100_000_000
            message.data = array.array("B", self._pixels[self.sent % 7].tobytes())
            self._publisher.publish(message)
            time.sleep(pause)

    def connect(self) -> None:
        """Wait until the node gets the images."""
        self._listener.connect(self._publisher)

    def close(self) -> None:
        """Withdraw the publisher."""
        self._listener.node.destroy_publisher(self._publisher)

"""A known picture in every encoding, over DDS: the input of the node's network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

from fast3r_ros.msg import MappingStatus
from patience import wait_until
from rclpy.qos import QoSProfile, ReliabilityPolicy
from robot import listener_for
from ros_encoders import encode, even_slopes, expected, known_picture
from ros_harness import DOUBLE, NODE, Program, arguments, constants, domain, running
from sensor_msgs.msg import Image

from fast3r_ros.io.pixels import ENCODINGS

NAMES = [name for name in ENCODINGS if name != "16uc1"]
# every image becomes a keyframe, and every keyframe a window
ALL = [
    *constants({"keyframes.contrast": 0.0, "registration.retries": 0}),
    *arguments(
        {"keyframes.motion": 0.0, "keyframes.sharpness": 0.0, "window.stride": 1, "output.status_rate": 30.0}
    ),
]


def test_every_encoding_arrives_at_the_network(tmp_path: Path) -> None:
    """With padded rows; deep encodings in the byte order that is not this machine's."""
    domain_id = domain(22)
    node = Program([*DOUBLE, f"keep:{tmp_path}", *ALL], domain_id)
    listener = listener_for(domain_id)
    pictures = {name: even_slopes() if name.startswith("bayer") else known_picture() for name in NAMES}
    with running(node):
        listener.wait_for(f"{NODE}/status", lambda message: message.state == MappingStatus.WAITING)
        qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
        camera = listener.node.create_publisher(Image, "/image", qos)
        listener.connect(camera)
        heard = listener.heard[f"{NODE}/status"]
        names: dict[int, str] = {}  # by the stamp's second

        def all_seen() -> bool:
            """Send those that the network has not seen; one that arrives during a conversion is dropped."""
            for name in sorted(set(NAMES) - {names[second] for second in seen(tmp_path)}):
                names[len(names) + 1] = name
                message = encode(pictures[name], name, padding=6, big_endian=True)
                message.header.stamp.sec = len(names)
                camera.publish(message)
                wait_until(lambda: heard[-1].frames_received >= len(names), name)
            listener.later(f"{NODE}/status")
            return {names[second] for second in seen(tmp_path)} == set(NAMES)

        wait_until(all_seen, "every encoding")
    listener.close()
    for second, picture in seen(tmp_path).items():
        name = names[second]
        assert np.abs(picture - expected(pictures[name], name)).max() <= 2, name


def seen(folder: Path) -> dict[int, np.ndarray]:
    """The images received by the network, by the second of their stamp."""
    return {int(path.stem) // 10**9: np.load(path).astype(int) for path in folder.glob("*.npy")}

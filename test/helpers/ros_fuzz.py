"""Messages of random content, most of them broken in some way; as a program, a publisher of them.

Usage: ros_fuzz.py raw|compressed COUNT.  Prints a JSON line: how many of each topic were published.
"""

from __future__ import annotations

import array
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import rclpy
from fast3r_ros.msg import MappingStatus
from nav_msgs.msg import Odometry
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_encoders import known_picture
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from fast3r_ros.io.pixels import ENCODINGS
from fast3r_ros.ros.counters import LOST
from fast3r_ros.ros.image_messages import rgb_to_jpeg

ENCODING_NAMES = [*ENCODINGS, "", "rgb9", "32FC1", "\u00e4"]
MODELS = ("plumb_bob", "rational_polynomial", "equidistant", "", "wobbly", "\u00e4")
ODD_NUMBERS = (0.0, -1.0, 1.0, 50.0, 1e-300, 1e300, float("nan"), float("inf"), float("-inf"))
SEED = 1


def random_bytes(rng: np.random.Generator, limit: int) -> bytes:
    return rng.integers(0, 256, int(rng.integers(0, limit)), np.uint8).tobytes()


def random_image(rng: np.random.Generator) -> Image:
    """Any size, step and encoding, and data that rarely fits; never 64x48 or 320x240 pixels."""
    height, width, step = (int(value) for value in rng.integers(0, rng.choice([4, 40, 2**32]), 3))
    message = Image(height=height, width=width, step=step, is_bigendian=int(rng.integers(0, 256)))
    message.encoding = ENCODING_NAMES[rng.integers(len(ENCODING_NAMES))]
    message.data = array.array("B", random_bytes(rng, 400))
    return message


def random_compressed(rng: np.random.Generator, jpeg: bytes) -> CompressedImage:
    """The beginning of a JPEG, possibly nothing of it, and noise."""
    message = CompressedImage(format=ENCODING_NAMES[rng.integers(len(ENCODING_NAMES))])
    message.data = array.array("B", jpeg[: int(rng.integers(0, len(jpeg)))] + random_bytes(rng, 400))
    return message


def random_images(count: int, kinds: str, seed: int) -> Iterator[Image | CompressedImage]:
    """`count` messages; kinds: raw, compressed or both.  Two thirds have random stamps after 20 s."""
    rng = np.random.default_rng(seed)
    jpeg = rgb_to_jpeg(known_picture(16, 16), 0, "camera").data.tobytes()
    for index in range(count):
        compressed = kinds == "compressed" or (kinds == "both" and index % 4 == 0)
        message = random_compressed(rng, jpeg) if compressed else random_image(rng)
        message.header.stamp.sec = int(rng.integers(20, 2**31)) if index % 3 else index % 20
        message.header.frame_id = "camera_optical_frame" if index % 10 else ""
        yield message


def random_camera_info(rng: np.random.Generator) -> CameraInfo:
    """Half of them for the size of the walk's images, the others for any size up to gigapixels."""
    info = CameraInfo(width=320, height=240)
    if rng.random() < 0.5:
        info.width, info.height = (int(value) for value in rng.integers(0, 2**32, 2))
    numbers = [*ODD_NUMBERS, *rng.normal(0, 1000, 5)]
    info.k = rng.choice(numbers, 9)
    info.p = rng.choice(numbers, 12)
    info.d = rng.choice(numbers, int(rng.integers(0, 16))).tolist()
    info.distortion_model = MODELS[rng.integers(len(MODELS))]
    return info


def random_odometry(rng: np.random.Generator) -> Odometry:
    message = Odometry()
    pose = message.pose.pose
    for field, names in ((pose.position, "xyz"), (pose.orientation, "xyzw")):
        for name in names:
            setattr(field, name, float(rng.choice(ODD_NUMBERS)))
    message.header.stamp.sec = int(rng.integers(0, 2**31))
    return message


class Pace:
    """The rate of images that the node just sustains, from the lost ones in its ~/status."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._rate = 200.0
        self._lost = 0
        self._next = time.monotonic()
        self.received = 0  # images, by the node's status
        node.create_subscription(MappingStatus, "/fast3r_mapping/status", self._adapt, 10)

    def _adapt(self, status: MappingStatus) -> None:
        self.received = status.frames_received
        lost = sum(problem.count for problem in status.problems if problem.reason == LOST)
        self._rate = min(2000.0, self._rate * 1.1) if lost == self._lost else max(20.0, self._rate * 0.7)
        self._lost = lost

    def wait(self) -> None:
        """Until the next image is due."""
        self._next = max(self._next + 1.0 / self._rate, time.monotonic() - 0.01)
        while (left := self._next - time.monotonic()) > 0:
            rclpy.spin_once(self._node, timeout_sec=left)


def reliably_connected(node: Node, images: Publisher) -> bool:
    """Whether the node has adapted its subscription to a reliable publisher."""
    found = node.get_subscriptions_info_by_topic(images.topic_name)
    reliable = [each.qos_profile.reliability == ReliabilityPolicy.RELIABLE for each in found]
    return bool(found) and all(reliable) and images.get_subscription_count() >= len(found)


def publish(node: Node, transport: str, count: int) -> dict[str, int]:
    """Publish everything, every 50th image as invalid bytes; returns the numbers sent."""
    rng = np.random.default_rng(SEED)
    qos = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
    kind, topic = (Image, "image") if transport == "raw" else (CompressedImage, "image/compressed")
    images = node.create_publisher(kind, topic, qos)
    infos = node.create_publisher(CameraInfo, "camera_info", qos)
    odometry = node.create_publisher(Odometry, "odometry", qos)
    pace = Pace(node)
    while not all(each.get_subscription_count() for each in (images, infos, odometry)):
        rclpy.spin_once(node, timeout_sec=0.05)
    while not reliably_connected(node, images) or not pace.received:  # the walk's images
        rclpy.spin_once(node, timeout_sec=0.05)
    # the loss of a publisher's first message cannot be detected
    images.publish(kind())
    before = pace.received
    while pace.received == before:
        rclpy.spin_once(node, timeout_sec=0.05)
    sent: Counter[str] = Counter(images=1)
    start = time.monotonic()
    for index, message in enumerate(random_images(count, transport, SEED)):
        pace.wait()
        if index % 50 == 0:
            images.publish(b"\x00\x01\x00\x00" + random_bytes(rng, 60))
            sent["no message"] += 1
        images.publish(message)
        sent["images"] += 1
        if index % 20 == 0:
            infos.publish(random_camera_info(rng))
            odometry.publish(random_odometry(rng))
            sent["others"] += 1
    seconds = time.monotonic() - start
    images.wait_for_all_acked(Duration(seconds=10))
    return {**sent, "per_second": round(count / seconds)}


if __name__ == "__main__":
    rclpy.init()
    print(json.dumps(publish(rclpy.create_node("fuzz"), sys.argv[1], int(sys.argv[2]))))

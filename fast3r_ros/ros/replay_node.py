"""The node `fast3r_replay`: plays a source of frames like a camera, in real time, and then ends.

Topics: image (or image/compressed), camera_info when the source knows intrinsics, ground_truth
(nav_msgs/Odometry) when the source knows poses and `ground_truth` is set, /clock when `publish_clock` is set.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import rclpy
from nav_msgs.msg import Odometry
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from fast3r_ros.errors import UserError
from fast3r_ros.io.sources import Source, open_source
from fast3r_ros.mapping.data import Float64, Frame
from fast3r_ros.ros.image_messages import camera_info, rgb_to_image, rgb_to_jpeg
from fast3r_ros.ros.pose_messages import NS, odometry_message
from fast3r_ros.ros.process import begin, leave, spin_until

NODE_NAME = "fast3r_replay"
QUEUE = 30
PARAMETERS: dict[str, tuple[Any, str]] = {
    "source": (
        "synthetic",
        "a video, an image folder, a rosbag2, or the word synthetic",
    ),
    "topic": ("", "the image topic of a rosbag2 that has several"),
    "rate": (1.0, "speed: 1 is real time, 2 twice as fast"),
    "loop": (
        False,
        "start over at the end; stamps continue, or go back with the clock of publish_clock",
    ),
    "restamp": (False, "stamp the images with the present time instead of the source's own"),
    "frame_id": ("", "frame id of the images; empty: the source's own"),
    "transport": ("raw", "raw or compressed"),
    "reliable": (True, "publish images reliably; false: best effort, like most camera drivers"),
    "ground_truth": (
        False,
        "publish the true poses on ground_truth, if known",
    ),
    "publish_clock": (False, "publish the images' stamps on /clock, for use_sim_time"),
    "wait_for_node": (
        "fast3r_mapping",
        "name of the node that must subscribe before the first image; empty: any subscriber",
    ),
    "wait_for_subscriber": (30.0, "seconds to wait for subscribers before the first image; 0: do not wait"),
    "subscribers": (1, "number of image subscribers to wait for"),
}
REPORT_SECONDS = 3.0  # seconds of waiting before it is reported
FRAME_NS = 100_000_000  # step between two passes of a source with one image
ADAPT_SECONDS = 3.0  # time for a subscriber to adapt to our reliability


class ReplayNode(Node):
    """Opens the source and publishes it.  Raises UserError for an unusable source or parameter."""

    def __init__(self) -> None:
        super().__init__(NODE_NAME)
        for name, (default, text) in PARAMETERS.items():
            self.declare_parameter(name, default, ParameterDescriptor(description=text, read_only=True))
        self._rate = float(self._value("rate"))
        if not self._rate > 0:
            raise UserError(f"rate is {self._rate}; it must be above 0")
        self._compressed = self._value("transport") == "compressed"
        if self._value("transport") not in ("raw", "compressed"):
            raise UserError(f"transport is {self._value('transport')!r}; it must be raw or compressed")
        self.source: Source = open_source(self._value("source"), topic=self._value("topic") or None)
        reliability = ReliabilityPolicy.RELIABLE if self._value("reliable") else ReliabilityPolicy.BEST_EFFORT
        qos = QoSProfile(depth=QUEUE, reliability=reliability)
        base = self.resolve_topic_name("image")
        kind, topic = (CompressedImage, f"{base}/compressed") if self._compressed else (Image, base)
        self._images = self.create_publisher(kind, topic, qos)
        self._infos = self.create_publisher(CameraInfo, "camera_info", qos)
        self._truth = (
            self.create_publisher(Odometry, "ground_truth", qos) if self._value("ground_truth") else None
        )
        self._clock_publisher = (
            self.create_publisher(Clock, "/clock", 10) if self._value("publish_clock") else None
        )

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def play(self, stop: threading.Event) -> int:
        """Publish every frame at its time, until the end or `stop`; returns their number."""
        self._wait_for_subscribers(stop)
        count, later_ns = 0, 0
        while not stop.is_set():
            played, later_ns = self._play_once(stop, later_ns)
            count += played
            if not self._value("loop"):
                break
        self._images.wait_for_all_acked(Duration(seconds=5))
        for skipped in self.source.skipped:
            self.get_logger().warning(f"skipped: {skipped.name}: {skipped.reason}")
        self.get_logger().info(f"{count} images of {self.source.name} published")
        return count

    def _wait_for_subscribers(self, stop: threading.Event) -> None:
        """Wait until they are present and, for a moment, until they match our reliability."""
        patience, wanted = float(self._value("wait_for_subscriber")), int(self._value("subscribers"))
        start, reported = time.monotonic(), False
        while not self._all_there(wanted) and time.monotonic() < start + patience:
            if stop.wait(0.05):
                return
            if not reported and time.monotonic() > start + REPORT_SECONDS:
                reported = True
                self.get_logger().info(f"waiting {patience:.0f} s at most for {self._awaited(wanted)}")
        if patience > 0 and not self._all_there(wanted):
            self.get_logger().warning(
                f"playing without {self._awaited(wanted)}: not found within {patience:.0f} s"
            )
        limit = time.monotonic() + min(ADAPT_SECONDS, patience)
        while self._reliable_subscribers() < wanted and time.monotonic() < limit:
            if stop.wait(0.05):
                return
        if patience > 0:
            stop.wait(0.5)  # for discovery on both sides

    def _all_there(self, wanted: int) -> bool:
        """Whether `wanted` subscribers are present, with the awaited node, which subscribes when ready."""
        subscriptions = self.get_subscriptions_info_by_topic(self._images.topic_name)
        node = self._value("wait_for_node")
        found = not node or any(each.node_name == node for each in subscriptions)
        return found and len(subscriptions) >= wanted

    def _awaited(self, wanted: int) -> str:
        node = self._value("wait_for_node")
        others = "" if wanted == 1 and node else f"{wanted} subscribers"
        names = " and ".join(word for word in (node and f"the node {node}", others) if word)
        return f"{names} on {self._images.topic_name}"

    def _reliable_subscribers(self) -> int:
        subscriptions = self.get_subscriptions_info_by_topic(self._images.topic_name)
        return sum(each.qos_profile.reliability == ReliabilityPolicy.RELIABLE for each in subscriptions)

    def _play_once(self, stop: threading.Event, later_ns: int) -> tuple[int, int]:
        """Play the source once.  Frames are prepared ahead of time, late ones are sent at once.

        later_ns: offset of the stamps to the source's.  Returns the number of images, and `later_ns` of the
        next pass, whose first image comes one step after the last of this one.
        """
        start: float | None = None
        first_ns = last_ns = count = 0
        step_ns = FRAME_NS
        for frame in self.source:
            messages = self._messages(frame, later_ns)
            if start is None:
                start, first_ns = time.monotonic(), frame.stamp_ns
            due = start + (frame.stamp_ns - first_ns) / NS / self._rate
            if stop.wait(max(0.0, due - time.monotonic())):
                break
            self._publish(frame, *messages)
            step_ns = frame.stamp_ns - last_ns if count else step_ns
            last_ns = frame.stamp_ns
            count += 1
        if self._clock_publisher is not None:
            return count, 0
        return count, later_ns + last_ns - first_ns + max(step_ns, 1)

    def _messages(self, frame: Frame, later_ns: int) -> tuple[Image | CompressedImage, CameraInfo | None]:
        """The image, and its calibration if known."""
        camera, stamp_ns = self._value("frame_id") or frame.camera, frame.stamp_ns + later_ns
        to_message = rgb_to_jpeg if self._compressed else rgb_to_image
        image = to_message(frame.image, stamp_ns, camera)
        if frame.intrinsics is None:
            return image, None
        height, width = frame.image.shape[:2]
        return image, camera_info(frame.intrinsics, width, height, stamp_ns, camera)

    def _publish(self, frame: Frame, image: Image | CompressedImage, info: CameraInfo | None) -> None:
        stamp = self.get_clock().now().to_msg() if self._value("restamp") else image.header.stamp
        if self._clock_publisher is not None:
            self._clock_publisher.publish(Clock(clock=stamp))
        if info is not None:
            info.header.stamp = stamp
            self._infos.publish(info)
        image.header.stamp = stamp
        self._images.publish(image)
        truth = self.source.truth
        if self._truth is not None and truth is not None and frame.stamp_ns in truth:
            message = self._truth_message(truth[frame.stamp_ns], image.header.frame_id)
            message.header.stamp = stamp
            self._truth.publish(message)

    def _truth_message(self, world_from_camera: Float64, camera: str) -> Odometry:
        return odometry_message(world_from_camera, np.zeros((6, 6)), "world", camera, 0)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Play the source.  Ends the process: 0 at its end, 2 when it cannot be played, 130 after Ctrl-C."""
    stop = begin(arguments)
    try:
        node = ReplayNode()
    except UserError as error:
        print(f"{NODE_NAME}: {error}", file=sys.stderr)
        leave(2)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    spinning = spin_until(stop, executor)
    try:
        status = 0 if node.play(stop) and not stop.is_set() else 130
    except UserError as error:
        print(f"{NODE_NAME}: {error}", file=sys.stderr)
        status = 2
    stop.set()
    executor.shutdown(timeout_sec=0.5)
    spinning.join(0.5)  # a node in use is not destroyed, and would stay in the graph for its lease
    node.destroy_node()
    rclpy.shutdown()
    leave(status)


if __name__ == "__main__":
    main()

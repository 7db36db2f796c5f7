"""Masks that arrive after their images, one for all images, and invalid ones."""

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

from fast3r_ros.msg import MappingStatus
from patience import wait_until
from rclpy.qos import QoSProfile
from robot import QUICK, frames, listener_for
from ros_harness import DOUBLE, NODE, Program, arguments, constants, domain, running
from sensor_msgs.msg import Image

from fast3r_ros.mapping.data import Frame
from fast3r_ros.ros.counters import LOST
from fast3r_ros.ros.image_messages import packed, rgb_to_image
from fast3r_ros.ros.pose_messages import ns_from_stamp, stamp_from_ns

pytestmark = pytest.mark.slow


LATE = 3  # number of images before the first one's mask arrives


def mask_message(ignored: np.ndarray, stamp_ns: int, encoding: str = "mono8") -> Image:
    pixels = np.where(ignored, 255, 0).astype(np.uint8)
    message = Image(height=pixels.shape[0], width=pixels.shape[1], encoding=encoding, step=pixels.shape[1])
    message.header.stamp = stamp_from_ns(stamp_ns)
    message.data = packed(pixels)
    return message


def ignored_at(index: int) -> np.ndarray:
    """A person who walks through the image: a third of its width."""
    ignored = np.zeros((240, 320), bool)
    left = 4 * index % 220
    ignored[40:, left : left + 100] = True
    return ignored


class Robot:
    """The node, its status, and publishers of images and of their masks."""

    def __init__(self, number: int) -> None:
        domain_id = domain(number)
        patient = constants({"wait": 60.0})  # so that no mask is too late on a busy machine
        self.node = Program([*DOUBLE, "0.0", *patient, *arguments(QUICK)], domain_id)
        self.listener = listener_for(domain_id)
        self.listener.listen(Image, f"{NODE}/depth/image_rect")
        self.depths = self.listener.heard[f"{NODE}/depth/image_rect"]
        self._masks = self.listener.node.create_publisher(Image, "/mask", QoSProfile(depth=30))
        self._images = self.listener.node.create_publisher(Image, "/image", QoSProfile(depth=30))
        self._sent = 0

    def wait(self) -> None:
        """Wait until the node subscribes to images and masks.

        It has then seen that masks are published, because it adapts a subscription and takes images in turn.
        """
        self.status(lambda message: message.state == MappingStatus.WAITING)
        self.listener.connect(self._masks, self._images)

    def image(self, frame: Frame) -> None:
        """Send an image and wait until the node has received it, so that none is lost or replaced."""
        self._images.publish(rgb_to_image(frame.image, frame.stamp_ns, frame.camera))
        self._sent += 1
        self.status(lambda message: message.frames_received == self._sent)

    def mask(self, message: Image) -> None:
        self._masks.publish(message)

    def status(self, condition: Callable[[MappingStatus], bool]) -> MappingStatus:
        return self.listener.wait_for(f"{NODE}/status", condition)


@pytest.mark.parametrize("static", [False, True])
def test_no_point_comes_from_a_masked_pixel(static: bool) -> None:
    robot, sent = Robot(51 + static), frames()[:80]
    with running(robot.node):
        robot.wait()
        if static:
            robot.mask(mask_message(ignored_at(0), 0))
        for index, frame in enumerate(sent):
            robot.image(frame)
            if not static and index >= LATE:
                robot.mask(mask_message(ignored_at(index - LATE), sent[index - LATE].stamp_ns))
        for index in range(len(sent) - LATE, len(sent) * (not static)):
            robot.mask(mask_message(ignored_at(index), sent[index].stamp_ns))
        robot.status(lambda message: message.frames_waiting < 4)
        wait_until(lambda: len(robot.depths) > 10, "depth images")
        depths = list(robot.depths)
        status = robot.listener.later(f"{NODE}/status")
    robot.listener.close()
    index_of = {frame.stamp_ns: index for index, frame in enumerate(sent)}
    for message in depths:
        depth = np.frombuffer(message.data, np.float32).reshape(240, 320)
        ignored = ignored_at(0 if static else index_of[ns_from_stamp(message.header.stamp)])
        assert np.isnan(depth[ignored]).all()
        assert np.isfinite(depth[~ignored]).mean() > 0.4
    assert {each.reason for each in status.problems} <= {LOST}, status.problems  # on a busy machine


def test_bad_masks_are_counted_and_the_images_are_mapped() -> None:
    robot = Robot(53)
    with running(robot.node):
        robot.wait()
        for index, frame in enumerate(frames()[:40]):
            good = mask_message(ignored_at(0), frame.stamp_ns)
            small = mask_message(ignored_at(0)[:100], frame.stamp_ns)
            colour = mask_message(ignored_at(0), frame.stamp_ns, "rgb8")
            short = mask_message(ignored_at(0), frame.stamp_ns)
            short.data = short.data[:100]
            robot.mask((good, small, colour, short)[index % 4])
            robot.image(frame)
        wanted = {"mask of another size", "unknown mask encoding", "broken mask image"}
        robot.status(lambda message: wanted <= {each.reason for each in message.problems})
        status = robot.status(lambda message: message.frames_received == 40 and message.windows > 0)
    robot.listener.close()
    assert status.state == MappingStatus.MAPPING
    assert "Traceback" not in robot.node.output()

"""Masks that come after their images, one for all images, and bad ones."""

import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

from fast3r_ros.msg import MappingStatus
from rclpy.qos import QoSProfile
from robot import frames, listener_for
from ros_harness import DOUBLE, NODE, Program, arguments, domain, running, wait_until
from sensor_msgs.msg import Image

from fast3r_ros.ros.images import packed, rgb_to_image
from fast3r_ros.ros.times import ns_from_stamp, stamp_from_ns

pytestmark = pytest.mark.slow

LATE = 3  # images before the mask of the first of them comes


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


@pytest.mark.parametrize("static", [False, True])
def test_no_point_comes_from_a_masked_pixel(static: bool) -> None:
    domain_id = domain(51 + static)
    node = Program([*DOUBLE, "0.0", *arguments({"output.status_rate": 5.0, "window.stride": 2})], domain_id)
    listener = listener_for(domain_id)
    listener.listen(Image, f"{NODE}/depth/image_rect")
    masks = listener.node.create_publisher(Image, "/mask", QoSProfile(depth=30))
    images = listener.node.create_publisher(Image, "/image", QoSProfile(depth=30))
    with running(node):
        listener.wait_for(f"{NODE}/status", lambda message: message.state == MappingStatus.WAITING, 60)
        for publisher in (masks, images):
            wait_until(lambda publisher=publisher: publisher.get_subscription_count() > 0, 10, "the node")
        time.sleep(1.5)  # until the node knows that masks are published
        if static:
            masks.publish(mask_message(ignored_at(0), 0))
        sent = frames()
        for index, frame in enumerate(sent):
            images.publish(rgb_to_image(frame.image, frame.stamp_ns, frame.camera))
            time.sleep(0.08)
            if not static and index >= LATE:
                masks.publish(mask_message(ignored_at(index - LATE), sent[index - LATE].stamp_ns))
        for index in range(len(sent) - LATE, len(sent) * (not static)):
            masks.publish(mask_message(ignored_at(index), sent[index].stamp_ns))
        status = listener.wait_for(
            f"{NODE}/status",
            lambda message: message.frames_received == len(sent) and message.frames_waiting < 4,
            30,
        )
        wait_until(lambda: len(listener.heard[f"{NODE}/depth/image_rect"]) > 10, 30, "depth images")
    depths = list(listener.heard[f"{NODE}/depth/image_rect"])
    listener.close()
    assert not [problem for problem in status.problems if "mask" in problem.reason]
    index_of = {frame.stamp_ns: index for index, frame in enumerate(sent)}
    for message in depths:
        depth = np.frombuffer(message.data, np.float32).reshape(240, 320)
        ignored = ignored_at(0 if static else index_of[ns_from_stamp(message.header.stamp)])
        assert np.isnan(depth[ignored]).all()
        assert np.isfinite(depth[~ignored]).mean() > 0.4


def test_bad_masks_are_counted_and_the_images_are_mapped() -> None:
    domain_id = domain(53)
    node = Program([*DOUBLE, "0.0", *arguments({"output.status_rate": 5.0, "window.stride": 2})], domain_id)
    listener = listener_for(domain_id)
    masks = listener.node.create_publisher(Image, "/mask", QoSProfile(depth=30))
    images = listener.node.create_publisher(Image, "/image", QoSProfile(depth=30))
    with running(node):
        listener.wait_for(f"{NODE}/status", lambda message: message.state == MappingStatus.WAITING, 60)
        for publisher in (masks, images):
            wait_until(lambda publisher=publisher: publisher.get_subscription_count() > 0, 10, "the node")
        time.sleep(1.0)
        for index, frame in enumerate(frames()[:40]):
            good = mask_message(ignored_at(0), frame.stamp_ns)
            small = mask_message(ignored_at(0)[:100], frame.stamp_ns)
            colour = mask_message(ignored_at(0), frame.stamp_ns, "rgb8")
            short = mask_message(ignored_at(0), frame.stamp_ns)
            short.data = short.data[:100]
            masks.publish((good, small, colour, short)[index % 4])
            images.publish(rgb_to_image(frame.image, frame.stamp_ns, frame.camera))
            time.sleep(0.1)
        status = listener.wait_for(f"{NODE}/status", lambda message: message.frames_received == 40, 30)
        wanted = {"mask of another size", "unknown mask encoding", "broken mask image"}

        def counted() -> bool:
            problems = {each.reason for each in listener.newest(f"{NODE}/status").problems}
            return wanted <= problems

        wait_until(counted, 20, "the counts of bad masks")
        status = listener.wait_for(f"{NODE}/status", lambda message: message.windows > 0, 30)
    listener.close()
    assert status.state == MappingStatus.MAPPING
    assert "Traceback" not in node.output()

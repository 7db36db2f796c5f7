"""A camera of 1280x720 at 30 Hz for tests: raw rgb8, reliable, present time as stamp.  Usage: camera_720p.py SECONDS."""

import sys
import time

import numpy as np
import rclpy
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image

from fast3r_ros.ros.images import rgb_to_image

rclpy.init()
node = rclpy.create_node("camera_720p")
publisher = node.create_publisher(Image, "image", QoSProfile(depth=5))
rng = np.random.default_rng(0)
coarse = rng.integers(0, 256, (45, 100, 3), np.uint8)
wide = np.kron(coarse, np.ones((16, 16, 1), np.uint8))  # moves by 16 pixels a frame
messages = [rgb_to_image(wide[:, 16 * i : 16 * i + 1280], 0, "camera_optical_frame") for i in range(20)]
while publisher.get_subscription_count() == 0:
    time.sleep(0.05)
start, count, late = time.monotonic(), 0, 0
seconds = float(sys.argv[1])
while (now := time.monotonic()) < start + seconds:
    message = messages[count % len(messages)]
    message.header.stamp = node.get_clock().now().to_msg()
    publisher.publish(message)
    count += 1
    due = start + count / 30
    late += due < time.monotonic()
    time.sleep(max(0.0, due - time.monotonic()))
print(f"{count} images in {time.monotonic() - start:.1f} s, {late} late", flush=True)
rclpy.shutdown()

"""The replay node: waiting for subscribers, the stamps of a loop, and what it does not import."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

import rclpy
from patience import wait_until
from rclpy.qos import QoSProfile
from ros_harness import REPLAY, Listener, Program, arguments, domain, running
from sensor_msgs.msg import Image
from walk_session import stamps

pytestmark = pytest.mark.slow


def test_it_waits_for_the_mapping_node_and_a_loop_continues_in_time(tmp_path: Path) -> None:
    for number in range(3):
        picture = np.full((24, 32, 3), 80 * number, np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), picture)
    domain_id = domain(21)
    listener = Listener(domain_id)
    listener.listen(Image, "/image")  # as RViz does
    heard = listener.heard["/image"]
    parameters = {"source": tmp_path, "loop": True, "rate": 4.0, "wait_for_subscriber": 120.0}
    replay = Program([*REPLAY, *arguments(parameters)], domain_id)
    with running(replay):
        wait_until(lambda: "for the node fast3r_mapping on /image" in replay.output(), "it to say so")
        assert not heard
        mapping = rclpy.create_node("fast3r_mapping", context=listener._context)
        mapping.create_subscription(Image, "/image", lambda _: None, QoSProfile(depth=10))
        wait_until(lambda: len(heard) >= 8, "more images than the source has")
        mapping.destroy_node()
    listener.close()
    times = stamps(heard)
    assert all(later > earlier for earlier, later in pairwise(times)), times
    colours = [message.data[0] for message in heard[:8]]
    assert set(colours) == {0, 80, 160}


def test_files_are_replayed_without_pytorch() -> None:
    """It takes 200 MB and a second, next to a node that needs both."""
    code = "import sys, fast3r_ros.ros.replay_node; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

"""The node with a network of a foreign package, as shown in docs/networks.md."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

from fast3r_ros.msg import MappingStatus
from nav_msgs.msg import Path as PathMessage
from robot import listener_for
from ros_harness import MAPPING, NODE, REPLAY, Program, arguments, domain, running
from shown_package import install_shown_package

from fast3r_ros.metrics.trajectory import stamped_trajectory_scores
from fast3r_ros.ros.pose_messages import ns_from_stamp
from fast3r_ros.synthetic.sequence import demo_sequence

pytestmark = pytest.mark.slow


def test_it_maps_the_walk_in_metres(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_shown_package(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    number = domain(71)
    parameters = {"model": "toy:small", "device": "cpu", "scale.source": "network", "output.status_rate": 5.0}
    node = Program([*MAPPING, *arguments(parameters)], number)
    listener = listener_for(number)
    listener.listen(PathMessage, f"{NODE}/path", latched=True)
    with running(node):
        listener.wait_for(f"{NODE}/status", lambda status: status.state == MappingStatus.WAITING)
        replay = Program([*REPLAY, *arguments({"source": "synthetic:6"})], number)
        with running(replay):
            assert replay.wait() == 0
        status = listener.wait_for(f"{NODE}/status", lambda status: status.windows and status.metres)
        path = listener.wait_for(f"{NODE}/path", lambda path: len(path.poses) >= 6)
    listener.close()
    assert status.scale_source == "network"
    stamps = np.array([ns_from_stamp(pose.header.stamp) for pose in path.poses])
    places = np.tile(np.eye(4), (len(stamps), 1, 1))
    positions = [pose.pose.position for pose in path.poses]
    places[:, :3, 3] = [[each.x, each.y, each.z] for each in positions]
    walk = demo_sequence(6.0)
    true_stamps = np.array([walk.stamp_ns(i) for i in range(len(walk))])
    scores = stamped_trajectory_scores(stamps, places, true_stamps, walk.world_from_camera)
    assert scores.ate < 0.02
    assert scores.scale == pytest.approx(1.0, abs=0.02)


def test_the_demo_plays_into_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_shown_package(tmp_path / "packages")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"), prepend=":")
    arguments = ["--source", "synthetic:6", "--model", "toy:small", "--output", str(tmp_path / "output")]
    demo = Program([sys.executable, "-m", "fast3r_ros.ros.demo", *arguments], domain(73))
    with running(demo):
        assert demo.wait() == 0, demo.output()
    assert "toy:small; its quality has not been measured" in demo.output()
    assert (tmp_path / "output" / "map.ply").is_file()


def test_an_unknown_network_is_reported_with_the_known_ones() -> None:
    node = Program([*MAPPING, *arguments({"model": "none:small"})], domain(72))
    with running(node):
        assert node.wait() == 2
        output = node.output()
    assert "'none'" in output
    assert "fast3r" in output

"""The built interfaces: /tf has the upstream type, and nodes of both distributions communicate."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from ament_index_python.packages import get_package_share_directory
from domains import domain
from patience import HANG_SECONDS
from rosbags.typesys import Stores, get_typestore

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TALK = """
import sys, time, rclpy
from fast3r_ros.msg import DropCount, MappingStatus, StageLatency, ViewEstimate, WindowEstimate
from rclpy.qos import QoSProfile, DurabilityPolicy

rclpy.init()
node = rclpy.create_node(sys.argv[1])
qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
deadline = time.monotonic() + 240
if sys.argv[1] == "talker":
    status = node.create_publisher(MappingStatus, "status", qos)
    status.publish(MappingStatus(windows=7, drops=[DropCount(reason="blurred", count=3)]))
    window = node.create_publisher(WindowEstimate, "window", qos)
    views = [ViewEstimate(keyframe_id=5, mean_confidence=2.5)]
    window.publish(WindowEstimate(views=views, latencies=[StageLatency(stage="encode", seconds=0.5)]))
    while time.monotonic() < deadline:
        rclpy.spin_once(node, timeout_sec=0.1)
got = {}
node.create_subscription(MappingStatus, "status", lambda m: got.update(status=m), qos)
node.create_subscription(WindowEstimate, "window", lambda m: got.update(window=m), qos)
while len(got) < 2 and time.monotonic() < deadline:
    rclpy.spin_once(node, timeout_sec=0.1)
status, window = got["status"], got["window"]
print(status.windows, status.drops[0].reason, window.views[0].keyframe_id, window.latencies[0].stage)
"""


@pytest.mark.parametrize("distro", ["", "kilted"])
def test_messages_go_from_node_to_node(distro, tmp_path):
    program = tmp_path / "talk.py"
    program.write_text(TALK)
    environ = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    if not distro:  # the environment that the tests themselves run in
        environ = dict(os.environ)
    if distro:
        environ["DISTRO"] = distro
    environ.update(ROS_DOMAIN_ID=str(domain(90)), ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST")
    enter = f". {ROOT}/scripts/ros_env.sh"
    command = f"cd {tmp_path} && {enter} && exec python talk.py"
    talker = subprocess.Popen(["bash", "-c", f"{command} talker"], env=environ)
    try:
        listener = subprocess.run(
            ["bash", "-c", f"{command} listener"],
            env=environ,
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
        )
    finally:
        talker.kill()
        talker.wait()
    assert listener.stdout.split() == ["7", "blurred", "5", "encode"], listener.stderr


def test_tf_has_the_upstream_type():
    share = Path(get_package_share_directory("tf2_msgs"))
    hashes = json.loads((share / "msg" / "TFMessage.json").read_text())["type_hashes"]
    built = {each["type_name"]: each["hash_string"] for each in hashes}
    upstream = get_typestore(Stores.ROS2_JAZZY).hash_rihs01("tf2_msgs/msg/TFMessage")
    assert built["tf2_msgs/msg/TFMessage"] == upstream

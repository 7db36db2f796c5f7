"""Messages of random content over DDS: the node survives, counts each of them, and the map is unchanged.

FAST3R_FUZZ_MESSAGES=100000 for the long version, which takes minutes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

from fast3r_ros.msg import MappingStatus
from fast3r_ros.srv import SaveMap
from patience import wait_until
from robot import listener_for
from ros_harness import DOUBLE, HERE, NODE, REPLAY, Listener, Program, arguments, constants, domain, running

from fast3r_ros.ros.counters import LOST

pytestmark = pytest.mark.slow

MESSAGES = int(os.environ.get("FAST3R_FUZZ_MESSAGES", "1000"))
# reasons found by examining images
BROKEN = {
    "raw": {
        "image too large",
        "wrong step",
        "empty image",
        "unknown encoding",
        "truncated data",
        "size changed",
    },
    "compressed": {"undecodable image", "size changed"},
}


def counts(status: MappingStatus) -> dict[str, int]:
    """Drops and problems by reason."""
    return {each.reason: each.count for each in [*status.drops, *status.problems]}


def saved(listener: Listener, name: str) -> bytes:
    """The map, saved after all pending keyframes were processed."""
    answer = listener.call(SaveMap, f"{NODE}/save_map", name=name)
    assert answer.success, answer.message
    return Path(answer.path).read_bytes()


def settled(listener: Listener) -> MappingStatus:
    """The status when twelve messages in a row are the same."""
    heard = listener.heard[f"{NODE}/status"]
    first = len(heard)

    def calm() -> bool:
        newest = heard[first:][-12:]
        return len(newest) == 12 and len({(m.frames_received, str(m.problems)) for m in newest}) == 1

    wait_until(calm, "the last messages")
    return heard[-1]


@pytest.mark.parametrize("transport", ["raw", "compressed"])
def test_random_messages_are_counted_and_leave_the_map_alone(transport: str, tmp_path: Path) -> None:
    domain_id = domain(16)
    parameters = {"input.transport": transport, "map_directory": tmp_path, "output.status_rate": 10.0}
    # old stamps are then dropped: a larger step back is a restarted recording
    back = constants({"input.jump_back": 3600.0})
    node = Program([*DOUBLE, "0.0", *back, *arguments(parameters)], domain_id)
    listener = listener_for(domain_id)
    with running(node):
        listener.wait_for(f"{NODE}/status", lambda message: message.state == MappingStatus.WAITING)
        replay = Program(
            [*REPLAY, *arguments({"source": "synthetic:6", "rate": 3.0, "transport": transport})], domain_id
        )
        with running(replay):
            assert replay.wait() == 0, replay.output()
        before, map_before = settled(listener), saved(listener, "before.ply")
        version = settled(listener).map_version
        fuzz = Program([sys.executable, str(HERE / "ros_fuzz.py"), transport, str(MESSAGES // 2)], domain_id)
        with running(fuzz):
            assert fuzz.wait() == 0
            sent = json.loads(fuzz.output().splitlines()[-1])
        after = settled(listener)
        told = listener.later("/diagnostics").status[0].message
        assert saved(listener, "after.ply") == map_before
        assert node.process.poll() is None
    listener.close()
    assert after.state == MappingStatus.MAPPING
    assert after.map_version == version
    new = {reason: count - counts(before).get(reason, 0) for reason, count in counts(after).items()}
    print(sent, {reason: count for reason, count in new.items() if count})
    # every image that was sent has come, or its number is missing; invalid bytes never arrive
    received = after.frames_received - before.frames_received
    assert received + new.get(LOST, 0) == sent["images"] + sent["no message"]
    assert new[LOST] >= sent["no message"]
    # every received image was dropped, with its reason; most were processed
    assert sum(each.count for each in after.drops) == after.frames_dropped
    assert after.frames_dropped - before.frames_dropped == received
    assert BROKEN[transport] <= {reason for reason, count in new.items() if count}
    assert sum(new[reason] for reason in BROKEN[transport]) > received / 10
    assert "internal error" not in new
    others = ("unusable camera_info", "odometry: pose not finite")
    assert all(0.3 * sent["others"] < new[reason] <= sent["others"] for reason in others)
    wait = [reason for reason in (*BROKEN[transport], *others) if reason not in told]
    assert not wait, told
    assert "Traceback" not in node.output()

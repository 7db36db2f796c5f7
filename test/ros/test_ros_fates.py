"""Every received frame is counted, whichever stage fails: received = used + waiting + dropped, always."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

from camera import Camera, faulty_node, ready_listener
from fast3r_ros.msg import MappingStatus
from fast3r_ros.srv import LoadMap, SaveMap
from faulty_node import DISTURBED, FAULTS, switch
from geometry_msgs.msg import TransformStamped
from patience import wait_until
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from ros_harness import NODE, Listener, Program, domain, running
from std_srvs.srv import SetBool, Trigger
from tf2_msgs.msg import TFMessage

from fast3r_ros.ros.inputs import FRAMES

pytestmark = pytest.mark.slow

STATUS = f"{NODE}/status"
IN_HAND = 20  # maximum number of frames in the mailbox, in conversion, in a window or pending


class Faulty:
    """A node with faults, a camera, and the node's status."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "fault"
        domain_id = domain(41)
        self.node: Program = faulty_node(domain_id, self._file, map_directory=folder)
        self.listener: Listener = ready_listener(domain_id)
        self.camera = Camera(self.listener)
        self.camera.connect()

    def switch(self, fault: str) -> None:
        switch(self._file, fault)

    def status(self) -> MappingStatus:
        """A status made after this call."""
        return self.listener.later(STATUS)

    def settled(self) -> MappingStatus:
        """The status when all sent images have been processed."""
        last: list[MappingStatus] = [self.status()]

        def quiet() -> bool:
            before, now = last[0], self.status()
            last[0] = now
            same = (before.frames_received, before.frames_used, before.frames_dropped)
            return same == (now.frames_received, now.frames_used, now.frames_dropped)

        wait_until(quiet, "counts that do not change")
        return last[0]

    def adds_up(self) -> bool:
        """Whether every status so far accounts for every frame, and few are waiting."""
        return all(
            m.frames_received == m.frames_used + m.frames_waiting + m.frames_dropped
            and m.frames_dropped == sum(each.count for each in m.drops)
            and m.frames_waiting <= IN_HAND
            for m in self.listener.heard[STATUS]
        )


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    faulty = Faulty(tmp_path_factory.mktemp("faults"))
    with running(faulty.node):
        yield faulty
        assert faulty.node.stop() == 0
    faulty.listener.close()


def drops(status: MappingStatus) -> Counter[str]:
    return Counter({each.reason: each.count for each in status.drops})


@pytest.mark.parametrize("fault", FAULTS)
def test_every_frame_has_a_fate_when_a_stage_fails(faulty: Faulty, fault: str) -> None:
    faulty.camera.deliver(6)
    faulty.settled()
    # nothing is pending afterwards
    assert faulty.listener.call(SaveMap, f"{NODE}/save_map", name="before", overwrite=True).success
    before = faulty.status()
    faulty.switch(fault)
    faulty.camera.deliver(12)
    during = faulty.settled()
    faulty.switch("")
    assert during.frames_received >= before.frames_received + 10
    assert during.last_error
    if fault in DISTURBED:
        assert during.windows_rejected > before.windows_rejected
        assert during.frames_used == before.frames_used
    elif "publishing" not in fault and fault not in ("handing over", "adapting", "loop"):
        assert drops(during) - drops(before)
    windows = during.windows - during.windows_rejected
    faulty.camera.deliver(12)
    faulty.listener.wait_for(STATUS, lambda m: m.windows - m.windows_rejected > windows)
    assert faulty.adds_up()
    assert faulty.node.process.poll() is None


def test_a_reduced_window_stays_when_another_parameter_changes(faulty: Faulty) -> None:
    """Earlier faults have reduced the window; the parameter shows it."""

    def size() -> int:
        answer = faulty.listener.call(GetParameters, f"{NODE}/get_parameters", names=["window.size"])
        return int(answer.values[0].integer_value)

    assert size() == faulty.status().window_size == 4  # stride + overlap
    change = Parameter("output.map_rate", value=2.0).to_parameter_msg()
    answer = faulty.listener.call(SetParameters, f"{NODE}/set_parameters", parameters=[change])
    assert answer.results[0].successful
    faulty.camera.deliver(4)
    assert size() == faulty.settled().window_size == 4
    change = Parameter("window.size", value=6).to_parameter_msg()
    assert faulty.listener.call(SetParameters, f"{NODE}/set_parameters", parameters=[change]).results
    wait_until(lambda: faulty.status().window_size == 6, "what somebody asked for")
    assert size() == 6


def test_counts_hold_across_services(faulty: Faulty) -> None:
    """A loaded map's keyframes do not count as used frames; frames in progress are still counted."""
    for _ in range(3):
        faulty.camera.deliver(12)
        assert faulty.listener.call(SaveMap, f"{NODE}/save_map", name="kept", overwrite=True).success
        faulty.camera.deliver(6)
        assert faulty.listener.call(LoadMap, f"{NODE}/load_map", name="kept").success
        faulty.camera.deliver(6)
        assert faulty.listener.call(SetBool, f"{NODE}/pause", data=True).success
        faulty.camera.deliver(3)
        assert faulty.listener.call(SetBool, f"{NODE}/pause", data=False).success
        assert faulty.listener.call(Trigger, f"{NODE}/reset").success
    assert faulty.adds_up()


def test_a_flood_of_frames_on_tf_is_bounded_and_a_reset_makes_room(faulty: Faulty) -> None:
    qos = QoSProfile(depth=100)
    transforms = faulty.listener.node.create_publisher(TFMessage, "/tf", qos)
    faulty.listener.connect(transforms, adapts=False)

    def publish(names: list[str], length: float) -> None:
        message = TFMessage(transforms=[TransformStamped(child_frame_id=name) for name in names])
        for transform in message.transforms:
            transform.header.frame_id = "world"
            transform.transform.rotation.w = length
        transforms.publish(message)

    def problems(message: MappingStatus) -> Counter[str]:
        return Counter({each.reason: each.count for each in message.problems})

    for part in range(7):
        publish([f"frame {part * 1000 + number}" for number in range(1000)], 1.0)
    faulty.listener.wait_for(STATUS, lambda m: problems(m)["too many frames on TF"] > 7000 - FRAMES)
    assert faulty.listener.call(Trigger, f"{NODE}/reset").success
    publish(["frame of a robot"], 1.0)
    publish(["frame of a robot"], 0.5)
    after = faulty.listener.wait_for(
        STATUS, lambda m: "transform: quaternion not of unit length" in problems(m)
    )
    assert "too many frames on TF" not in problems(after)


def test_the_newest_error_is_reported(faulty: Faulty) -> None:
    """An error of the node does not hide later ones of the mapper, nor vice versa."""
    for fault, words in (("conversion", "conversion"), ("points NaN", "finite"), ("network", "decoder")) * 2:
        faulty.switch(fault)
        faulty.camera.deliver(12)
        faulty.listener.wait_for(STATUS, lambda message, words=words: words in message.last_error)
    faulty.switch("")

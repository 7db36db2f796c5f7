"""Every wait ends: services while a pass is slow, many calls at once, Ctrl-C, and callbacks that fail."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

from builtin_interfaces.msg import Time
from camera import Camera, faulty_node, ready_listener
from fast3r_ros.msg import MappingStatus
from fast3r_ros.srv import SaveMap
from faulty_node import Fault, Wall, switch
from patience import HANG_SECONDS, wait_until
from rclpy.qos import QoSProfile
from ros_harness import NODE, Listener, domain, running
from rosgraph_msgs.msg import Clock
from std_srvs.srv import Trigger

from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.ros.counters import Counters
from fast3r_ros.ros.worker import MappingThread, ShuttingDown

pytestmark = pytest.mark.slow

CALLS = 200
STATUS = f"{NODE}/status"


class Log:
    """A logger that discards its lines."""

    def warning(self, text: str, **_: Any) -> None: ...

    def error(self, text: str, **_: Any) -> None: ...


def calls(listener: Listener, kind: Any, service: str, count: int) -> list[Any]:
    """Futures of `count` calls at once, of a client with room for all answers."""
    client = listener.node.create_client(kind, service, qos_profile=QoSProfile(depth=count))
    assert client.wait_for_service(HANG_SECONDS)
    return [client.call_async(kind.Request()) for _ in range(count)]


def test_requests_fail_as_soon_as_the_thread_is_asked_to_end() -> None:
    """The running request, the waiting ones, and later ones."""
    begun, go_on = threading.Event(), threading.Event()

    def work(mapper: Mapper) -> None:
        begun.set()
        go_on.wait(HANG_SECONDS)

    thread = MappingThread(
        Mapper(Wall(Fault(Path("none")))), Counters(), Log(), lambda *_: None, lambda _: None, lambda _: None
    )
    futures: list[Future[None]] = [thread.request(work) for _ in range(3)]
    assert begun.wait(HANG_SECONDS)
    assert not thread.stop(0.0)
    futures.append(thread.request(work))
    for future in futures:
        with pytest.raises(ShuttingDown):
            future.result(HANG_SECONDS)
    go_on.set()
    assert thread.stop(HANG_SECONDS)


def test_many_calls_at_once_are_all_answered_also_while_a_pass_is_slow(tmp_path: Path) -> None:
    """200 calls of a client: one waits for the pass, the others are answered as busy; images are still
    received.
    """
    fault = tmp_path / "fault"
    domain_id = domain(31)
    node = faulty_node(domain_id, fault, map_directory=tmp_path)
    with running(node):
        listener = ready_listener(domain_id)
        camera = Camera(listener)
        camera.connect()
        switch(fault, "slow:600")
        camera.deliver(10)
        answers = calls(listener, Trigger, f"{NODE}/reset", CALLS)
        wait_until(lambda: sum(each.done() for each in answers) >= CALLS - 1, "answers but one")
        camera.deliver(5)
        switch(fault, "")
        wait_until(lambda: all(each.done() for each in answers), "all answers")
        said = [each.result().message for each in answers]
        assert sum(word.startswith("busy: ~/reset") for word in said) >= CALLS // 2
        assert "the map is empty" in said
        assert listener.call(Trigger, f"{NODE}/reset").success
        listener.close()
    assert "Traceback" not in node.output()


def test_a_map_is_saved_while_the_camera_is_faster_than_the_network(tmp_path: Path) -> None:
    fault = tmp_path / "fault"
    domain_id = domain(32)
    switch(fault, "slow:0.3")
    node = faulty_node(domain_id, fault, map_directory=tmp_path)
    with running(node):
        listener = ready_listener(domain_id)
        camera, done = Camera(listener), threading.Event()

        def go_on() -> None:
            while not done.is_set():
                camera.stream(1, 0.03)

        sending = threading.Thread(target=go_on)
        sending.start()
        try:
            listener.wait_for(STATUS, lambda message: message.windows >= 2)
            answer = listener.call(SaveMap, f"{NODE}/save_map", name="live")
            later = listener.wait_for(STATUS, lambda message: message.frames_waiting > 0)
        finally:
            done.set()
            sending.join()
        assert answer.success, answer.message
        assert answer.points > 1000
        assert later.windows > 0
        listener.close()


@pytest.mark.parametrize("service", ["save_map", "reset"])
def test_the_node_ends_at_once_despite_waiting_work(tmp_path: Path, service: str) -> None:
    """Ctrl-C in the middle of a pass of ten minutes, with a service that waits for it."""
    fault = tmp_path / "fault"
    domain_id = domain(33)
    node = faulty_node(domain_id, fault, map_directory=tmp_path)
    with running(node):
        listener = ready_listener(domain_id)
        camera = Camera(listener)
        camera.connect()
        camera.deliver(6)
        listener.wait_for(STATUS, lambda message: message.windows > 0)
        switch(fault, "slow:600")
        camera.deliver(8)
        kind = SaveMap if service == "save_map" else Trigger
        (answer,) = calls(listener, kind, f"{NODE}/{service}", 1)
        wait_until(lambda: "busy" in calls_message(listener), "the service to be in work")
        assert node.stop() == 0  # it would be killed long before the pass ends
        if answer.done() and not answer.result().success:  # it may have been served before the pass began,
            # or after another that waits
            assert re.search("shut down|busy", answer.result().message)
        listener.close()


def calls_message(listener: Listener) -> str:
    """The node's answer to a reset; none while it works on it."""
    (answer,) = calls(listener, Trigger, f"{NODE}/reset", 1)
    limit = time.monotonic() + 5
    while not answer.done() and time.monotonic() < limit:
        time.sleep(0.02)
    return answer.result().message if answer.done() else ""


def test_a_clock_from_before_the_epoch_does_not_end_the_node(tmp_path: Path) -> None:
    """rclpy's own callback raises; it is counted, logged once, and the next message is taken."""
    domain_id = domain(34)
    node = faulty_node(domain_id, tmp_path / "fault", use_sim_time=True)
    with running(node):
        listener = ready_listener(domain_id)
        clock = listener.node.create_publisher(Clock, "/clock", 10)
        listener.connect(clock, adapts=False)

        def publish(second: int) -> bool:
            clock.publish(Clock(clock=Time(sec=second)))  # best effort: some may be lost
            listener.later(STATUS)
            return sum(each.count for each in listener.newest(STATUS).problems) > 2

        wait_until(lambda: publish(-1) and publish(-(2**31)), "the failures to be counted")
        wait_until(
            lambda: publish(5) and listener.newest(STATUS).header.stamp.sec == 5, "the time to be taken"
        )
        status = listener.newest(STATUS)
        assert {each.reason for each in status.problems} == {"internal error"}
        assert status.state == MappingStatus.WAITING
        assert node.output().count("Traceback") == 1
        assert node.stop() == 0
        listener.close()

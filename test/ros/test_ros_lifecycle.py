"""The node's life cycle: transitions by a manager, many cycles, failed starts, and stopping during a pass."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from fast3r_ros.msg import MappingStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetAvailableStates, GetAvailableTransitions, GetState
from patience import wait_until
from ros_harness import DOUBLE, MAPPING, NODE, REPLAY, Listener, Program, arguments, domain, running
from sensor_msgs.msg import PointCloud2

pytestmark = pytest.mark.slow

DOMAIN = domain(2)
CYCLES = 20


class Managed:
    """A node that waits for its manager, and the manager.  program: a mapping node or its double."""

    def __init__(self, program: list[str], domain_id: int, **parameters: Any) -> None:
        waiting = {"autostart": False, "output.status_rate": 10.0, **parameters}
        self.node = Program([*program, *arguments(waiting)], domain_id)
        self.listener = Listener(domain_id)
        self.listener.listen(MappingStatus, f"{NODE}/status")
        self.listener.listen(PointCloud2, f"{NODE}/cloud")

    def change(self, transition: int) -> bool:
        request = Transition(id=transition)
        return self.listener.call(ChangeState, f"{NODE}/change_state", transition=request).success

    def state(self) -> str:
        return self.listener.call(GetState, f"{NODE}/get_state").current_state.label

    def wait_for_status(self, state: int) -> None:
        self.listener.wait_for(f"{NODE}/status", lambda message: message.state == state)

    def inputs(self) -> int:
        return self.listener.node.count_subscribers("/image")

    def outputs(self) -> int:
        return self.listener.node.count_publishers(f"{NODE}/cloud")


@pytest.fixture(scope="module")
def managed() -> Iterator[Managed]:
    managed = Managed([*DOUBLE, "0.02"], DOMAIN)
    with running(managed.node):
        yield managed
    managed.listener.close()
    assert "Traceback" not in managed.node.output()


def test_transitions_create_and_remove_the_right_interfaces(managed: Managed) -> None:
    managed.wait_for_status(MappingStatus.UNCONFIGURED)
    assert managed.state() == "unconfigured"
    assert (managed.inputs(), managed.outputs()) == (0, 0)
    assert managed.change(Transition.TRANSITION_CONFIGURE)
    assert managed.state() == "inactive"
    managed.wait_for_status(MappingStatus.INACTIVE)
    wait_until(lambda: (managed.inputs(), managed.outputs()) == (0, 1), "publishers only")
    assert managed.change(Transition.TRANSITION_ACTIVATE)
    assert managed.state() == "active"
    managed.wait_for_status(MappingStatus.WAITING)
    wait_until(lambda: (managed.inputs(), managed.outputs()) == (1, 1), "the image subscription")
    replay = Program([*REPLAY, *arguments({"rate": 3.0, "loop": True})], DOMAIN)
    with running(replay):
        managed.wait_for_status(MappingStatus.MAPPING)
        managed.listener.wait_for(f"{NODE}/cloud", lambda _: True)
        assert managed.change(Transition.TRANSITION_DEACTIVATE)
    managed.wait_for_status(MappingStatus.INACTIVE)
    wait_until(lambda: managed.inputs() == 0, "the image subscription to go")
    managed.listener.later(f"{NODE}/status")
    count = len(managed.listener.heard[f"{NODE}/cloud"])
    points = managed.listener.newest(f"{NODE}/status").map_points
    assert points > 0  # the map stays
    for _ in range(5):  # a second of the node's time
        managed.listener.later(f"{NODE}/status")
    assert len(managed.listener.heard[f"{NODE}/cloud"]) == count
    assert managed.change(Transition.TRANSITION_CLEANUP)
    assert managed.state() == "unconfigured"
    wait_until(lambda: managed.outputs() == 0, "the publishers to go")
    managed.wait_for_status(MappingStatus.UNCONFIGURED)
    assert managed.listener.newest(f"{NODE}/status").map_points == 0


def test_cycles_leak_neither_threads_nor_memory(managed: Managed) -> None:
    steps = (
        Transition.TRANSITION_CONFIGURE,
        Transition.TRANSITION_ACTIVATE,
        Transition.TRANSITION_DEACTIVATE,
        Transition.TRANSITION_CLEANUP,
    )
    threads, memory = [], []
    for _ in range(CYCLES):
        for step in steps:
            assert managed.change(step)
        threads.append(managed.node.threads())
        memory.append(managed.node.memory_mb())
    print(f"threads {threads[0]} … {threads[-1]}, memory {memory[0]:.0f} … {memory[-1]:.0f} MB")
    assert threads[-1] <= threads[2]
    # after the caches of the first cycles are filled
    assert memory[-1] - memory[4] < 15


def test_states_and_transitions_are_the_standard_ones(managed: Managed) -> None:
    """Like the requests of `ros2 lifecycle list` and Nav2's lifecycle manager."""
    answer = managed.listener.call(GetAvailableStates, f"{NODE}/get_available_states")
    assert {"unconfigured", "inactive", "active", "finalized"} <= {s.label for s in answer.available_states}
    expected = ({"configure", "shutdown"}, {"cleanup", "activate", "shutdown"}, {"deactivate", "shutdown"})
    steps = (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE, None)
    for labels, step in zip(expected, steps, strict=True):
        answer = managed.listener.call(GetAvailableTransitions, f"{NODE}/get_available_transitions")
        assert {each.transition.label for each in answer.available_transitions} == labels
        assert step is None or managed.change(step)
    assert not managed.change(Transition.TRANSITION_CONFIGURE)  # not from here
    assert managed.state() == "active"
    assert managed.change(Transition.TRANSITION_DEACTIVATE)
    assert managed.change(Transition.TRANSITION_CLEANUP)


def test_shutdown_transition_works(managed: Managed) -> None:
    assert managed.change(Transition.TRANSITION_UNCONFIGURED_SHUTDOWN)
    assert managed.state() == "finalized"
    assert managed.node.stop() == 0


@pytest.mark.parametrize("active", [False, True], ids=["inactive", "active"])
def test_shutdown_frees_everything(active: bool) -> None:
    managed = Managed([*DOUBLE, "0.02"], domain(18))
    with running(managed.node):
        assert managed.change(Transition.TRANSITION_CONFIGURE)
        if active:
            assert managed.change(Transition.TRANSITION_ACTIVATE)
            assert managed.change(Transition.TRANSITION_ACTIVE_SHUTDOWN)
        else:
            assert managed.change(Transition.TRANSITION_INACTIVE_SHUTDOWN)
        assert managed.state() == "finalized"
        wait_until(lambda: (managed.inputs(), managed.outputs()) == (0, 0), "everything to go")
        status = managed.node.stop()
    managed.listener.close()
    assert status == 0
    assert "Traceback" not in managed.node.output()


def test_a_missing_model_is_reported_to_the_manager() -> None:
    """The manager's call fails, the node continues unconfigured and reports the reason."""
    managed = Managed(MAPPING, domain(19), model="/no/such/model")
    managed.listener.listen(DiagnosticArray, "/diagnostics")
    with running(managed.node):
        assert not managed.change(Transition.TRANSITION_CONFIGURE)
        assert managed.state() == "unconfigured"
        managed.wait_for_status(MappingStatus.ERROR)
        assert "/no/such/model" in managed.listener.newest(f"{NODE}/status").last_error
        said = managed.listener.wait_for(
            "/diagnostics", lambda message: "/no/such/model" in message.status[1].message
        )
        assert said.status[1].level == DiagnosticStatus.ERROR
        assert managed.node.process.poll() is None
    managed.listener.close()
    assert "Traceback" not in managed.node.output()


def test_an_error_at_activation_is_reported_and_the_node_starts_again() -> None:
    faulty = Managed([*DOUBLE, "fault:0.0"], domain(5))
    with running(faulty.node):
        assert faulty.change(Transition.TRANSITION_CONFIGURE)
        assert not faulty.change(Transition.TRANSITION_ACTIVATE)
        assert faulty.state() == "unconfigured"  # error processing has freed everything
        faulty.wait_for_status(MappingStatus.ERROR)
        message = faulty.listener.newest(f"{NODE}/status")
        assert message.last_error == "RuntimeError: no room for another subscription"
        wait_until(lambda: (faulty.inputs(), faulty.outputs()) == (0, 0), "publishers to go")
        assert faulty.change(Transition.TRANSITION_CONFIGURE)
        assert faulty.change(Transition.TRANSITION_ACTIVATE)
        faulty.wait_for_status(MappingStatus.WAITING)
        assert faulty.inputs() == 1
    faulty.listener.close()
    assert "Traceback" not in faulty.node.output()


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"model": "/no/such/model"}, "/no/such/model"),
        ({"window.size": 1}, "window.size"),
        ({"cameras": "['front left']"}, "front left"),
    ],
)
def test_wrong_starts_end_with_one_clear_line(parameters: dict, words: str) -> None:
    program = Program([*MAPPING, *arguments(parameters)], domain(3))
    with running(program):
        assert program.wait() == 2
    output = program.output()
    assert "Traceback" not in output
    lines = [line for line in output.splitlines() if words in line]
    assert len(lines) == 1, output


def test_stopping_in_mid_pass_does_not_wait_for_its_end() -> None:
    domain_id = domain(4)
    node = Program([*DOUBLE, "600", *arguments({"output.status_rate": 5.0})], domain_id)
    replay = Program([*REPLAY, *arguments({"rate": 2.0})], domain_id)
    listener = Listener(domain_id)
    listener.listen(MappingStatus, f"{NODE}/status")
    with running(node, replay):
        # during the pass: enough keyframes for a window were taken, and there is no result yet
        listener.wait_for(f"{NODE}/status", lambda message: message.frames_received > 60)
        assert listener.newest(f"{NODE}/status").windows == 0
        status = node.stop(signal.SIGTERM)
    listener.close()
    assert status == 0  # it would be killed long before the pass ends
    assert "Traceback" not in node.output()

"""The QoS of the image subscription over DDS: the publishers', or the parameter's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

from diagnostic_msgs.msg import DiagnosticArray
from fast3r_ros.msg import MappingStatus
from patience import wait_until
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_encoders import encode, known_picture
from ros_harness import DOUBLE, Listener, Program, arguments, domain, running
from sensor_msgs.msg import Image

pytestmark = pytest.mark.slow

RELIABLE, BEST_EFFORT = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT
DOMAIN = domain(17)
WANTED = ("auto", "reliable", "best_effort")  # a node for each, in a namespace of this name


def status_topic(wanted: str) -> str:
    return f"/{wanted}/fast3r_mapping/status"


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    """A listener to three nodes that subscribe to one camera topic."""
    nodes = [
        Program(
            [
                *DOUBLE,
                "0.0",
                *arguments(
                    {"input.reliability": wanted, "output.status_rate": 30.0},
                    {"__ns": f"/{wanted}", "image": "/camera/image"},
                ),
            ],
            DOMAIN,
        )
        for wanted in WANTED
    ]
    listener = Listener(DOMAIN)
    listener.listen(DiagnosticArray, "/diagnostics")
    for wanted in WANTED:
        listener.listen(MappingStatus, status_topic(wanted))
    with running(*nodes):
        for wanted in WANTED:
            listener.wait_for(status_topic(wanted), lambda m: m.state == MappingStatus.WAITING)
        yield listener
    listener.close()


def subscribed(listener: Listener) -> dict[str, ReliabilityPolicy]:
    """Namespace of a node -> reliability of its image subscription, from the middleware."""
    endpoints = listener.node.get_subscriptions_info_by_topic("/camera/image")
    return {each.node_namespace.strip("/"): each.qos_profile.reliability for each in endpoints}


def received(listener: Listener) -> dict[str, int]:
    return {wanted: listener.newest(status_topic(wanted)).frames_received for wanted in WANTED}


def settled(listener: Listener) -> dict[str, int]:
    """The received messages, once none are in transport."""
    seen: list[dict[str, int]] = [{}]

    def calm() -> bool:
        for wanted in WANTED:
            listener.later(status_topic(wanted))
        seen.append(received(listener))
        return seen[-1] == seen[-2]

    wait_until(calm, "counts that do not change")
    return seen[-1]


@pytest.mark.parametrize(
    ("offered", "expected", "hears"),
    [
        (RELIABLE, (RELIABLE, RELIABLE, BEST_EFFORT), (True, True, True)),
        (BEST_EFFORT, (BEST_EFFORT, RELIABLE, BEST_EFFORT), (True, False, True)),
    ],
    ids=["reliable camera", "best-effort camera"],
)
def test_reliability_is_the_publishers_or_the_parameters(
    listener: Listener,
    offered: ReliabilityPolicy,
    expected: tuple[ReliabilityPolicy, ...],
    hears: tuple[bool, ...],
) -> None:
    before = settled(listener)
    camera = listener.node.create_publisher(Image, "/camera/image", QoSProfile(depth=5, reliability=offered))
    wait_until(lambda: subscribed(listener) == dict(zip(WANTED, expected, strict=True)), "three subscribers")
    listening = [wanted for wanted, heard in zip(WANTED, hears, strict=True) if heard]
    message = encode(known_picture(), "rgb8")

    def all_heard() -> bool:
        """Send one more image, because some may be lost or sent before discovery."""
        message.header.stamp.sec += 1
        camera.publish(message)
        listener.later(status_topic(listening[0]))
        now = received(listener)
        return all(now[wanted] - before[wanted] >= 8 for wanted in listening)

    wait_until(all_heard, f"images in {listening}")
    deaf = [wanted for wanted in WANTED if wanted not in listening]
    now = settled(listener)
    assert [now[wanted] - before[wanted] for wanted in deaf] == [0] * len(deaf)
    words = "/listener publishes /camera/image best effort: a reliable subscription receives nothing from it"
    if deaf:
        wait_until(lambda: any(words in text for text in said(listener)), "the diagnosis")
    else:
        assert not any(words in text for text in said(listener))
    listener.node.destroy_publisher(camera)
    wait_until(lambda: listener.node.count_publishers("/camera/image") == 0, "the camera to go")


def said(listener: Listener) -> set[str]:
    """The nodes' newest diagnostics of their inputs."""
    return {message.status[0].message for message in listener.heard["/diagnostics"][-6:]}

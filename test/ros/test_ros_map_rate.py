"""When the whole map is published, and the size of images, by the parameters."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

import rclpy
from patience import HANG_SECONDS, wait_until
from rclpy.node import Node
from ros_harness import Listener, domain
from sensor_msgs.msg import Image, PointCloud2
from visualization_msgs.msg import Marker, MarkerArray

from fast3r_ros.benchmark.synthetic_run import start, the_loop
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.pose_graph import Edge
from fast3r_ros.ros.broadcaster import Broadcaster
from fast3r_ros.ros.camera import CameraFacts
from fast3r_ros.ros.counters import Counters
from fast3r_ros.ros.live_viewer import LiveViewer
from fast3r_ros.ros.node_config import NodeConfig, OutputConfig, ViewerConfig
from fast3r_ros.ros.outputs import Outputs
from fast3r_ros.ros.transforms import OwnFrames, OwnLookup

pytestmark = pytest.mark.slow

DOMAIN = domain(12)
TOPIC = "/mapper/map_cloud"
INPUT_SIZE, NETWORK_SIZE = (128, 96), (64, 48)
CONFIG = NodeConfig(tf_mode="none", output=OutputConfig(map_rate=0.01))


@pytest.fixture
def node() -> Iterator[Node]:
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=DOMAIN)
    node = rclpy.create_node("mapper", context=context)
    yield node
    node.destroy_node()
    rclpy.shutdown(context=context)


def outputs_of(node: Node, camera: str, port: int = 8765) -> Outputs:
    facts = {camera: CameraFacts(INPUT_SIZE, True, "")}
    broadcaster = Broadcaster(lambda _: None, CONFIG, OwnFrames(), OwnLookup(), facts)
    viewer = LiveViewer(ViewerConfig(port=port), node.get_logger())
    outputs = Outputs(node, CONFIG, Counters(), broadcaster, facts, {}, viewer, lambda: None)
    outputs.active = True
    return outputs


@pytest.mark.parametrize("host", ["198.51.100.1", "no such host"])
def test_a_viewer_that_cannot_listen_is_reported(host: str) -> None:
    told: list[str] = []
    logger = SimpleNamespace(error=told.append, info=told.append)
    viewer = LiveViewer(ViewerConfig(port=8765, host=host), logger)
    assert not viewer.active
    assert len(told) == 1
    assert "the node continues without it" in told[0]


def test_the_viewers_token_and_hosts_are_parameters_of_the_node() -> None:
    told: list[str] = []
    logger = SimpleNamespace(error=told.append, info=told.append, warning=told.append)
    config = ViewerConfig(port=8765, host="0.0.0.0", token="a-token-of-a-robot", allowed_hosts=("robot.lan",))
    viewer = LiveViewer(config, logger)
    address = re.search(r"http://0\.0\.0\.0:(\d+)/\?token=a-token-of-a-robot$", told[0])
    assert address is not None, told
    assert len(told) == 1  # with a token, there is no warning
    for host, expected in (("robot.lan", 401), ("other.lan", 403)):
        request = urllib.request.Request(f"http://127.0.0.1:{address[1]}/", headers={"Host": host})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=HANG_SECONDS)
        assert refused.value.code == expected
    viewer.stop()

    told.clear()
    LiveViewer(ViewerConfig(port=8765, host="0.0.0.0"), logger).stop()
    assert "viewer.token" in told[1]


def listener_on(outputs: Outputs, count: int) -> Listener:
    listener = Listener(DOMAIN)
    listener.listen(PointCloud2, TOPIC, latched=True)
    publisher = outputs._publishers["map_cloud"]
    wait_until(lambda: publisher.get_subscription_count() == count, "the subscription")
    return listener


def test_images_have_the_inputs_or_the_networks_size(node: Node) -> None:
    sequence, frames = the_loop()
    run = start(sequence).feed(frames[:60])
    outputs = outputs_of(node, sequence.camera)
    listener = Listener(DOMAIN)
    images = listener.heard["/mapper/confidence"]
    listener.listen(Image, "/mapper/confidence")
    wait_until(lambda: outputs._publishers["confidence"].get_subscription_count() == 1, "a subscriber")
    result = replace(run.results[-1], views=run.results[-1].views[-4:])
    for image_size, (width, height) in (("input", INPUT_SIZE), ("network", NETWORK_SIZE)):
        outputs.config = replace(CONFIG, output=replace(CONFIG.output, image_size=image_size))
        outputs.restart()
        images.clear()
        outputs.window(run.mapper, result)
        wait_until(lambda: len(images) == 4, "the images of four views")
        assert {(message.width, message.height) for message in images} == {(width, height)}
    outputs.stop()
    listener.close()


def test_the_map_is_published_when_it_is_due(node: Node) -> None:
    sequence, frames = the_loop()
    run = start(sequence).feed(frames[:60])
    outputs = outputs_of(node, sequence.camera)
    first = listener_on(outputs, 1)
    clouds = first.heard[TOPIC]
    outputs.idle(run.mapper)
    wait_until(lambda: len(clouds) == 1, "the first map")
    points = [run.mapper.map.points]
    in_browser = outputs._viewer._viewer
    assert in_browser is not None
    assert in_browser.address.startswith("http://127.0.0.1:")
    page = urllib.request.urlopen(in_browser.address, timeout=HANG_SECONDS)
    assert "text/html" in page.headers["Content-Type"]
    wait_until(lambda: in_browser.points_shown == clouds[-1].width, "the map in the browser")

    run.feed(frames[60:100])
    for _ in range(3):  # a hundred seconds have not passed
        outputs.idle(run.mapper)
        outputs.window(run.mapper, run.results[-1])
    outputs.window(run.mapper, replace(run.results[-1], loop_closed=True))
    wait_until(lambda: len(clouds) == 2, "the map after a loop")
    points.append(run.mapper.map.points)

    run.feed(frames[100:140])
    second = listener_on(outputs, 2)
    outputs.idle(run.mapper)
    wait_until(lambda: len(clouds) == 3, "the map for a new subscriber")
    wait_until(lambda: second.heard[TOPIC][-1:] == clouds[-1:], "the newest map")
    points.append(run.mapper.map.points)

    outputs.idle(run.mapper)  # nothing is new
    run.feed(frames[140:160])
    outputs.window(run.mapper, replace(run.results[-1], loop_closed=True))
    points.append(run.mapper.map.points)
    wait_until(lambda: clouds[-1].width == points[-1], "the map after another loop")
    assert [cloud.width for cloud in clouds] == points  # none between them
    assert len(set(points)) == 4
    outputs.stop()
    assert not outputs._viewer.active
    for listener in (first, second):
        listener.close()


def test_markers_reach_late_subscribers_and_are_removed_with_the_map(node: Node) -> None:
    """They have no subscriber when the map is published, nor when another one replaces it."""
    sequence, frames = the_loop()
    run = start(sequence).feed(frames[:60])
    first, *_, last = run.mapper.map.keyframes
    run.mapper._builder.loops.edges.add(Edge(first, last, Sim3.identity(), 1.0, (0.1, 0.1, 0.1), robust=True))
    outputs = outputs_of(node, sequence.camera, port=0)
    clouds = listener_on(outputs, 1)
    outputs.idle(run.mapper)
    wait_until(lambda: len(clouds.heard[TOPIC]) == 1, "the map")

    viewer = Listener(DOMAIN)
    viewer.listen(MarkerArray, "/mapper/markers", latched=True)
    markers = viewer.heard["/mapper/markers"]
    wait_until(lambda: outputs._publishers["markers"].get_subscription_count() == 1, "the subscription")
    outputs.idle(run.mapper)
    wait_until(lambda: len(markers) == 1, "the markers of the map that was sent")
    keyframes, loops = markers[0].markers
    assert len(keyframes.points) == 16 * len(run.mapper.map.keyframes)
    assert len(loops.points) == 2
    viewer.close()

    wait_until(lambda: outputs._publishers["markers"].get_subscription_count() == 0, "its end")
    outputs.restart()
    outputs.idle(run.mapper)  # the same map again, as one that was loaded
    wait_until(lambda: len(clouds.heard[TOPIC]) == 2, "the loaded map")
    outputs.restart()
    outputs.idle(start(sequence).mapper)
    late = Listener(DOMAIN)
    late.listen(MarkerArray, "/mapper/markers", latched=True)
    wait_until(lambda: late.heard["/mapper/markers"], "the empty map's markers")
    assert {each.action for each in late.heard["/mapper/markers"][-1].markers} == {Marker.DELETE}
    outputs.stop()
    for listener in (clouds, late):
        listener.close()

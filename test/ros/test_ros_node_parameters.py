"""Every parameter of the node has its effect: the tests of each, and a node with other values."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy", reason="ROS is not installed here")

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from fast3r_ros.msg import MappingStatus, WindowEstimate
from nav_msgs.msg import OccupancyGrid, Odometry
from nav_msgs.msg import Path as PathMessage
from patience import HANG_SECONDS, wait_until
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.executors import MultiThreadedExecutor
from rclpy.parameter import Parameter
from ros_encoders import encode, known_picture
from ros_harness import DOUBLE, NODE, REPLAY, Listener, Program, arguments, constants, domain, running
from sensor_msgs.msg import Image, PointCloud2
from tf2_msgs.msg import TFMessage

from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import descriptor_limits
from fast3r_ros.mapping.occupancy import OCCUPIED
from fast3r_ros.ros import session as node_session
from fast3r_ros.ros.image_messages import confidence_color
from fast3r_ros.ros.mapping_node import MappingNode
from fast3r_ros.ros.messages import message_to_cloud
from fast3r_ros.ros.node_config import NodeConfig
from fast3r_ros.ros.parameters import declared_fields, parameter_fields, with_changes
from fast3r_ros.ros.pose_messages import ns_from_stamp
from fast3r_ros.synthetic.oracle_network import OracleNetwork
from fast3r_ros.synthetic.sequence import demo_sequence

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent
# setting -> the test that fails without its effect; those of the mapper are in test_mapping_parameters
SHOWN = {
    "test_ros_choices": "model device dtype accelerate torch_threads expected_image",
    "test_ros_lifecycle": "autostart",
    "test_ros_scenarios": "cameras input.transport viewer.port",
    "test_ros_walk_services": "localization map_directory map_path output.status_rate",
    "test_ros_walk_outputs": "publish_view_frames",
    "test_ros_robot": "tf_mode input.odometry frames.odom frames.base tf.rate tf.tolerance",
    "test_ros_qos": "input.reliability",
    "test_ros_fuzz": "input.jump_back",
    "test_ros_map_rate": "output.map_rate output.image_size viewer.host viewer.token viewer.allowed_hosts",
    "test_ros_node_parameters": "input.use_camera_info input.frame_id input.timeout frames.map frames.camera "
    "output.max_confidence output.path_length grid.enabled grid.resolution grid.min_height "
    "grid.max_height grid.min_points",
}
VALUES: dict[str, Any] = {
    "input.use_camera_info": False,
    "input.frame_id": "front",
    "frames.map": "world",
    "tf_mode": "camera",
    "output.path_length": 5,
    "output.status_rate": 5.0,
    "grid.enabled": True,
    "grid.resolution": 0.2,
    "grid.min_height": 0.3,
    "grid.max_height": 0.7,
}
CONSTANTS = {
    "input.timeout": 0.5,
    "frames.camera": "eye",
    "output.max_confidence": 3.0,
    "grid.min_points": 40,
}
TOPICS = {
    "window": WindowEstimate,
    "odometry": Odometry,
    "path": PathMessage,
    "map_cloud": PointCloud2,
    "grid": OccupancyGrid,
    "confidence": Image,
    "confidence_color": Image,
    "status": MappingStatus,
}


def test_every_parameter_is_shown_by_a_test() -> None:
    own = {name for name, _, _ in parameter_fields(NodeConfig())} - set(MapperConfig().to_flat())
    shown = [name for names in SHOWN.values() for name in names.split()]
    assert sorted(shown) == sorted(own)
    for module, names in SHOWN.items():
        text = (HERE / f"{module}.py").read_text() + (HERE.parent / "helpers" / "walk_session.py").read_text()
        for name in names.split():
            assert re.search(rf"\b{re.escape(name)}\b|\b{name.split('.')[-1]}=", text), (module, name)


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Any]]]:
    """The messages of a node with a params file of other values during the walk."""
    file = tmp_path_factory.mktemp("parameters") / "mine.yaml"
    file.write_text(yaml.safe_dump({"/**": {"ros__parameters": VALUES}}))
    domain_id = domain(20)
    node = Program(
        [*DOUBLE, "0.02", *constants(CONSTANTS), "--ros-args", "--params-file", str(file)], domain_id
    )
    listener = Listener(domain_id)
    for name, kind in TOPICS.items():
        listener.listen(kind, f"{NODE}/{name}", latched=name in ("map_cloud", "path", "grid"))
    listener.listen(TFMessage, "/tf")
    listener.listen(DiagnosticArray, "/diagnostics")
    with running(node):
        listener.wait_for(f"{NODE}/status", lambda message: message.state == MappingStatus.WAITING)
        replay = Program([*REPLAY, *arguments({"rate": 2.0, "frame_id": "lens"})], domain_id)
        with running(replay):
            assert replay.wait() == 0, replay.output()
        # one more image, and then nothing: told after less than the default's three seconds
        camera = listener.node.create_publisher(Image, "/image", 10)
        listener.connect(camera)
        image = encode(known_picture(240, 320), "rgb8")
        image.header.stamp.sec = 100
        said = listener.heard["/diagnostics"]

        def silent() -> bool:
            first = len(said)
            image.header.stamp.sec += 1
            camera.publish(image)
            wait_until(lambda: len(said) >= first + 3, "diagnostics")
            words = r"no image for [012]\.\d s on /image"
            return any(re.search(words, each.status[0].message) for each in said[first:])

        wait_until(silent, "the silence")
        wait_until(lambda: len(listener.heard[f"{NODE}/grid"]) > 0, "the grid")
    listener.close()
    assert "Traceback" not in node.output()
    return {**{name: listener.heard[f"{NODE}/{name}"] for name in TOPICS}, "/tf": listener.heard["/tf"]}


def test_frames_have_other_names(heard: dict[str, list[Any]]) -> None:
    for name in ("path", "map_cloud", "grid", "odometry", "window", "status"):
        assert {message.header.frame_id for message in heard[name]} == {"world"}, name
    assert {message.child_frame_id for message in heard["odometry"]} == {"eye"}
    transforms = [each for message in heard["/tf"] for each in message.transforms]
    edges = {(each.header.frame_id, each.child_frame_id) for each in transforms}
    assert edges == {("world", "eye"), ("eye", "front")}
    assert {message.header.frame_id for message in heard["confidence"]} == {"front"}


def test_intrinsics_are_estimated_when_camera_info_is_not_wanted(heard: dict[str, list[Any]]) -> None:
    views = [view for window in heard["window"] for view in window.views]
    assert views
    assert all(view.intrinsics_estimated for view in views)


def test_images_and_path_are_as_wanted(heard: dict[str, list[Any]]) -> None:
    assert len(heard["path"][-1].poses) == 5
    confidence = {ns_from_stamp(message.header.stamp): message for message in heard["confidence"]}
    both = [each for each in heard["confidence_color"] if ns_from_stamp(each.header.stamp) in confidence]
    for colour in both:
        message = confidence[ns_from_stamp(colour.header.stamp)]
        values = np.frombuffer(message.data, np.float32).reshape(message.height, message.width)
        assert np.array_equal(np.frombuffer(colour.data, np.uint8), confidence_color(values, 3.0).ravel())
    assert both


def test_the_grid_is_the_clouds_by_its_parameters(heard: dict[str, list[Any]]) -> None:
    """Cells of 0.2 with at least 40 points between 0.3 and 0.7 above the floor are occupied."""
    clouds = {ns_from_stamp(message.header.stamp): message for message in heard["map_cloud"]}
    pairs = [(clouds.get(ns_from_stamp(grid.header.stamp)), grid) for grid in heard["grid"]]
    alike = []
    for cloud, grid in pairs:
        if cloud is not None:
            occupied = np.array(grid.data).reshape(grid.info.height, grid.info.width) == OCCUPIED
            assert grid.info.resolution == pytest.approx(0.2)
            place = grid.info.origin.position
            above = message_to_cloud(cloud).points - np.array([place.x, place.y, place.z], np.float32)
            points = above[(above[:, 2] >= 0.3) & (above[:, 2] <= 0.7)]
            column, row = np.floor(points[:, :2] / 0.2).astype(int).T
            counts = np.zeros(occupied.shape, int)
            np.add.at(counts, (row, column), 1)
            alike.append(occupied[counts >= 44].mean())  # the floor is not quite level
            assert not occupied[counts < 20].any()
    assert max(alike) == 1.0


def other_value(item: Any, default: Any) -> Any:
    """A value in range that is not the default."""
    if isinstance(default, bool):
        return not default
    if item.metadata["choices"]:
        return next(choice for choice in item.metadata["choices"] if choice != default)
    high = item.metadata["range"][1]
    if isinstance(default, int):
        return default + 1
    return default + (min(high, default + 1.0) - default) / 2


def test_changes_at_run_time_reach_everybody() -> None:
    """All at once, over DDS: the threads of input, mapping and output then work with the new values."""
    domain_id = domain(21)
    rclpy.init(domain_id=domain_id)
    node = MappingNode(lambda config: OracleNetwork(demo_sequence()))
    executor = MultiThreadedExecutor(2)
    executor.add_node(node)
    spinning = threading.Thread(target=executor.spin, daemon=True)
    spinning.start()
    listener = Listener(domain_id)
    try:
        assert node.autostart()
        changes = [
            Parameter(name, value=other_value(item, default))
            for name, item, default in declared_fields(NodeConfig())
            if item.metadata["dynamic"]
        ]
        assert len(changes) > 15
        expected = with_changes(node.config, changes)
        kind, service = SetParametersAtomically, f"{NODE}/set_parameters_atomically"
        answer = listener.call(kind, service, parameters=[each.to_parameter_msg() for each in changes])
        assert answer.result.successful, answer.result.reason
        session = node._session
        assert session is not None
        mapper = session.mapping.mapper
        wanted = expected.mapper.for_network(descriptor_limits(mapper._network))
        wait_until(lambda: mapper.config == wanted, "the mapper")
        for part in (node, session.inputs, session.outputs, session.broadcaster):
            assert part.config == expected, part
        assert node._status_timer.timer_period_ns == round(1e9 / expected.output.status_rate)
        assert node._tf_timer.timer_period_ns == round(1e9 / expected.tf.rate)
    finally:
        listener.close()
        assert node.stop()
        executor.shutdown()
        spinning.join(HANG_SECONDS)
        node.destroy_node()
        rclpy.shutdown()


def test_destroyed_entities_are_released_after_cleanup() -> None:
    """rclpy's groups keep a reference to every former member."""
    rclpy.init(domain_id=domain(22))
    node = MappingNode(lambda config: OracleNetwork(demo_sequence()))
    try:
        known = []
        for _ in range(3):
            node.trigger_configure()
            node.trigger_cleanup()
            known.append(len(node.default_callback_group.entities) + len(node._input_group.entities))
        assert known[2] == known[0] > 0
    finally:
        node.destroy_node()
        rclpy.shutdown()


def test_the_network_is_warmed_up_on_the_thread_that_runs_its_windows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """cuDNN keeps its plans for each thread."""
    warmed: list[tuple[object, int | None]] = []

    def prepare(network: object, config: NodeConfig) -> None:
        warmed.append((network, threading.current_thread().ident))

    monkeypatch.setattr(node_session, "prepare_network", prepare)
    rclpy.init(domain_id=domain(22))
    network = OracleNetwork(demo_sequence())
    node = MappingNode(lambda config: network)
    try:
        node.trigger_configure()
        assert node._session is not None
        mapping = node._session.mapping
        windows = mapping.request(lambda mapper: threading.current_thread().ident).result(HANG_SECONDS)
        assert warmed == [(network, windows)]
        assert windows != threading.current_thread().ident
        node.trigger_cleanup()
    finally:
        node.destroy_node()
        rclpy.shutdown()


def test_a_timer_that_still_runs_while_the_node_is_taken_apart_reports_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The executor may be in a callback when the node and its publisher are destroyed."""
    rclpy.init(domain_id=domain(23))
    node = MappingNode(lambda config: OracleNetwork(demo_sequence()))
    try:
        ticks = [timer.callback for timer in node.timers]
        assert node.stop()
    finally:
        node.destroy_node()
        rclpy.shutdown()
    for tick in ticks:
        tick()
    assert len(ticks) > 2
    assert "internal error" not in capfd.readouterr().err

"""The mapping node as a process, fed by the replay node over DDS: every topic, service and parameter.

One run of the walk is recorded and looked at from many sides, then the same node gets services and bad input.
"""

from __future__ import annotations

import array
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

from diagnostic_msgs.msg import DiagnosticArray
from fast3r_ros.msg import MappingStatus, WindowEstimate
from fast3r_ros.srv import LoadMap, SaveMap
from nav_msgs.msg import OccupancyGrid, Odometry
from nav_msgs.msg import Path as PathMessage
from rcl_interfaces.msg import Parameter, ParameterValue
from rcl_interfaces.srv import DescribeParameters, ListParameters, SetParameters
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_encoders import encode, known_picture
from ros_harness import DOUBLE, NODE, REPLAY, Listener, Program, arguments, domain, running, wait_until
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_srvs.srv import SetBool, Trigger
from tf2_msgs.msg import TFMessage

from fast3r_ros.io.ply import read_ply
from fast3r_ros.ros.clouds import message_to_cloud
from fast3r_ros.ros.config import NodeConfig
from fast3r_ros.ros.parameters import parameter_fields
from fast3r_ros.ros.poses import matrix_from_pose, matrix_from_transform
from fast3r_ros.ros.times import ns_from_stamp
from fast3r_ros.synthetic.sequence import demo_sequence

DOMAIN = domain(1)
LATCHED = {"map_cloud": PointCloud2, "path": PathMessage, "grid": OccupancyGrid}
STREAMS = {
    "cloud": PointCloud2,
    "confidence": Image,
    "confidence_color": Image,
    "depth": Image,
    "depth/camera_info": CameraInfo,
    "odometry": Odometry,
    "window": WindowEstimate,
    "status": MappingStatus,
}


class Session:
    """The node, the listener, and what was heard while the walk was played."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        parameters = {
            "map_directory": directory,
            "grid.enabled": True,
            "grid.min_height": -0.5,
            "publish_view_frames": True,
            "output.status_rate": 5.0,
        }
        self.node = Program([*DOUBLE, "0.02", *arguments(parameters)], DOMAIN)
        self.listener = Listener(DOMAIN)
        for name, kind in STREAMS.items():
            self.listener.listen(kind, f"{NODE}/{name}")
        for name, kind in LATCHED.items():
            self.listener.listen(kind, f"{NODE}/{name}", latched=True)
        self.listener.listen(TFMessage, "/tf")
        self.listener.listen(DiagnosticArray, "/diagnostics")
        self.listener.listen(Image, "/image")
        self.listener.listen(Odometry, "/ground_truth")

    def play(self) -> None:
        """The whole walk, until nothing more waits in the node."""
        self.wait_for_state(MappingStatus.WAITING)
        self.replay = Program([*REPLAY, *arguments({"rate": 1.2, "ground_truth": True})], DOMAIN)
        assert self.replay.wait(60) == 0, self.replay.output()
        time.sleep(3.0)

    def wait_for_state(self, state: int) -> MappingStatus:
        return self.listener.wait_for(f"{NODE}/status", lambda message: message.state == state, 60)

    def heard(self, name: str) -> list[Any]:
        return self.listener.heard[f"{NODE}/{name}"]

    def status(self) -> MappingStatus:
        """A status from now on."""
        count = len(self.heard("status"))
        wait_until(lambda: len(self.heard("status")) > count + 1, 10, "status")
        return self.heard("status")[-1]

    def drops(self) -> dict[str, int]:
        status = self.status()
        return {each.reason: each.count for each in [*status.drops, *status.problems]}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    session = Session(tmp_path_factory.mktemp("maps"))
    with running(session.node):
        session.play()
        yield session
    session.listener.close()
    assert "Traceback" not in session.node.output()


def stamps(messages: list[Any]) -> list[int]:
    return [ns_from_stamp(message.header.stamp) for message in messages]


# What was heard during the walk -----------------------------------------------------------------------------


def test_status_accounts_for_the_walk(session: Session) -> None:
    status = session.status()
    assert status.frames_received >= 115  # the first few may pass before the subscription is reliable
    total = status.frames_used + status.frames_waiting + status.frames_dropped
    assert total == status.frames_received
    assert status.windows >= 2
    assert status.windows_rejected == 0
    assert status.map_points > 10_000
    assert status.device == "cpu"
    assert 0 < status.callback_p99 < 0.01
    assert {"encode", "network", "publish"} <= {each.stage for each in status.latencies}
    assert 0 < status.image_age < 30
    assert not status.metres
    assert status.last_error == ""


def test_confidence_has_stamp_frame_and_size_of_the_input(session: Session) -> None:
    inputs = set(stamps(session.listener.heard["/image"]))
    images = session.heard("confidence")
    assert len(images) >= 15
    assert len(set(stamps(images))) == len(images)  # every keyframe once
    for message in images:
        assert ns_from_stamp(message.header.stamp) in inputs
        assert message.header.frame_id == "camera_optical_frame"
        assert (message.width, message.height, message.encoding) == (320, 240, "32FC1")
    values = np.frombuffer(images[-1].data, np.float32)
    assert values.min() >= 1.0  # as the network gives it
    assert values.max() > 2.0
    colours = session.heard("confidence_color")
    assert (colours[-1].encoding, colours[-1].width) == ("rgb8", 320)
    assert stamps(colours)[-1] in stamps(images)


def test_depth_is_the_rooms_up_to_scale(session: Session) -> None:
    sequence = demo_sequence(with_depth=True)
    index_of = {sequence.stamp_ns(index): index for index in range(len(sequence))}
    message = session.heard("depth")[-1]
    assert (message.encoding, message.header.frame_id) == ("32FC1", "camera_optical_frame")
    depth = np.frombuffer(message.data, np.float32).reshape(240, 320)
    truth = sequence[index_of[ns_from_stamp(message.header.stamp)]].depth
    ratio = (depth / truth)[np.isfinite(depth)]
    assert ratio.size > 0.5 * depth.size
    low, middle, high = np.percentile(ratio, [10, 50, 90])
    assert high - low < 0.1 * middle


def test_depth_camera_info_fits_the_depth(session: Session) -> None:
    info = session.heard("depth/camera_info")[-1]
    assert stamps([info])[0] in stamps(session.heard("depth"))
    assert (info.width, info.height) == (320, 240)
    truth = demo_sequence().intrinsics
    assert np.allclose(np.reshape(info.k, (3, 3)), truth - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]], atol=0.01)


def test_cloud_is_in_the_camera_frame_in_front_of_it(session: Session) -> None:
    message = session.heard("cloud")[-1]
    assert message.header.frame_id == "camera_optical_frame"
    assert ns_from_stamp(message.header.stamp) in stamps(session.heard("depth"))
    cloud = message_to_cloud(message)
    assert len(cloud.points) > 1000
    assert (cloud.points[:, 2] > 0).all()
    assert cloud.confidence.min() >= 1
    assert cloud.colors.std() > 5


def test_map_cloud_is_the_room_level_and_latched(session: Session) -> None:
    late = Listener(DOMAIN)
    try:
        late.listen(PointCloud2, f"{NODE}/map_cloud", latched=True)
        message = late.wait_for(f"{NODE}/map_cloud", lambda _: True, 10)
    finally:
        late.close()
    assert message.header.frame_id == "map"
    cloud = message_to_cloud(message)
    status = session.status()
    assert len(cloud.points) == pytest.approx(status.map_points, rel=0.2)
    assert np.isfinite(cloud.points).all()


def test_camera_is_on_tf_and_odometry_alike(session: Session) -> None:
    transforms = [each for message in session.listener.heard["/tf"] for each in message.transforms]
    camera = {
        ns_from_stamp(each.header.stamp): each
        for each in transforms
        if each.child_frame_id == "fast3r_camera"
    }
    odometry = {ns_from_stamp(message.header.stamp): message for message in session.heard("odometry")}
    assert len(odometry) >= 2
    assert {each.header.frame_id for each in camera.values()} == {"map"}
    both = sorted(set(camera) & set(odometry))
    assert len(both) >= 2
    for stamp in both:
        message = odometry[stamp]
        assert (message.header.frame_id, message.child_frame_id) == ("map", "fast3r_camera")
        on_tf = matrix_from_transform(camera[stamp].transform)
        assert np.allclose(matrix_from_pose(message.pose.pose), on_tf, atol=1e-9)
    # nobody else says where the image's frame is, so the node links it to the estimated camera
    links = [each for each in transforms if each.child_frame_id == "camera_optical_frame"]
    assert {each.header.frame_id for each in links} == {"fast3r_camera"}
    views = {each.child_frame_id for each in transforms if each.child_frame_id.startswith("fast3r_view_")}
    assert {"fast3r_view_0", "fast3r_view_7"} <= views


def test_path_follows_the_true_camera(session: Session) -> None:
    """The path is the truth's up to one similarity: 2 % of its extent."""
    path = session.heard("path")[-1]
    assert path.header.frame_id == "map"
    truth = {
        ns_from_stamp(m.header.stamp): m.pose.pose.position for m in session.listener.heard["/ground_truth"]
    }
    pairs = [
        (pose.pose.position, truth[ns_from_stamp(pose.header.stamp)])
        for pose in path.poses
        if ns_from_stamp(pose.header.stamp) in truth
    ]
    assert len(pairs) >= 10
    ours, true = (np.array([[p.x, p.y, p.z] for p in side]) for side in zip(*pairs, strict=True))
    ours, true = ours - ours.mean(axis=0), true - true.mean(axis=0)
    u, singular, vt = np.linalg.svd(true.T @ ours)
    sign = np.diag([1, 1, np.linalg.det(u @ vt)])
    scale = np.trace(np.diag(singular) @ sign) / (ours**2).sum()
    error = np.linalg.norm(true - scale * ours @ (u @ sign @ vt).T, axis=1)
    assert error.max() < 0.05 * np.linalg.norm(np.ptp(true, axis=0))


def test_windows_tell_their_views(session: Session) -> None:
    windows = session.heard("window")
    assert len(windows) >= 2
    window = windows[-1]
    assert window.accepted
    assert window.header.frame_id == "map"
    assert window.inlier_share > 0.3
    assert window.scale > 0
    assert len(window.views) >= 8
    view = window.views[-1]
    assert (view.header.frame_id, view.map_frame) == ("camera_optical_frame", "map")
    assert ns_from_stamp(view.header.stamp) == ns_from_stamp(window.header.stamp)
    assert (view.width, view.height) == (320, 240)
    assert not view.intrinsics_estimated
    assert np.allclose(np.reshape(view.k, (3, 3)), demo_sequence().intrinsics, atol=1e-6)
    assert view.mean_confidence > 1
    assert 0.5 < view.valid_share <= 1
    assert [each.map_version for each in windows] == sorted(each.map_version for each in windows)


def test_grid_has_walls_and_floor(session: Session) -> None:
    grid = session.heard("grid")[-1]
    cells = np.array(grid.data)
    assert grid.header.frame_id == "map"
    assert len(cells) == grid.info.width * grid.info.height
    assert {-1, 100} <= set(cells.tolist()) <= {-1, 0, 100}


def test_diagnostics_come_once_a_second(session: Session) -> None:
    messages = session.listener.heard["/diagnostics"]
    times = [message for message in messages if message.status[0].name.startswith("fast3r_mapping")]
    assert len(times) >= 5
    assert {status.name for status in times[-1].status} == {
        "fast3r_mapping: input",
        "fast3r_mapping: mapping",
        "fast3r_mapping: transforms",
    }


# Parameters -------------------------------------------------------------------------------------------------


def set_parameter(session: Session, name: str, **value: Any) -> Any:
    kinds = {"bool_value": 1, "integer_value": 2, "double_value": 3, "string_value": 4}
    kind = kinds[next(iter(value))]
    parameter = Parameter(name=name, value=ParameterValue(type=kind, **value))
    return session.listener.call(SetParameters, f"{NODE}/set_parameters", parameters=[parameter]).results[0]


def test_every_parameter_is_declared_and_described(session: Session) -> None:
    names = [name for name, _, _ in parameter_fields(NodeConfig())]
    listed = session.listener.call(ListParameters, f"{NODE}/list_parameters", depth=0).result.names
    assert set(names) <= set(listed)
    described = session.listener.call(DescribeParameters, f"{NODE}/describe_parameters", names=names)
    for descriptor, (name, item, _) in zip(
        described.descriptors, parameter_fields(NodeConfig()), strict=True
    ):
        assert descriptor.name == name
        assert descriptor.description
        assert descriptor.read_only != item.metadata["dynamic"]
        ranged = bool(descriptor.integer_range) or bool(descriptor.floating_point_range)
        assert ranged == bool(item.metadata["range"]), name


def test_parameters_change_at_run_time_or_say_why_not(session: Session) -> None:
    assert set_parameter(session, "output.path_length", integer_value=3).successful
    assert set_parameter(session, "grid.max_height", double_value=2.5).successful
    for name, value, words in (
        ("window.size", {"integer_value": 8}, "read-only"),
        ("output.map_rate", {"double_value": 1000.0}, "range"),
        ("grid.max_height", {"double_value": -5.0}, "grid.max_height"),
        ("output.image_size", {"string_value": "huge"}, "input, network"),
        ("output.map_rate", {"string_value": "fast"}, "type"),
    ):
        result = set_parameter(session, name, **value)
        assert not result.successful, name
        assert words in result.reason.lower(), result.reason


# Services ---------------------------------------------------------------------------------------------------


def test_maps_are_saved_inside_the_directory_only(session: Session) -> None:
    for name in ("room.ply", "room.pcd", "deep/room.ply"):
        answer = session.listener.call(SaveMap, f"{NODE}/save_map", name=name)
        assert answer.success, answer.message
        assert Path(answer.path) == session.directory / name
        assert Path(answer.path).stat().st_size > answer.points > 10_000
    assert len(read_ply(session.directory / "room.ply").points) == answer.points
    for name in ("../room.ply", "/tmp/room.ply", "deep/../../room.ply", "."):
        answer = session.listener.call(SaveMap, f"{NODE}/save_map", name=name)
        assert not answer.success
        assert "map_directory" in answer.message
        assert answer.path == ""
    assert not list(session.directory.parent.glob("room.ply"))


def test_a_full_disk_is_told_and_leaves_the_old_file(session: Session) -> None:
    before = (session.directory / "room.ply").read_bytes()
    limits = resource.prlimit(session.node.pid, resource.RLIMIT_FSIZE)
    # the system refuses to write more than this to one file, as a full disk does
    resource.prlimit(session.node.pid, resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        for name in ("room.ply", "room.pcd", "room_folder"):
            answer = session.listener.call(SaveMap, f"{NODE}/save_map", name=name)
            assert not answer.success
            assert "File too large" in answer.message
    finally:
        resource.prlimit(session.node.pid, resource.RLIMIT_FSIZE, limits)
    assert (session.directory / "room.ply").read_bytes() == before
    assert not list(session.directory.glob("*.part*"))
    assert session.status().state == MappingStatus.MAPPING


def test_pause_ignores_images(session: Session) -> None:
    assert session.listener.call(SetBool, f"{NODE}/pause", data=True).success
    session.wait_for_state(MappingStatus.PAUSED)
    before = session.drops().get("paused", 0)
    publish(session, [encode(known_picture(), "rgb8")] * 5)
    wait_until(lambda: session.drops().get("paused", 0) >= before + 5, 10, "paused images to be counted")
    assert session.listener.call(SetBool, f"{NODE}/pause", data=False).success
    session.wait_for_state(MappingStatus.MAPPING)


# Bad input --------------------------------------------------------------------------------------------------


def publish(session: Session, messages: list[Any], topic: str = "/image") -> None:
    """Send messages one after the other, slowly enough for each to be looked at."""
    node = session.listener.node
    qos = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
    publisher = node.create_publisher(type(messages[0]), topic, qos)
    wait_until(
        lambda: publisher.get_subscription_count() > (topic == "/image"), 10, f"a subscriber on {topic}"
    )
    time.sleep(1.0)  # until the node's subscription has become reliable
    for message in messages:
        publisher.publish(message)
        time.sleep(0.1)
    node.destroy_publisher(publisher)


def good(stamp: int = 100) -> Image:
    message = encode(known_picture(240, 320), "rgb8")
    message.header.stamp.sec = stamp
    return message


def changed(**changes: Any) -> Image:
    message = good()
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def test_bad_images_are_counted_and_leave_the_map_alone(session: Session) -> None:
    version = session.status().map_version
    other_frame = good()
    other_frame.header.frame_id = "another_camera"
    old = good(stamp=12)
    bad = {
        "truncated data": changed(data=good().data[:1000]),
        "wrong step": changed(step=11),
        "empty image": changed(width=0),
        "unknown encoding": changed(encoding="rgb9"),
        "size changed": encode(known_picture(48, 64), "rgb8"),
        "frame id changed": other_frame,
        "stamp repeated": old,
    }
    bad["size changed"].header.stamp.sec = 100
    before = session.drops()
    publish(session, list(bad.values()))
    after = session.drops()
    missing = [reason for reason in bad if after.get(reason, 0) != before.get(reason, 0) + 1]
    assert set(missing) <= {"stamp repeated"}, after
    assert session.status().map_version == version
    message = session.listener.newest("/diagnostics").status[0]
    wait_until(
        lambda: "wrong step" in session.listener.newest("/diagnostics").status[0].message, 5, str(message)
    )


def test_bad_calibration_and_odometry_are_counted(session: Session) -> None:
    publish(session, [CameraInfo(width=320, height=240, k=[float("nan")] * 9)], "/camera_info")
    spinning = Odometry()
    spinning.pose.pose.orientation.w = 5.0
    publish(session, [spinning], "/odometry")
    drops = session.drops()
    assert drops["unusable camera_info"] == 1
    assert drops["odometry: quaternion not of unit length"] == 1


def test_random_images_over_dds_do_no_harm(session: Session) -> None:
    version = session.status().map_version
    rng = np.random.default_rng(0)
    node = session.listener.node
    publisher = node.create_publisher(Image, "/image", 10)
    time.sleep(1.0)
    for _ in range(2000):
        height, width, step = (int(value) for value in rng.integers(0, 60, 3))
        message = Image(
            height=height, width=width, step=step, encoding=str(rng.choice(["rgb8", "mono8", "x"]))
        )
        message.data = array.array("B", rng.integers(0, 256, int(rng.integers(0, 3000)), np.uint8).tobytes())
        message.header.frame_id = "camera_optical_frame"
        publisher.publish(message)
    node.destroy_publisher(publisher)
    status = session.status()
    assert status.map_version == version
    assert status.state == MappingStatus.MAPPING
    assert session.node.process.poll() is None


def test_a_second_publisher_is_told_and_left_out(session: Session) -> None:
    node = session.listener.node
    first, second = (node.create_publisher(Image, "/image", 10) for _ in range(2))
    wait_until(lambda: min(p.get_subscription_count() for p in (first, second)) > 1, 10, "subscribers")
    time.sleep(1.5)
    for _ in range(5):
        first.publish(changed(step=11))
        time.sleep(0.05)
        second.publish(changed(step=12))
        time.sleep(0.05)
    assert session.drops()["second publisher on the image topic"] >= 4
    wait_until(
        lambda: "2 publishers on /image" in session.listener.newest("/diagnostics").status[0].message,
        5,
        "diagnostics to name both publishers",
    )
    for publisher in (first, second):
        node.destroy_publisher(publisher)


# The end ----------------------------------------------------------------------------------------------------


def test_a_saved_map_is_loaded_again_and_reset_empties_it(session: Session) -> None:
    saved = session.listener.call(SaveMap, f"{NODE}/save_map", name="room", timeout=60)
    assert saved.success, saved.message
    points = session.status().map_points
    assert session.listener.call(Trigger, f"{NODE}/reset").success
    status = session.status()
    assert (status.map_points, status.frames_received, status.windows) == (0, 0, 0)
    for name, words in (("nothing", "no saved map"), ("../room", "map_directory"), ("", "name")):
        answer = session.listener.call(LoadMap, f"{NODE}/load_map", name=name)
        assert not answer.success
        assert words in answer.message
    loaded = session.listener.call(LoadMap, f"{NODE}/load_map", name="room", timeout=60)
    assert loaded.success, loaded.message
    assert loaded.keyframes >= 10
    assert session.status().map_points == points


def test_a_signal_ends_the_node_quietly(session: Session) -> None:
    status, seconds = session.node.stop()
    assert status == 0
    assert seconds < 3
    assert "Traceback" not in session.node.output()

"""The services and the parameters of the running node."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy", reason="ROS is not installed here")

from fast3r_ros.msg import MappingStatus
from fast3r_ros.srv import LoadMap, SaveMap
from nav_msgs.srv import GetMap
from patience import wait_until
from rcl_interfaces.msg import Parameter, ParameterValue
from rcl_interfaces.srv import DescribeParameters, ListParameters, SetParameters
from rclpy.qos import DurabilityPolicy, QoSProfile
from ros_encoders import encode, known_picture
from ros_harness import DOUBLE, NODE, REPLAY, Listener, Program, arguments, domain, running
from sensor_msgs.msg import PointCloud2
from std_srvs.srv import SetBool, Trigger
from walk_session import DOMAIN, Session

from fast3r_ros.io.ply import read_ply
from fast3r_ros.ros.node_config import NodeConfig
from fast3r_ros.ros.parameters import declared_fields


def set_parameter(session: Session, name: str, **value: Any) -> Any:
    kinds = {"bool_value": 1, "integer_value": 2, "double_value": 3, "string_value": 4}
    kind = kinds[next(iter(value))]
    parameter = Parameter(name=name, value=ParameterValue(type=kind, **value))
    return session.listener.call(SetParameters, f"{NODE}/set_parameters", parameters=[parameter]).results[0]


def test_every_service_is_called_here(session: Session) -> None:
    services = session.listener.node.get_service_names_and_types_by_node("fast3r_mapping", "/")
    own = {name for name, kinds in services if kinds[0].startswith(("std_srvs/", "fast3r_ros/", "nav_msgs/"))}
    assert own == {
        f"{NODE}/{name}" for name in ("reset", "pause", "localize", "save_map", "load_map", "get_map")
    }


def test_every_parameter_is_declared_and_described(session: Session) -> None:
    names = [name for name, _, _ in declared_fields(NodeConfig())]
    listed = session.listener.call(ListParameters, f"{NODE}/list_parameters", depth=0).result.names
    assert set(names) <= set(listed)
    described = session.listener.call(DescribeParameters, f"{NODE}/describe_parameters", names=names)
    for descriptor, (name, item, _) in zip(described.descriptors, declared_fields(NodeConfig()), strict=True):
        assert descriptor.name == name
        assert descriptor.description
        assert descriptor.read_only != item.metadata["dynamic"]
        ranged = bool(descriptor.integer_range) or bool(descriptor.floating_point_range)
        assert ranged == bool(item.metadata["range"]), name


def test_parameters_that_may_change_take_effect_at_once(session: Session) -> None:
    heard = session.listener.heard[f"{NODE}/status"]

    def in_a_second() -> int:
        """Status messages between two diagnostics, which come once a second."""
        diagnostics = session.listener.heard["/diagnostics"]
        first = len(diagnostics)
        wait_until(lambda: len(diagnostics) > first, "diagnostics")
        before = len(heard)
        wait_until(lambda: len(diagnostics) > first + 1, "diagnostics")
        return len(heard) - before

    assert set_parameter(session, "output.status_rate", double_value=1.0).successful
    wait_until(lambda: in_a_second() <= 2, "few status messages")
    assert set_parameter(session, "output.status_rate", double_value=30.0).successful
    wait_until(lambda: in_a_second() > 15, "many status messages")
    assert set_parameter(session, "output.status_rate", double_value=10.0).successful
    assert set_parameter(session, "grid.max_height", double_value=2.5).successful


def test_parameters_that_cannot_change_say_why_not(session: Session) -> None:
    for name, value, words in (
        ("window.stride", {"integer_value": 8}, "read-only"),
        ("output.map_rate", {"double_value": 1000.0}, "range"),
        ("grid.max_height", {"double_value": -5.0}, "grid.max_height"),
        ("output.image_size", {"string_value": "huge"}, "input, network"),
        ("output.map_rate", {"string_value": "fast"}, "type"),
    ):
        result = set_parameter(session, name, **value)
        assert not result.successful, name
        assert words in result.reason.lower(), result.reason


def test_maps_are_saved_inside_the_directory_only(session: Session) -> None:
    for name in ("room.ply", "room.pcd", "deep/room.ply"):
        answer = session.listener.call(SaveMap, f"{NODE}/save_map", name=name, overwrite=True)
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


def test_existing_files_are_replaced_only_with_overwrite(session: Session) -> None:
    for name in ("twice.ply", "twice", "twice.yaml"):
        assert session.listener.call(SaveMap, f"{NODE}/save_map", name=name).success
        files = {path: path.stat().st_mtime_ns for path in session.directory.rglob("twice*")}
        answer = session.listener.call(SaveMap, f"{NODE}/save_map", name=name)
        assert not answer.success
        assert "exists" in answer.message
        assert "overwrite" in answer.message
        assert {path: path.stat().st_mtime_ns for path in session.directory.rglob("twice*")} == files
        again = session.listener.call(SaveMap, f"{NODE}/save_map", name=name, overwrite=True)
        assert again.success, again.message
    (session.directory / "other.pgm").write_bytes(b"mine")
    assert not session.listener.call(SaveMap, f"{NODE}/save_map", name="other.yaml").success
    assert (session.directory / "other.pgm").read_bytes() == b"mine"


def test_the_grid_is_given_and_saved_as_map_server_reads_it(session: Session) -> None:
    grid = session.listener.call(GetMap, f"{NODE}/get_map").map
    assert grid.header.frame_id == "map"
    cells = np.array(grid.data, np.int8).reshape(grid.info.height, grid.info.width)
    assert (cells == 100).sum() > 20
    answer = session.listener.call(SaveMap, f"{NODE}/save_map", name="grid.yaml")
    assert answer.success, answer.message
    assert answer.points == (cells >= 0).sum()
    description = yaml.safe_load((session.directory / "grid.yaml").read_text())
    assert description["image"] == "grid.pgm"  # beside it
    assert (description["mode"], description["negate"]) == ("trinary", 0)
    assert description["resolution"] == pytest.approx(grid.info.resolution)
    origin = grid.info.origin.position
    assert description["origin"] == pytest.approx([origin.x, origin.y, 0.0])
    picture = cv2.imread(str(session.directory / "grid.pgm"), cv2.IMREAD_UNCHANGED)
    # as map_server reads a trinary map: dark is occupied, bright is free, its first row is the highest y
    occupancy = 1.0 - picture[::-1] / 255.0
    read = np.full(cells.shape, -1, np.int8)
    read[occupancy > description["occupied_thresh"]] = 100
    read[occupancy < description["free_thresh"]] = 0
    assert (read == cells).all()


def test_a_full_disk_is_reported_and_leaves_the_old_file(session: Session) -> None:
    before = (session.directory / "room.ply").read_bytes()
    limits = resource.prlimit(session.node.pid, resource.RLIMIT_FSIZE)
    # the system refuses to write more than this to one file, as a full disk does
    resource.prlimit(session.node.pid, resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        for name in ("room.ply", "room.pcd", "room_folder"):
            answer = session.listener.call(SaveMap, f"{NODE}/save_map", name=name, overwrite=True)
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
    session.publish([encode(known_picture(), "rgb8")] * 5)
    wait_until(lambda: session.drops().get("paused", 0) >= before + 5, "paused images to be counted")
    assert session.listener.call(SetBool, f"{NODE}/pause", data=False).success
    session.wait_for_state(MappingStatus.MAPPING)


def everything(session: Session) -> tuple[int, int, int]:
    """Points of the newest map cloud, poses of the path, cells of the grid, as received."""
    heard = session.listener.heard
    grid = heard[f"{NODE}/grid"][-1]
    path = heard[f"{NODE}/path"][-1]
    return heard[f"{NODE}/map_cloud"][-1].width, len(path.poses), grid.info.width * grid.info.height


def for_a_newcomer(session: Session) -> PointCloud2:
    """The first map cloud of a new subscriber."""
    clouds: list[PointCloud2] = []
    qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    subscription = session.listener.node.create_subscription(
        PointCloud2, f"{NODE}/map_cloud", clouds.append, qos
    )
    wait_until(lambda: bool(clouds), "a latched map cloud")
    session.listener.node.destroy_subscription(subscription)
    return clouds[0]


def test_a_reset_and_a_loaded_map_reach_everybody_at_once(session: Session) -> None:
    saved = session.listener.call(SaveMap, f"{NODE}/save_map", name="room")
    assert saved.success, saved.message
    points = session.status().map_points
    assert min(everything(session)) > 10
    assert session.listener.call(Trigger, f"{NODE}/reset").success
    wait_until(lambda: everything(session) == (0, 0, 0), "the empty map, path and grid")
    assert for_a_newcomer(session).width == 0
    status = session.status()
    assert (status.map_points, status.frames_received, status.windows) == (0, 0, 0)
    for name in ("room", "room.ply", "grid.yaml", "new"):
        before = {path: path.stat().st_mtime_ns for path in session.directory.rglob("*")}
        answer = session.listener.call(SaveMap, f"{NODE}/save_map", name=name, overwrite=True)
        assert not answer.success
        assert "empty" in answer.message
        assert {path: path.stat().st_mtime_ns for path in session.directory.rglob("*")} == before
    for name, words in (("nothing", "no saved map"), ("../room", "map_directory"), ("", "name")):
        answer = session.listener.call(LoadMap, f"{NODE}/load_map", name=name)
        assert not answer.success
        assert words in answer.message
    loaded = session.listener.call(LoadMap, f"{NODE}/load_map", name="room")
    assert loaded.success, loaded.message
    assert loaded.keyframes >= 10
    wait_until(lambda: min(everything(session)) > 10, "the loaded map, path and grid")
    assert everything(session)[:2] == (points, loaded.keyframes)
    assert for_a_newcomer(session).width == points
    assert session.status().map_points == points


def test_localising_places_the_camera_and_leaves_the_map(session: Session) -> None:
    assert session.listener.call(SetBool, f"{NODE}/localize", data=True).success
    before = session.status()
    heard = session.listener.heard[f"{NODE}/odometry"]
    count = len(heard)
    session.withdraw_camera()
    replay = Program([*REPLAY, *arguments({"source": "synthetic:8", "rate": 2.0})], DOMAIN)
    with running(replay):
        assert replay.wait() == 0, replay.output()
    session.wait_for_state(MappingStatus.LOCALIZING)
    wait_until(lambda: len(heard) > count + 10, "odometry")
    wait_until(lambda: session.status().frames_used > 10, "localised frames")
    after = session.status()
    for field in ("map_points", "map_version", "submaps"):
        assert getattr(after, field) == getattr(before, field), field
    assert after.frames_received == after.frames_used + after.frames_waiting + after.frames_dropped
    assert set_parameter(session, "localization", bool_value=False).successful
    session.wait_for_state(MappingStatus.MAPPING)


def test_a_map_is_loaded_at_start(session: Session) -> None:
    settings = {"map_directory": session.directory, "localization": True, "grid.enabled": True}
    elsewhere = domain(14)
    broken = Program([*DOUBLE, "0.02", *arguments({**settings, "map_path": "nothing"})], elsewhere)
    node = Program([*DOUBLE, "0.02", *arguments({**settings, "map_path": "room"})], elsewhere)
    listener = Listener(elsewhere)
    listener.listen(PointCloud2, f"{NODE}/map_cloud", latched=True)
    try:
        with running(broken, node):
            assert broken.wait() == 2
            assert "no saved map 'nothing'" in broken.output()
            assert listener.wait_for(f"{NODE}/map_cloud", lambda cloud: cloud.width > 10_000)
            assert "keyframes from" in node.output()
    finally:
        listener.close()

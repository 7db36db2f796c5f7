"""The services and the parameters of the running node."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

from fast3r_ros.msg import MappingStatus
from fast3r_ros.srv import LoadMap, SaveMap
from rcl_interfaces.msg import Parameter, ParameterValue
from rcl_interfaces.srv import DescribeParameters, ListParameters, SetParameters
from ros_encoders import encode, known_picture
from ros_harness import NODE, wait_until
from std_srvs.srv import SetBool, Trigger
from walk_session import Session

from fast3r_ros.io.ply import read_ply
from fast3r_ros.ros.config import NodeConfig
from fast3r_ros.ros.parameters import parameter_fields


def set_parameter(session: Session, name: str, **value: Any) -> Any:
    kinds = {"bool_value": 1, "integer_value": 2, "double_value": 3, "string_value": 4}
    kind = kinds[next(iter(value))]
    parameter = Parameter(name=name, value=ParameterValue(type=kind, **value))
    return session.listener.call(SetParameters, f"{NODE}/set_parameters", parameters=[parameter]).results[0]


def test_every_service_is_called_here(session: Session) -> None:
    services = session.listener.node.get_service_names_and_types_by_node("fast3r_mapping", "/")
    own = {name for name, kinds in services if kinds[0].startswith(("std_srvs/", "fast3r_ros/"))}
    assert own == {f"{NODE}/{name}" for name in ("reset", "pause", "save_map", "load_map")}


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


def test_parameters_that_may_change_take_effect_at_once(session: Session) -> None:
    heard = session.listener.heard[f"{NODE}/status"]
    assert set_parameter(session, "output.status_rate", double_value=20.0).successful
    time.sleep(0.3)
    before = len(heard)
    time.sleep(2.0)
    assert len(heard) - before > 20  # ten a moment ago
    assert set_parameter(session, "output.status_rate", double_value=5.0).successful
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
    session.publish([encode(known_picture(), "rgb8")] * 5)
    wait_until(lambda: session.drops().get("paused", 0) >= before + 5, 10, "paused images to be counted")
    assert session.listener.call(SetBool, f"{NODE}/pause", data=False).success
    session.wait_for_state(MappingStatus.MAPPING)


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

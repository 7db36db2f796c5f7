"""The frames broadcast below the map frame, for every kind of tree with a camera, without a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

from broadcast_world import CAMERA, NS, View, World, driving, mounted, rigid, views
from tf_tree import Unknown

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.data import PoseEstimate
from fast3r_ros.ros.camera import CameraFacts
from fast3r_ros.ros.node_config import FramesConfig

TREES: dict[str, tuple[Callable[[World], World], str, str]] = {
    "no TF": (lambda world: world, CAMERA, "none"),
    "a driver's own": (
        lambda world: world.others("cam_link", CAMERA, 3, static=True) or world,
        "cam_link",
        "none",
    ),
    "on the base": (mounted, "base_link", "none"),
    "on the base, metres wanted": (mounted, "base_link", "odometry"),
    "odometry": (lambda world: driving(mounted(world), NS, 5 * NS), "odom", "odometry"),
    "odometry of another name": (
        lambda world: [
            mounted(world),
            world.others("wheels", "base_link", 4, NS),
            world.others("wheels", "base_link", 5, 5 * NS),
        ][0],
        "wheels",
        "odometry",
    ),
    "a camera that tracks itself": (
        lambda world: [world.others("odom", CAMERA, 4, NS), world.others("odom", CAMERA, 5, 5 * NS), world][
            2
        ],
        "odom",
        "odometry",
    ),
    "pan and tilt": (
        lambda world: [
            world.others("base_link", "head", 4, NS),
            world.others("base_link", "head", 5, 5 * NS),
            world.others("head", CAMERA, 6, static=True),
            world,
        ][3],
        "base_link",
        "none",
    ),
    "map below the earth": (
        lambda world: world.others("earth", "map", 4, static=True) or mounted(world),
        "base_link",
        "none",
    ),
}


@pytest.mark.parametrize("name", TREES)
def test_every_new_keyframe_is_on_tf_at_its_stamp_in_every_tree(name: str) -> None:
    make, root, source = TREES[name]
    world = make(World(source=source))
    new = views(2.0, 2.5, 4.0)
    frames = world.window(*new, metres=source != "none")
    tree = world.tree()
    for view in new:
        assert frames[view.keyframe_id] == CAMERA
        assert np.abs(tree.lookup("map", CAMERA, view.stamp_ns) - view.map_from_camera).max() < 1e-9
    assert "map" in tree.parents(root)
    assert world.broadcaster.waiting_for == ""
    assert not world.broadcaster.parents
    unit = "in metres" if source != "none" else "up to scale"
    assert world.broadcaster.broadcast.startswith(f"map -> {root}, {unit}")
    assert world.told == [f"broadcasting {world.broadcaster.broadcast}"]


@pytest.mark.parametrize("source", ["none", "odometry"])
def test_without_metres_nothing_touches_odom_and_images_can_still_be_placed(source: str) -> None:
    world = driving(mounted(World(source=source)), NS, 5 * NS)
    new = views(2.0, 3.0)
    frames = world.window(*new)
    tree = world.tree()
    assert tree.parents("odom") == set()
    for view in new:
        assert frames[view.keyframe_id] == "fast3r_camera"
        found = tree.lookup("map", "fast3r_camera", view.stamp_ns)
        assert np.abs(found - view.map_from_camera).max() < 1e-9
    assert "map -> odom waits until the map is in metres" in world.broadcaster.waiting_for
    assert ("which needs scale.source" in world.broadcaster.waiting_for) == (source == "none")
    world.broadcaster.tick(6 * NS)
    assert world.tree().parents("odom") == set()
    # the map becomes metric: from now on images are connected through odom
    later = View(7, round(4.5 * NS))
    assert world.window(later, metres=True) == {7: CAMERA}
    assert np.abs(world.tree().lookup("map", CAMERA, later.stamp_ns) - later.map_from_camera).max() < 1e-9
    world.broadcaster.tick(6 * NS)
    assert world.tree().parents("odom") == {"map"}
    assert world.broadcaster.waiting_for == ""


def test_a_camera_localised_by_another_node_gets_no_second_pose() -> None:
    world = driving(mounted(World(source="odometry")), NS, 5 * NS)
    world.others("map", "odom", 8, 1 * NS)
    before = len(world.moving())
    assert world.window(*views(2.0), metres=True) == {0: CAMERA}
    assert len(world.moving()) == before
    assert "another node broadcasts the pose of lens in map (map -> odom -> base_link -> mast -> lens)" in (
        world.broadcaster.waiting_for
    )
    # also where the common ancestor is above the map
    world = World()
    world.others("site", "map", 1, static=True)
    world.others("site", CAMERA, 2, static=True)
    world.window(*views(2.0))
    assert len(world.moving()) == 0
    # or the map is below the camera
    world = World()
    world.others(CAMERA, "map", 1, static=True)
    world.window(*views(2.0))
    assert len(world.moving()) == 0


def test_odometry_that_is_late_takes_the_last_correction_and_without_one_the_estimated_camera() -> None:
    world = driving(mounted(World(source="odometry")), NS, 3 * NS)
    late = View(0, 4 * NS)
    assert world.window(late, metres=True) == {0: "fast3r_camera"}
    found = world.tree().lookup("map", "fast3r_camera", late.stamp_ns)
    assert np.abs(found - late.map_from_camera).max() < 1e-9
    assert "no transform odom -> lens at the image's stamp" in world.broadcaster.waiting_for
    known, later = View(1, 2 * NS), View(2, 5 * NS)
    assert world.window(known, later, metres=True) == {1: CAMERA, 2: CAMERA}
    driving(world, 3 * NS, 6 * NS)
    world.tree().lookup("map", CAMERA, later.stamp_ns)


def test_a_stationary_camera_keeps_its_frame_and_late_keyframes_keep_their_stamps() -> None:
    world = World()
    world.window(*views(1.0))
    pose = rigid(100)
    for tenth in range(11, 400):
        world.broadcaster.still(CAMERA, tenth * NS // 10)
    tree = world.tree()
    for stamp in (2 * NS, 20 * NS, round(39.85 * NS)):
        assert np.abs(tree.lookup("map", CAMERA, stamp) - pose).max() < 1e-9
    # a pose between windows is sent with later images, never at the keyframe's own stamp
    waiting = PoseEstimate(40 * NS, CAMERA, rigid(7), np.eye(6), extrapolated=True)
    count = len(world.moving())
    world.broadcaster.expect(waiting)
    assert len(world.moving()) == count
    world.broadcaster.still(CAMERA, round(40.1 * NS))
    assert np.abs(world.tree().lookup("map", CAMERA, round(40.1 * NS)) - rigid(7)).max() < 1e-9
    keyframe = View(3, 40 * NS)
    world.window(keyframe)
    assert np.abs(world.tree().lookup("map", CAMERA, 40 * NS) - keyframe.map_from_camera).max() < 1e-9
    # an image older than the newest pose is ignored
    count = len(world.moving())
    world.broadcaster.still(CAMERA, 39 * NS)
    assert len(world.moving()) == count


def test_a_lost_camera_gets_no_new_pose_but_new_listeners_find_the_map(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [50.0]
    monkeypatch.setattr("fast3r_ros.ros.broadcaster.time.monotonic", lambda: clock[0])
    world = World()
    world.window(*views(1.0))
    world.broadcaster.lost()
    world.window()  # it is published, without views
    count = len(world.moving())
    world.broadcaster.still(CAMERA, 2 * NS)
    world.broadcaster.tick(3 * NS)
    assert len(world.moving()) == count
    for _ in range(5):
        clock[0] += 1.5
        world.broadcaster.tick(3 * NS)
    again = [each.header.stamp for each in world.moving()[count:]]
    assert [(stamp.sec, stamp.nanosec) for stamp in again] == [(1, 1), (1, 2), (1, 3), (1, 4), (1, 5)]
    # a recording starts again: nothing is sent at the stamps of its end
    world.broadcaster.time_went_back()
    count = len(world.moving())
    for _ in range(3):
        clock[0] += 1.5
        world.broadcaster.tick(NS // 2)
    assert len(world.moving()) == count
    world.window(View(5, 9 * NS))
    count = len(world.moving())
    world.broadcaster.still(CAMERA, 10 * NS)
    assert len(world.moving()) == count + 1


@pytest.mark.parametrize("mode", ["camera", "base", "map_to_odom"])
def test_a_foreign_parent_is_reported_respected_and_dropped_after_two_seconds(mode: str) -> None:
    world = driving(mounted(World(mode, "odometry")), NS, 100 * NS) if mode == "map_to_odom" else World(mode)
    if mode == "base":
        mounted(world)
    child = {"camera": "fast3r_camera", "base": "base_link", "map_to_odom": "odom"}[mode]
    world.window(View(0, 2 * NS), metres=True)
    assert world.tree().parents(child) == {"map"}
    for stamp in range(3, 6):
        world.others("world", child, 9, stamp * NS)
    count = len(world.moving())
    world.window(View(1, 6 * NS), metres=True)
    world.broadcaster.still(CAMERA, 7 * NS)
    world.broadcaster.tick(7 * NS)
    assert len(world.moving()) == count  # neither the frame nor those below it
    assert world.broadcaster.parents == {child: "world"}
    assert world.told[-1] == f"{child} already has the parent world: not broadcast"
    world.now += 2.1
    assert world.broadcaster.parents == {}
    world.window(View(2, 8 * NS), metres=True)
    world.broadcaster.tick(8 * NS)
    tree = world.tree()
    assert tree.parent(child, 8 * NS)[0] == "map"
    if mode == "camera":
        assert tree.parent(CAMERA, 8 * NS)[0] == child


def test_auto_follows_the_tree_as_it_changes() -> None:
    """Odometry starts, stops and starts again; the camera's driver had been first."""
    world = World(source="odometry")
    world.window(View(0, NS), metres=True)
    mounted(world)
    world.window(View(1, 2 * NS), metres=True)
    driving(world, 2 * NS, 4 * NS)
    world.window(View(2, 3 * NS), metres=True)
    world.now += 3
    world.window(View(3, 9 * NS), metres=True)
    told = [text.split(",")[0].removeprefix("broadcasting map -> ") for text in world.told]
    assert told == [CAMERA, "base_link", "odom", "base_link"]
    driving(world, 10 * NS, 12 * NS)
    late = View(4, 11 * NS)
    world.window(late, metres=True)
    assert np.abs(world.tree().lookup("map", CAMERA, late.stamp_ns) - late.map_from_camera).max() < 1e-9
    # a stray parent above the root for a while
    world.others("nonsense", "odom", 3, 11 * NS)
    world.window(View(5, round(11.5 * NS)), metres=True)
    world.now += 3
    driving(world, 12 * NS, 14 * NS)
    last = View(6, 13 * NS)
    world.window(last, metres=True)
    assert np.abs(world.tree().lookup("map", CAMERA, last.stamp_ns) - last.map_from_camera).max() < 1e-9
    assert not world.broadcaster.parents


def test_two_cameras_of_one_robot_share_its_base_and_those_of_no_robot_do_not() -> None:
    world = World()
    world.facts |= {name: CameraFacts((640, 480), True, name) for name in ("left", "right")}
    for index, name in enumerate(("left", "right")):
        world.others("base_link", name, index, static=True)
    left, right = View(0, NS, "left"), View(1, NS, "right")  # at one stamp
    world.window(left, right)
    assert world.broadcaster.broadcast.startswith("map -> base_link, ")
    tree = world.tree()
    assert np.abs(tree.lookup("map", "left", NS) - left.map_from_camera).max() < 1e-9
    tree.lookup("map", "right", NS)
    assert len(world.moving()) == 1
    world = World()
    world.window(View(0, NS, "left"), View(1, NS, "right"))
    tree = world.tree()
    for index, name in enumerate(("left", "right")):
        assert np.abs(tree.lookup("map", name, NS) - rigid(100 + index)).max() < 1e-9


def test_none_broadcasts_nothing() -> None:
    world = World("none")
    assert world.window(*views(1.0)) == {0: CAMERA}
    world.broadcaster.still(CAMERA, 2 * NS)
    world.broadcaster.tick(2 * NS)
    assert world.moving() == []


def test_base_needs_its_transform_and_reports_it() -> None:
    world = World("base")
    assert world.window(*views(1.0)) == {0: CAMERA}
    assert world.moving() == []
    assert "no transform base_link -> lens at the image's stamp" in world.broadcaster.waiting_for
    mounted(world)
    view = View(1, 2 * NS)
    world.window(view)
    assert np.abs(world.tree().lookup("map", CAMERA, 2 * NS) - view.map_from_camera).max() < 1e-9
    with pytest.raises(Unknown):
        world.tree().lookup("map", "fast3r_camera", 2 * NS)


def test_frames_follow_the_namespace_unless_they_are_absolute() -> None:
    frames = FramesConfig()
    assert (frames.below("/").map, frames.below("").camera) == ("map", "fast3r_camera")
    ours = frames.below("/a/b")
    assert (ours.map, ours.camera, ours.odom, ours.base) == (
        "a/b/map",
        "a/b/fast3r_camera",
        "odom",
        "base_link",
    )
    assert ours.below("/a/b") == ours
    assert replace(frames, map="/map").below("/a").map == "map"
    for wrong in ("//map", "/"):
        with pytest.raises(UserError, match=r"frames\.map"):
            FramesConfig(map=wrong)
    with pytest.raises(UserError, match=r"frames\.odom"):
        FramesConfig(odom="/odom")


def test_a_given_pose_moves_map_to_odom_at_once() -> None:
    world = World(source="odometry")
    world.others("odom", "base_link", 1, NS)
    world.others("base_link", CAMERA, 2, static=True)
    wanted = rigid(3)
    world.broadcaster.place(wanted)
    world.broadcaster.tick(2 * NS)
    world.broadcaster.tick(3 * NS)
    map_from_odom = world.tree().lookup("map", "odom", 3 * NS)
    assert np.allclose(map_from_odom @ rigid(1), wanted, atol=1e-9)


def test_a_given_pose_of_a_base_without_odometry_moves_nothing() -> None:
    world = World(source="odometry")
    world.others("base_link", CAMERA, 2, static=True)
    world.broadcaster.place(rigid(3))
    world.broadcaster.tick(2 * NS)
    with pytest.raises(Unknown):
        world.tree().lookup("map", "base_link", 2 * NS)

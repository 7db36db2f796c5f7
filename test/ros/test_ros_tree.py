"""Nodes in a robot's tree of frames, for listeners of /tf: published data is connected to the map."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

from fast3r_ros.msg import MappingStatus, WindowEstimate
from fast3r_ros.srv import SaveMap
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import OccupancyGrid, Odometry
from nav_msgs.msg import Path as PathMessage
from robot import CAMERA, Robot, frames, listener_for, transforms_to
from ros_harness import DOUBLE, NODE, REPLAY, Listener, Program, arguments, domain, running, wait_until
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import Image, PointCloud2
from tf2_msgs.msg import TFMessage
from tf_tree import Tree, matrix_of

from fast3r_ros.benchmark.synthetic_run import start
from fast3r_ros.io.results import read_results
from fast3r_ros.ros.counters import Counters
from fast3r_ros.ros.image_messages import rgb_to_image
from fast3r_ros.ros.messages import message_to_cloud
from fast3r_ros.ros.pose_messages import matrix_from_pose, ns_from_stamp, pose_from_matrix
from fast3r_ros.ros.worker import MappingThread
from fast3r_ros.synthetic.sequence import demo_sequence

pytestmark = pytest.mark.slow

METRIC = {"cloud": PointCloud2, "depth/image_rect": Image, "odometry": Odometry, "grid": OccupancyGrid}
PARAMETERS = {"output.status_rate": 5.0, "window.stride": 2, "grid.enabled": True}


def started(domain_id: int, parameters: dict, name: str = NODE) -> tuple[Program, Listener]:
    """A node with its listener, ready for images."""
    node = Program([*DOUBLE, "0.0", *arguments({**PARAMETERS, **parameters})], domain_id)
    listener = listener_for(domain_id, name)
    listener.listen(TFMessage, "/tf_static", latched=True)
    for topic, kind in METRIC.items():
        listener.listen(kind, f"{name}/{topic}", latched=topic == "grid")
    return node, listener


def ready(listener: Listener, name: str = NODE) -> None:
    listener.wait_for(f"{name}/status", lambda message: message.state == MappingStatus.WAITING, 60)


def tree_of(listener: Listener) -> Tree:
    return Tree(list(listener.heard["/tf"]), list(listener.heard["/tf_static"]))


def stamps(listener: Listener, topic: str) -> list[int]:
    return [ns_from_stamp(message.header.stamp) for message in listener.heard[topic]]


def first_poses(windows: list[WindowEstimate], metres: bool) -> dict[int, np.ndarray]:
    """(4, 4) map_from_camera of every keyframe by its stamp, from its first window."""
    poses: dict[int, np.ndarray] = {}
    known: set[int] = set()
    for window in windows:
        for view in window.views:
            stamp = ns_from_stamp(view.header.stamp)
            if stamp not in known and window.metres == metres:
                poses[stamp] = matrix_from_pose(view.pose.pose)
            known.add(stamp)
    return poses


def settle(listener: Listener, topic: str) -> None:
    """Wait until a topic has been silent for two seconds."""
    count = -1
    while count != len(listener.heard[topic]):
        count = len(listener.heard[topic])
        time.sleep(2.0)


def test_a_stationary_camera_on_the_base_stays_connected_to_the_map() -> None:
    domain_id = domain(41)
    node, listener = started(domain_id, {})
    with running(node):
        robot = Robot(listener)
        ready(listener)
        robot.drive(rate_hz=12)
        settle(listener, f"{NODE}/window")
        tree = tree_of(listener)
        poses = first_poses(listener.heard[f"{NODE}/window"], metres=False)
        assert len(poses) > 5
        assert set(stamps(listener, f"{NODE}/depth/image_rect")) == set(poses)
        assert set(stamps(listener, f"{NODE}/cloud")) <= set(poses)
        for stamp, pose in poses.items():
            assert np.abs(tree.lookup("map", CAMERA, stamp) - pose).max() < 1e-6
            on_base = tree.lookup("map", "base_link", stamp) @ robot.base_from_camera
            assert np.abs(on_base - pose).max() < 1e-6
        assert tree.parents("base_link") == {"map"}
        assert tree.parents(CAMERA) == {"base_link"}
        words = "map -> base_link, up to scale (scale.source is none)"
        wait_until(lambda: listener.newest("/diagnostics").status[2].message == words, 5, "what is broadcast")

        # the camera is stationary: new listeners find the frames
        last = frames()[-1]
        later = 0
        count = len(transforms_to(listener, "base_link"))
        for index in range(40):
            later = last.stamp_ns + (index + 1) * 100_000_000
            robot.images.publish(rgb_to_image(last.image, later, CAMERA))
            time.sleep(0.05)
        wait_until(lambda: len(transforms_to(listener, "base_link")) > count + 10, 10, "the pose again")
        heard = [ns_from_stamp(each.header.stamp) for each in transforms_to(listener, "base_link")]
        assert last.stamp_ns < max(heard) <= later
        # pending keyframes are in the map, too, in time for their transforms
        listener.wait_for(f"{NODE}/status", lambda message: message.frames_waiting == 0, 10)
        tree, shown = tree_of(listener), stamps(listener, f"{NODE}/depth/image_rect")
        used = listener.newest(f"{NODE}/status").frames_used
        wait_until(lambda: len(stamps(listener, f"{NODE}/depth/image_rect")) == used, 10, "all depth images")
        for stamp in shown:
            tree.lookup("map", CAMERA, stamp)
        # and without any image
        count = len(transforms_to(listener, "base_link"))
        wait_until(lambda: len(transforms_to(listener, "base_link")) > count, 10, "the pose without images")
        assert ns_from_stamp(transforms_to(listener, "base_link")[-1].header.stamp) < later + 1000
    listener.close()
    assert f"broadcasting {words}" in node.output()
    assert "Traceback" not in node.output()


def test_a_part_that_is_not_connected_is_neither_in_the_map_nor_in_its_files(tmp_path: Path) -> None:
    """Time goes back, and nothing is recognised: the larger part is the main one."""
    domain_id = domain(49)
    node, listener = started(domain_id, {"loop.enabled": False, "map_directory": tmp_path})
    listener.listen(PointCloud2, f"{NODE}/map_cloud", latched=True)
    listener.listen(PathMessage, f"{NODE}/path", latched=True)
    walk = frames()
    with running(node):
        robot = Robot(listener)
        ready(listener)
        wait_until(lambda: robot.images.get_subscription_count() > 0, 10, "the node's subscription")
        time.sleep(1.0)  # until its reliability matches the images'
        for frame in (*walk[45:], *walk[:45]):
            robot.images.publish(rgb_to_image(frame.image, frame.stamp_ns, CAMERA))
            time.sleep(0.1)
        listener.wait_for(f"{NODE}/status", lambda message: message.submaps == 2, 30)
        settle(listener, f"{NODE}/window")
        views = {ns_from_stamp(v.header.stamp) for w in listener.heard[f"{NODE}/window"] for v in w.views}
        torn = walk[45].stamp_ns
        assert min(views) < torn <= max(views)
        wait_until(lambda: path_stamps(listener) == {each for each in views if each >= torn}, 20, "the path")
        words = "2 unconnected parts"
        wait_until(lambda: words in listener.newest("/diagnostics").status[1].message, 5, "diagnostics")
        answer = listener.call(SaveMap, f"{NODE}/save_map", name="main.ply")
        assert answer.success
        assert "without a part that is not connected" in answer.message
        assert listener.call(SaveMap, f"{NODE}/save_map", name="whole").success
        shown = message_to_cloud(listener.newest(f"{NODE}/map_cloud"))
        whole = read_results(tmp_path / "whole")
        assert whole.parts == 2
        assert len(shown.points) == len(whole.cloud.points) == answer.points
        assert listener.newest(f"{NODE}/status").map_points > len(shown.points)
    listener.close()


def path_stamps(listener: Listener) -> set[int]:
    return {ns_from_stamp(pose.header.stamp) for pose in listener.newest(f"{NODE}/path").poses}


class Log:
    """A logger that discards its lines."""

    def warning(self, text: str, **_: Any) -> None: ...

    def error(self, text: str, **_: Any) -> None: ...


def test_pending_keyframes_are_mapped_when_the_camera_stops_and_poses_do_not_run_ahead() -> None:
    run, pictures = start(demo_sequence()), frames()
    still: list[int] = []
    mapped: list[int] = []
    thread = MappingThread(
        run.mapper,
        Counters(),
        Log(),
        lambda _, result: mapped.extend(view.stamp_ns for view in result.views),
        lambda _: None,
        lambda _: None,
        lambda frame: still.append(frame.stamp_ns),
    )

    def waiting() -> int:
        return run.mapper._intake.waiting

    try:
        thread.set_running(True)
        shown = 0
        while not (mapped and 0 < waiting() < run.mapper.config.window.stride):
            thread.add_frame(pictures[shown])
            shown += 1
            wait_until(lambda: not thread._due(), 30, "the window")
        thread.set_running(False)
        last = pictures[shown - 1]
        for tenth in range(1, 100):  # without mapping the pose is repeated only for a while
            thread.add_frame(replace(last, stamp_ns=last.stamp_ns + tenth * 100_000_000))
        assert still
        assert max(still) < last.stamp_ns + 5_000_000_000
        thread.set_running(True)
        wait_until(lambda: waiting() == 0 and last.stamp_ns in mapped, 30, "what waited in the map")
        thread.add_frame(replace(last, stamp_ns=last.stamp_ns + 9_950_000_000))
        assert max(still) == last.stamp_ns + 9_950_000_000
    finally:
        assert thread.stop(30)


def test_odom_gets_the_map_in_metres_and_metric_outputs_wait_until_then() -> None:
    domain_id = domain(42)
    node, listener = started(domain_id, {"scale.source": "odometry"})
    with running(node):
        robot = Robot(listener)
        ready(listener)
        robot.drive(rate_hz=12, tf=True)  # without odometry there are windows, but no metres
        settle(listener, f"{NODE}/window")
        assert len([each for each in listener.heard[f"{NODE}/window"] if each.accepted]) > 2
        assert not any(each.metres for each in listener.heard[f"{NODE}/window"])
        words = "wait until the map is in metres (scale.source odometry)"
        wait_until(lambda: words in listener.newest("/diagnostics").status[1].message, 5, "what is held back")
        for topic in METRIC:
            assert not listener.heard[f"{NODE}/{topic}"], topic
        assert not transforms_to(listener, "odom")
        assert {each.header.frame_id for each in transforms_to(listener, "fast3r_camera")} == {"map"}
    listener.close()
    assert words in node.output()
    assert "Traceback" not in node.output()


@pytest.mark.parametrize("clock", [True, False], ids=["with a clock", "a recording without its clock"])
def test_odom_base_and_camera_agree_with_the_truth_once_the_map_is_in_metres(clock: bool) -> None:
    """Without the recording's clock the node's is decades ahead, and so would map -> odom be."""
    domain_id = domain(43)
    node, listener = started(domain_id, {"scale.source": "odometry", "use_sim_time": clock})
    with running(node):
        robot = Robot(listener)
        ready(listener)
        robot.drive(rate_hz=8, tf=True, odometry=True, clock=clock)
        listener.wait_for(f"{NODE}/status", lambda message: message.metres, 20)
        settle(listener, f"{NODE}/window")
        tree = tree_of(listener)
        says_where_the_robot_is(listener, robot)
    poses = first_poses(listener.heard[f"{NODE}/window"], metres=True)
    first = first_poses(listener.heard[f"{NODE}/window"], metres=False)
    assert len(poses) > 3
    assert set(stamps(listener, f"{NODE}/depth/image_rect")) == set(poses)
    assert not set(first) & set(stamps(listener, f"{NODE}/cloud"))
    assert tree.parents("odom") == {"map"}
    assert tree.parents("base_link") == {"odom"}
    errors = []
    for stamp, pose in poses.items():
        found = tree.lookup("map", CAMERA, stamp)
        assert np.abs(found - pose).max() < 1e-6
        world_from_camera = robot.world_from_camera(robot.index_at(stamp))
        errors.append(found @ np.linalg.inv(world_from_camera))  # map_from_world, the same for all
    spread = np.array([each[:3, 3] for each in errors])
    assert np.linalg.norm(spread - np.median(spread, axis=0), axis=1).max() < 0.15
    listener.close()
    assert "broadcasting map -> odom, in metres" in node.output()
    assert ("transforms follow the images' clock" in node.output()) != clock
    assert "Traceback" not in node.output()


def says_where_the_robot_is(listener: Listener, robot: Robot) -> None:
    """Like RViz's 2D Pose Estimate: the robot is there at once; a pose in another frame has no effect."""
    publisher = listener.node.create_publisher(PoseWithCovarianceStamped, "/initialpose", 10)
    wait_until(lambda: publisher.get_subscription_count() > 0, 10, "the node's subscription")
    odom_from_base = robot.odom_from_base(len(frames()) - 1)

    def map_from_base() -> np.ndarray:
        return matrix_of(transforms_to(listener, "odom")[-1]) @ odom_from_base

    given = np.eye(4)
    given[:3, :3] = Rotation.from_euler("z", 2.0).as_matrix()
    given[:2, 3] = 5.0, -3.0
    before = map_from_base()
    assert np.abs(before - given).max() > 1.0
    message = PoseWithCovarianceStamped()
    message.header.frame_id = "somewhere"
    message.pose.pose = pose_from_matrix(given)
    message.pose.covariance = np.diag([0.25, 0.25, 0, 0, 0, 0.07]).ravel()
    publisher.publish(message)
    problem = listener.wait_for(f"{NODE}/status", lambda m: "initialpose" in m.last_error, 10)
    assert "somewhere" in problem.last_error
    assert np.abs(map_from_base() - before).max() < 1e-6
    message.header.frame_id = "map"
    publisher.publish(message)
    wait_until(lambda: np.abs(map_from_base() - given).max() < 1e-6, 10, "the given pose on TF")


def test_two_nodes_in_two_namespaces_keep_apart() -> None:
    domain_id = domain(44)
    names = ("a", "b")
    cameras = {"a": "front", "b": "rear"}
    nodes = [
        Program([*DOUBLE, "0.0", *arguments(PARAMETERS, {"__ns": f"/{name}"})], domain_id) for name in names
    ]
    listener = listener_for(domain_id, "/a/fast3r_mapping")
    for name in names:
        for topic, kind in {**METRIC, "status": MappingStatus, "window": WindowEstimate}.items():
            listener.listen(kind, f"/{name}/fast3r_mapping/{topic}", latched=topic == "grid")
    with running(*nodes):
        for name in names:
            ready(listener, f"/{name}/fast3r_mapping")
        replays = [
            Program(
                [*REPLAY, *arguments({"rate": 2.0, "frame_id": cameras[name]}, {"__ns": f"/{name}"})],
                domain_id,
            )
            for name in names
        ]
        with running(*replays):
            assert [replay.wait(60) for replay in replays] == [0, 0], replays[0].output()
        for name in names:
            settle(listener, f"/{name}/fast3r_mapping/window")
        diagnosed = {status.name for message in listener.heard["/diagnostics"] for status in message.status}
    tree = tree_of(listener)
    for name in names:
        assert tree.parents(cameras[name]) == {f"{name}/map"}
        for topic in ("grid", "odometry", "window"):
            found = {each.header.frame_id for each in listener.heard[f"/{name}/fast3r_mapping/{topic}"]}
            assert found == {f"{name}/map"}, topic
        poses = first_poses(listener.heard[f"/{name}/fast3r_mapping/window"], metres=False)
        assert len(poses) > 5
        for stamp, pose in poses.items():
            assert np.abs(tree.lookup(f"{name}/map", cameras[name], stamp) - pose).max() < 1e-6
    expected = {
        f"{name}/fast3r_mapping: {part}" for name in names for part in ("input", "mapping", "transforms")
    }
    assert expected <= diagnosed
    assert not {name for name in diagnosed if name.startswith("fast3r_mapping")}
    listener.close()
    for node in nodes:
        assert "Traceback" not in node.output()

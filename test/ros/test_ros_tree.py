"""Nodes in a robot's tree of frames, for listeners of /tf: published data is connected to the map."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

from diagnostic_msgs.msg import DiagnosticArray
from fast3r_ros.msg import MappingStatus, WindowEstimate
from fast3r_ros.srv import SaveMap
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import OccupancyGrid, Odometry
from nav_msgs.msg import Path as PathMessage
from patience import HANG_SECONDS, wait_until
from robot import CAMERA, ENOUGH, QUICK, Robot, frames, listener_for, settle, transforms_to
from ros_harness import DOUBLE, NODE, REPLAY, Listener, Program, arguments, constants, domain, running
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import Image, PointCloud2
from tf2_msgs.msg import TFMessage
from tf_tree import Tree, Unknown, matrix_of

from fast3r_ros.benchmark.synthetic_run import start
from fast3r_ros.io.results import read_results
from fast3r_ros.ros.counters import Counters
from fast3r_ros.ros.messages import message_to_cloud
from fast3r_ros.ros.pose_messages import matrix_from_pose, ns_from_stamp, pose_from_matrix
from fast3r_ros.ros.worker import MappingThread
from fast3r_ros.synthetic.sequence import demo_sequence

pytestmark = pytest.mark.slow

METRIC = {"cloud": PointCloud2, "depth/image_rect": Image, "odometry": Odometry, "grid": OccupancyGrid}
PARAMETERS = {**QUICK, "grid.enabled": True}
PATIENT = constants({"wait": 60.0})  # so that no transform is too late on a busy machine


def started(domain_id: int, parameters: dict, name: str = NODE) -> tuple[Program, Listener]:
    """A node with its listener, ready for images."""
    node = Program([*DOUBLE, "0.0", *PATIENT, *arguments({**PARAMETERS, **parameters})], domain_id)
    listener = listener_for(domain_id, name)
    listener.listen(TFMessage, "/tf_static", latched=True)
    for topic, kind in METRIC.items():
        listener.listen(kind, f"{name}/{topic}", latched=topic == "grid")
    return node, listener


def ready(listener: Listener, name: str = NODE) -> None:
    listener.wait_for(f"{name}/status", lambda message: message.state == MappingStatus.WAITING)


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


def tree_with(listener: Listener, root: str, camera: str, poses: dict[int, np.ndarray]) -> Tree:
    """The tree of frames, when it has the camera's poses (stamp -> (4, 4) root_from_camera)."""

    def complete() -> bool:
        tree = tree_of(listener)
        try:
            found = {stamp: tree.lookup(root, camera, stamp) for stamp in poses}
        except Unknown:
            return False
        return all(np.abs(found[stamp] - pose).max() < 1e-6 for stamp, pose in poses.items())

    wait_until(complete, f"the poses of {camera} on TF")
    return tree_of(listener)


def test_a_stationary_camera_on_the_base_stays_connected_to_the_map() -> None:
    domain_id = domain(41)
    node, listener = started(domain_id, {})
    with running(node):
        robot = Robot(listener)
        ready(listener)
        robot.drive()
        settle(listener)
        poses = first_poses(listener.heard[f"{NODE}/window"], metres=False)
        assert len(poses) > 5
        tree = tree_with(listener, "map", CAMERA, poses)
        wait_until(lambda: set(stamps(listener, f"{NODE}/depth/image_rect")) == set(poses), "depth images")
        assert set(stamps(listener, f"{NODE}/cloud")) <= set(poses)
        for stamp, pose in poses.items():
            on_base = tree.lookup("map", "base_link", stamp) @ robot.base_from_camera
            assert np.abs(on_base - pose).max() < 1e-6
        assert tree.parents("base_link") == {"map"}
        assert tree.parents(CAMERA) == {"base_link"}
        words = "map -> base_link, up to scale (scale.source is none)"
        wait_until(lambda: listener.newest("/diagnostics").status[2].message == words, "what is broadcast")

        # the camera is stationary: new listeners find the frames
        last = frames()[-1]
        later = 0
        count = len(transforms_to(listener, "base_link"))
        for index in range(40):
            later = last.stamp_ns + (index + 1) * 100_000_000
            robot.show(replace(last, stamp_ns=later))
        wait_until(lambda: len(transforms_to(listener, "base_link")) > count + 10, "the pose again")
        heard = [ns_from_stamp(each.header.stamp) for each in transforms_to(listener, "base_link")]
        assert last.stamp_ns < max(heard) <= later
        # pending keyframes are in the map, too, in time for their transforms
        listener.wait_for(f"{NODE}/status", lambda message: message.frames_waiting == 0)
        used = listener.newest(f"{NODE}/status").frames_used
        wait_until(lambda: len(stamps(listener, f"{NODE}/depth/image_rect")) == used, "all depth images")
        poses = first_poses(listener.heard[f"{NODE}/window"], metres=False)
        assert set(stamps(listener, f"{NODE}/depth/image_rect")) == set(poses)
        tree_with(listener, "map", CAMERA, poses)
        # and without any image
        count = len(transforms_to(listener, "base_link"))
        wait_until(lambda: len(transforms_to(listener, "base_link")) > count, "the pose without images")
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
        listener.connect(robot.images)
        for frame in (*walk[45:], *walk[:45]):
            robot.show(frame)
        listener.wait_for(f"{NODE}/status", lambda message: message.submaps == 2)
        settle(listener, most_waiting=ENOUGH - 1)
        views = {ns_from_stamp(v.header.stamp) for w in listener.heard[f"{NODE}/window"] for v in w.views}
        torn = walk[45].stamp_ns
        assert min(views) < torn <= max(views)
        wait_until(lambda: path_stamps(listener) == {each for each in views if each >= torn}, "the path")
        words = "2 unconnected parts"
        wait_until(lambda: words in listener.newest("/diagnostics").status[1].message, "diagnostics")
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
            wait_until(lambda: not thread._due(), "the window")
        thread.set_running(False)
        last = pictures[shown - 1]
        for tenth in range(1, 100):  # without mapping the pose is repeated only for a while
            thread.add_frame(replace(last, stamp_ns=last.stamp_ns + tenth * 100_000_000))
        assert still
        assert max(still) < last.stamp_ns + 5_000_000_000
        thread.set_running(True)
        wait_until(lambda: waiting() == 0 and last.stamp_ns in mapped, "what waited in the map")
        thread.add_frame(replace(last, stamp_ns=last.stamp_ns + 9_950_000_000))
        assert max(still) == last.stamp_ns + 9_950_000_000
    finally:
        assert thread.stop(HANG_SECONDS)


def test_odom_gets_the_map_in_metres_and_metric_outputs_wait_until_then() -> None:
    domain_id = domain(42)
    node, listener = started(domain_id, {"scale.source": "odometry"})
    with running(node):
        robot = Robot(listener)
        ready(listener)
        robot.drive(tf=True)  # without odometry there are windows, but no metres
        settle(listener)
        assert len([each for each in listener.heard[f"{NODE}/window"] if each.accepted]) > 2
        assert not any(each.metres for each in listener.heard[f"{NODE}/window"])
        words = "wait until the map is in metres (scale.source odometry)"
        wait_until(lambda: words in listener.newest("/diagnostics").status[1].message, "what is held back")
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
        robot.drive(tf=True, odometry=True, clock=clock)
        words = "transforms follow the images' clock"
        if clock:
            assert words not in node.output()  # it may come later: the clock stands then
        else:
            wait_until(lambda: words in node.output(), "which clock it follows")
        listener.wait_for(f"{NODE}/status", lambda message: message.metres)
        settle(listener)
        poses = first_poses(listener.heard[f"{NODE}/window"], metres=True)
        tree = tree_with(listener, "map", CAMERA, poses)
        wait_until(lambda: set(stamps(listener, f"{NODE}/depth/image_rect")) == set(poses), "depth images")
        says_where_the_robot_is(listener, robot)
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
    assert "Traceback" not in node.output()


def says_where_the_robot_is(listener: Listener, robot: Robot) -> None:
    """Like RViz's 2D Pose Estimate: the robot is there at once; a pose in another frame has no effect."""
    publisher = listener.node.create_publisher(PoseWithCovarianceStamped, "/initialpose", 10)
    wait_until(lambda: publisher.get_subscription_count() > 0, "the node's subscription")
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
    problem = listener.wait_for(f"{NODE}/status", lambda m: "initialpose" in m.last_error)
    assert "somewhere" in problem.last_error
    assert np.abs(map_from_base() - before).max() < 1e-6
    message.header.frame_id = "map"
    publisher.publish(message)
    wait_until(lambda: np.abs(map_from_base() - given).max() < 1e-6, "the given pose on TF")


def test_two_nodes_in_two_namespaces_keep_apart() -> None:
    domain_id = domain(44)
    names = ("a", "b")
    cameras = {"a": "front", "b": "rear"}
    nodes = [
        Program([*DOUBLE, "0.0", *arguments(PARAMETERS, {"__ns": f"/{name}"})], domain_id) for name in names
    ]
    listener = Listener(domain_id)
    listener.listen(TFMessage, "/tf")
    listener.listen(DiagnosticArray, "/diagnostics")
    for name in names:
        for topic, kind in {**METRIC, "status": MappingStatus, "window": WindowEstimate}.items():
            listener.listen(kind, f"/{name}/fast3r_mapping/{topic}", latched=topic == "grid")
    with running(*nodes):
        for name in names:
            ready(listener, f"/{name}/fast3r_mapping")
        replays = [
            Program(
                [
                    *REPLAY,
                    *arguments(
                        {"source": "synthetic:6", "frame_id": cameras[name], "rate": 2.0},
                        {"__ns": f"/{name}"},
                    ),
                ],
                domain_id,
            )
            for name in names
        ]
        with running(*replays):
            assert [replay.wait() for replay in replays] == [0, 0], replays[0].output()
        for name in names:
            settle(listener, f"/{name}/fast3r_mapping")
        poses = {
            name: first_poses(listener.heard[f"/{name}/fast3r_mapping/window"], metres=False)
            for name in names
        }
        for name in names:
            assert len(poses[name]) > 5
            tree_with(listener, f"{name}/map", cameras[name], poses[name])
        diagnosed = {status.name for message in listener.heard["/diagnostics"] for status in message.status}
    tree = tree_of(listener)
    for name in names:
        assert tree.parents(cameras[name]) == {f"{name}/map"}
        for topic in ("grid", "odometry", "window"):
            found = {each.header.frame_id for each in listener.heard[f"/{name}/fast3r_mapping/{topic}"]}
            assert found == {f"{name}/map"}, topic
    expected = {
        f"{name}/fast3r_mapping: {part}" for name in names for part in ("input", "mapping", "transforms")
    }
    assert expected <= diagnosed
    assert not {name for name in diagnosed if name.startswith("fast3r_mapping")}
    listener.close()
    for node in nodes:
        assert "Traceback" not in node.output()

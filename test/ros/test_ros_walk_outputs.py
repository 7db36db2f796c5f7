"""What the node publishes during the walk: every topic, from its subscribers' side."""

from __future__ import annotations

import re
import time
import urllib.request

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

from patience import HANG_SECONDS
from ros_harness import NODE, Listener
from sensor_msgs.msg import PointCloud2
from visualization_msgs.msg import Marker
from walk_session import DOMAIN, LATCHED, PARAMETERS, STREAMS, Session, stamps

from fast3r_ros.benchmark.synthetic_run import start, the_loop
from fast3r_ros.ros.messages import map_markers, message_to_cloud
from fast3r_ros.ros.outputs import TOPICS
from fast3r_ros.ros.pose_messages import matrix_from_pose, matrix_from_transform, ns_from_stamp
from fast3r_ros.synthetic.sequence import demo_sequence


def test_every_topic_is_received(session: Session) -> None:
    assert {*TOPICS, "status"} == {*STREAMS, *LATCHED}
    assert not [name for name in (*TOPICS, "status", "/tf", "/diagnostics") if not session.walked(name)]


def test_status_accounts_for_the_walk(session: Session) -> None:
    status = session.walked("status")[-1]
    assert status.frames_received >= 60  # of 120; a busy machine loses some
    total = status.frames_used + status.frames_waiting + status.frames_dropped
    assert total == status.frames_received
    assert status.windows >= 2
    assert status.windows_rejected == 0
    assert status.map_points > 10_000
    assert status.device == "cpu"
    assert 0 < status.callback_p99 <= status.callback_max
    assert {"encode", "network", "publish"} <= {each.stage for each in status.latencies}
    assert 0 < status.image_age < 30
    assert not status.metres
    assert status.last_error == ""


def test_confidence_has_stamp_frame_and_size_of_the_input(session: Session) -> None:
    sequence = demo_sequence()
    inputs = {sequence.stamp_ns(index) for index in range(len(sequence))}  # sent by the replay node
    images = session.walked("confidence")
    assert len(images) >= 15
    assert len(set(stamps(images))) == len(images)  # every keyframe once
    for message in images:
        assert ns_from_stamp(message.header.stamp) in inputs
        assert message.header.frame_id == "camera_optical_frame"
        assert (message.width, message.height, message.encoding) == (320, 240, "32FC1")
    values = np.frombuffer(images[-1].data, np.float32)
    assert values.min() >= 1.0  # the network's minimum
    assert values.max() > 2.0
    colours = session.walked("confidence_color")
    assert (colours[-1].encoding, colours[-1].width) == ("rgb8", 320)
    assert stamps(colours)[-1] in stamps(images)


def test_depth_is_the_rooms_up_to_scale(session: Session) -> None:
    sequence = demo_sequence(with_depth=True)
    index_of = {sequence.stamp_ns(index): index for index in range(len(sequence))}
    message = session.walked("depth/image_rect")[-1]
    assert (message.encoding, message.header.frame_id) == ("32FC1", "camera_optical_frame")
    depth = np.frombuffer(message.data, np.float32).reshape(240, 320)
    truth = sequence[index_of[ns_from_stamp(message.header.stamp)]].depth
    ratio = (depth / truth)[np.isfinite(depth)]
    assert ratio.size > 0.5 * depth.size
    low, middle, high = np.percentile(ratio, [10, 50, 90])
    assert high - low < 0.1 * middle


def test_depth_camera_info_fits_the_depth(session: Session) -> None:
    info = session.walked("depth/camera_info")[-1]
    assert stamps([info])[0] in stamps(session.walked("depth/image_rect"))
    assert (info.width, info.height) == (320, 240)
    truth = demo_sequence().intrinsics
    assert np.allclose(np.reshape(info.k, (3, 3)), truth - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]], atol=0.01)


def test_cloud_is_in_the_camera_frame_in_front_of_it(session: Session) -> None:
    message = session.walked("cloud")[-1]
    assert message.header.frame_id == "camera_optical_frame"
    assert ns_from_stamp(message.header.stamp) in stamps(session.walked("depth/image_rect"))
    cloud = message_to_cloud(message)
    assert len(cloud.points) > 1000
    assert (cloud.points[:, 2] > 0).all()
    assert cloud.confidence.min() >= 1
    assert cloud.colors.std() > 5


def test_map_cloud_is_the_room_level_and_latched(session: Session) -> None:
    late = Listener(DOMAIN)
    try:
        late.listen(PointCloud2, f"{NODE}/map_cloud", latched=True)
        message = late.wait_for(f"{NODE}/map_cloud", lambda _: True)
    finally:
        late.close()
    assert message.header.frame_id == "map"
    cloud = message_to_cloud(message)
    status = session.status()
    assert len(cloud.points) == pytest.approx(status.map_points, rel=0.2)
    assert np.isfinite(cloud.points).all()
    voxels = np.floor(cloud.points / PARAMETERS["map.voxel_size"]).astype(int)
    assert len(np.unique(voxels, axis=0)) > 0.9 * len(voxels)


def test_every_image_cloud_and_pose_has_its_transform_at_its_stamp(session: Session) -> None:
    """No other node broadcasts the image's frame: it is below the map, with the poses of ~/window."""
    transforms = [each for message in session.walked("/tf") for each in message.transforms]
    camera: dict[int, np.ndarray] = {}
    for each in transforms:
        if each.child_frame_id == "camera_optical_frame":
            assert each.header.frame_id == "map"
            stamp = ns_from_stamp(each.header.stamp)
            assert stamp not in camera  # tf2 keeps only the first transform of a stamp
            camera[stamp] = matrix_from_transform(each.transform)
    first = {}  # as a keyframe was when its images were published
    for window in session.walked("window"):
        for view in window.views:
            first.setdefault(ns_from_stamp(view.header.stamp), matrix_from_pose(view.pose.pose))
    for name in ("depth/image_rect", "depth/camera_info", "confidence", "cloud", "odometry"):
        assert set(stamps(session.walked(name))) <= set(first), name
    assert (
        set(stamps(session.walked("depth/image_rect")))
        == set(first)
        == set(stamps(session.walked("odometry")))
    )
    for stamp, pose in first.items():
        assert np.abs(camera[stamp] - pose).max() < 1e-6
    for message in session.walked("odometry"):
        assert (message.header.frame_id, message.child_frame_id) == ("map", "camera_optical_frame")
        pose = matrix_from_pose(message.pose.pose)
        assert np.allclose(pose, camera[ns_from_stamp(message.header.stamp)], atol=1e-9)
    assert stamps(session.walked("odometry")) == sorted(first)
    views = {each.child_frame_id for each in transforms if each.child_frame_id.startswith("fast3r_view_")}
    assert {"fast3r_view_0", "fast3r_view_7"} <= views


def test_markers_show_the_keyframes_of_the_path(session: Session) -> None:
    keyframes, loops = session.walked("markers")[-1].markers
    assert (keyframes.ns, loops.ns, keyframes.header.frame_id) == ("keyframes", "loops", "map")
    assert keyframes.type == Marker.LINE_LIST
    corners = np.array([[p.x, p.y, p.z] for p in keyframes.points]).reshape(-1, 16, 3)
    path = session.walked("path")[-1].poses
    places = np.array([[p.pose.position.x, p.pose.position.y, p.pose.position.z] for p in path])
    assert len(corners) >= 10
    distance = np.linalg.norm(corners[:, None, 0] - places, axis=-1).min(axis=1)
    assert np.median(distance) < 1e-3  # each pyramid begins at a camera; the map may be one window newer


def test_markers_of_loops_connect_keyframes_and_an_empty_map_removes_all() -> None:
    sequence, frames = the_loop()
    keyframes = start(sequence).feed(frames[:100]).mapper.map.keyframes
    first, *_, last = keyframes
    _, loops = map_markers(keyframes, [(first, last)], 5, "map").markers
    (begin, end) = np.array([[p.x, p.y, p.z] for p in loops.points])
    assert np.allclose(begin, keyframes[first].map_from_camera[:3, 3])
    assert np.allclose(end, keyframes[last].map_from_camera[:3, 3])
    assert {marker.action for marker in map_markers({}, [], 5, "map").markers} == {Marker.DELETE}


def test_path_follows_the_true_camera(session: Session) -> None:
    """The path equals the ground truth up to one similarity: within 2 % of its extent."""
    path = session.walked("path")[-1]
    assert path.header.frame_id == "map"
    truth = {ns_from_stamp(m.header.stamp): m.pose.pose.position for m in session.walked("/ground_truth")}
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


def test_windows_report_their_views(session: Session) -> None:
    windows = session.walked("window")
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
    grid = session.walked("grid")[-1]
    cells = np.array(grid.data)
    assert grid.header.frame_id == "map"
    assert len(cells) == grid.info.width * grid.info.height
    assert {-1, 100} <= set(cells.tolist()) <= {-1, 0, 100}


def test_the_map_is_served_to_a_browser_of_this_machine(session: Session) -> None:
    address = re.search(r"the map is shown at (http://127\.0\.0\.1:\d+)", session.node.output())
    assert address is not None
    with urllib.request.urlopen(address[1], timeout=HANG_SECONDS) as page:
        assert "text/html" in page.headers["Content-Type"]


def test_diagnostics_come_once_a_second(session: Session) -> None:
    messages = session.walked("/diagnostics")
    times = [message for message in messages if message.status[0].name.startswith("fast3r_mapping")]
    assert len(times) >= 5
    seconds = np.diff([ns_from_stamp(message.header.stamp) / 1e9 for message in times])
    assert len(seconds) <= seconds.sum() + 1  # a busy machine sends fewer
    assert abs(times[-1].header.stamp.sec - time.time()) < 3600  # the node's clock, not the images'
    values = {value.key: value.value for value in times[-1].status[0].values}
    assert values["/image"] == "reliable, calibrated"  # as the replay node publishes it
    assert {status.name for status in times[-1].status} == {
        "fast3r_mapping: input",
        "fast3r_mapping: mapping",
        "fast3r_mapping: transforms",
    }

"""The node on a robot: metres from odometry, TF and depth images, map -> odom, namespaces and remapping."""

from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

from fast3r_ros.msg import MappingStatus
from nav_msgs.msg import Odometry
from robot import CAMERA, Robot, frames, latched, listener_for, transforms_to
from ros_harness import DOUBLE, NODE, Program, arguments, constants, domain, running, wait_until
from sensor_msgs.msg import Image
from tf2_msgs.msg import TFMessage

from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.ros.image_messages import rgb_to_image
from fast3r_ros.ros.pose_messages import (
    matrix_from_pose,
    matrix_from_transform,
    ns_from_stamp,
    stamped_transform,
)

pytestmark = pytest.mark.slow

QUICK = {"output.status_rate": 5.0, "window.stride": 2}  # the walk is short


def test_map_to_odom_composes_to_the_estimated_camera() -> None:
    domain_id = domain(6)
    parameters = {"tf_mode": "map_to_odom", "scale.source": "odometry", **QUICK}
    parameters |= {"frames.odom": "wheels", "frames.base": "chassis"}
    late = constants({"tf.tolerance": 0.5, "tf.rate": 5.0})
    node = Program([*DOUBLE, "0.0", *late, *arguments(parameters)], domain_id)
    listener = listener_for(domain_id)
    with running(node):
        robot = Robot(listener, odom="wheels", base="chassis")
        listener.wait_for(f"{NODE}/status", lambda message: message.state == MappingStatus.WAITING, 60)
        robot.drive(rate_hz=8, tf=True, odometry=True)
        driven = time.monotonic()
        status = listener.wait_for(f"{NODE}/status", lambda message: message.metres, 20)
        assert status.scale_source == "odometry"
        time.sleep(2.0)  # the last window and its transform

        window = [each for each in listener.heard[f"{NODE}/window"] if each.accepted and each.metres][-1]
        view = window.views[-1]
        map_from_odom = transforms_to(listener, "wheels")[-1]
        assert map_from_odom.header.frame_id == "map"
        index = robot.index_at(ns_from_stamp(view.header.stamp))
        composed = (
            matrix_from_transform(map_from_odom.transform)
            @ robot.odom_from_base(index)
            @ robot.base_from_camera
        )
        assert np.abs(composed - matrix_from_pose(view.pose.pose)).max() < 1e-6
        # stamped into the future by the tolerance, by the clock of the images, and broadcast steadily
        count = len(transforms_to(listener, "wheels"))
        wait_until(lambda: len(transforms_to(listener, "wheels")) > count, 5, "one more transform")
        stamps = [ns_from_stamp(each.header.stamp) for each in transforms_to(listener, "wheels")]
        last = frames()[-1].stamp_ns
        assert -0.5 < (stamps[-1] - last) / 1e9 - (time.monotonic() - driven) < 1.0
        ahead = np.array([stamp for stamp in stamps if stamp > last + 6e8])  # without the keyframes'
        assert len(ahead) > 5
        assert np.median(np.diff(ahead)) / 1e9 == pytest.approx(0.2, rel=0.2)
        # the image's frame has a parent already: the node gives it no second one
        assert not transforms_to(listener, CAMERA)
        assert not transforms_to(listener, "fast3r_camera")

        # another node claims odom: ours reports it and stops
        def ours() -> int:
            return sum(each.header.frame_id == "map" for each in transforms_to(listener, "wheels"))

        words = "wheels already has the parent world"

        def claimed() -> bool:
            robot.broadcast("world", "wheels")
            time.sleep(0.1)
            return words in listener.newest("/diagnostics").status[2].message

        wait_until(claimed, 10, "the conflict to be told")
        count = ours()
        for _ in range(10):
            robot.broadcast("world", "wheels")
            time.sleep(0.1)
        assert ours() == count
        # and continues after two seconds without such a claim
        wait_until(lambda: ours() > count + 5, 10, "our transform again")
        wait_until(lambda: words not in listener.newest("/diagnostics").status[2].message, 5, "the end of it")
    listener.close()
    assert "Traceback" not in node.output()


def test_metres_come_from_odometry_on_tf_that_is_late_while_the_camera_pans() -> None:
    domain_id = domain(13)
    parameters = {"scale.source": "odometry", "input.odometry": "tf", **QUICK}
    node = Program([*DOUBLE, "0.0", *arguments(parameters)], domain_id)
    listener = listener_for(domain_id)
    with running(node):
        robot = Robot(listener, pans=True)
        listener.wait_for(f"{NODE}/status", lambda message: message.state == MappingStatus.WAITING, 60)
        assert listener.node.count_subscribers("/odometry") == 0
        listener.listen(Odometry, f"{NODE}/odometry")
        robot.drive(rate_hz=12, tf=True, late=0.3)
        status = listener.wait_for(f"{NODE}/status", lambda message: message.metres, 20)
        assert status.scale_source == "odometry"
        windows = listener.heard[f"{NODE}/window"]
        wait_until(lambda: any(each.accepted and each.metres for each in windows), 20, "a window in metres")
        status = listener.wait_for(
            f"{NODE}/status",
            lambda message: message.frames_received == len(frames()) and message.frames_waiting < 8,
            20,
        )
        metric = [each for each in windows if each.accepted and each.metres]
    listener.close()
    assert robot.scale_error(metric[-1]) < 0.05
    assert not [problem for problem in status.problems if "TF" in problem.reason]
    assert status.frames_received == len(frames())
    assert 0.0 < status.scale_sigma < 0.05
    # the map begins at the base's first pose, and map -> odom shows it
    view = metric[-1].views[-1]
    index = robot.index_at(ns_from_stamp(view.header.stamp))
    map_from_base = matrix_from_pose(view.pose.pose) @ inverse(robot.base_from_camera_at(index))
    true = inverse(robot.odom_from_base(0)) @ robot.odom_from_base(index)
    assert np.abs(map_from_base[:3, 3] - true[:3, 3]).max() < 0.15
    # ~/odometry is the base's, whose speed is that of odometry, though the camera turns on it
    message = listener.heard[f"{NODE}/odometry"][-1]
    assert (message.header.frame_id, message.child_frame_id) == ("map", "base_link")
    stamp_ns = ns_from_stamp(message.header.stamp)
    same = [v for window in metric for v in window.views if ns_from_stamp(v.header.stamp) == stamp_ns]
    index = robot.index_at(stamp_ns)
    camera = matrix_from_pose(message.pose.pose) @ robot.base_from_camera_at(index)
    assert np.abs(camera - matrix_from_pose(same[-1].pose.pose)).max() < 0.05
    speed = message.twist.twist.linear
    assert 0.05 < np.linalg.norm([speed.x, speed.y, speed.z]) < 1.0
    assert message.twist.covariance[0] < 1.0
    assert "Traceback" not in node.output()


def test_a_non_optical_frame_and_a_camera_off_the_robot_are_reported() -> None:
    domain_id = domain(15)
    parameters = {"scale.source": "odometry", "cameras": '["front", "rear"]', **QUICK}
    node = Program([*DOUBLE, "0.0", *arguments(parameters)], domain_id)
    listener = listener_for(domain_id)
    with running(node):
        listener.wait_for(f"{NODE}/status", lambda message: message.state == MappingStatus.WAITING, 60)
        tf = listener.node.create_publisher(TFMessage, "/tf_static", latched())
        wait_until(lambda: tf.get_subscription_count() > 0, 10, "the node's subscription")
        tf.publish(TFMessage(transforms=[stamped_transform(np.eye(4), "base_link", "camera_link", 0)]))
        cameras = {"front": "camera_link", "rear": "usb_cam"}
        images = {name: listener.node.create_publisher(Image, f"/{name}/image", 10) for name in cameras}
        wait_until(lambda: all(p.get_subscription_count() for p in images.values()), 10, "subscriptions")

        def told() -> bool:
            stamp_ns = listener.node.get_clock().now().nanoseconds
            for name, frame in cameras.items():
                images[name].publish(rgb_to_image(frames()[0].image, stamp_ns, frame))
            time.sleep(0.2)
            text = listener.newest("/diagnostics").status[2].message
            return "camera_link does not look like an optical frame" in text and (
                "base_link -> usb_cam is not on TF: the camera is assumed to look ahead, level" in text
            )

        listener.wait_for("/diagnostics", lambda message: len(message.status) > 2, 10)
        wait_until(told, 20, "both warnings")
    listener.close()
    output = node.output()
    assert output.count("camera_link does not look like an optical frame") == 1
    assert output.count("usb_cam is not on TF") == 1
    assert "Traceback" not in output


def test_metres_come_from_depth_images_in_a_namespace_with_other_topic_names() -> None:
    """A best-effort depth camera without calibration; nothing is broadcast in tf_mode none."""
    domain_id, name = domain(14), "/robot1/fast3r_mapping"
    parameters = {"scale.source": "depth", "tf_mode": "none", "publish_view_frames": False, **QUICK}
    topics = {"__ns": "/robot1", "image": "camera/image", "depth": "camera/depth"}
    node = Program([*DOUBLE, "0.0", *arguments(parameters, topics)], domain_id)
    listener = listener_for(domain_id, name)
    listener.listen(Image, f"{name}/depth/image_rect")
    with running(node):
        robot = Robot(listener, "/robot1/camera", best_effort=True)
        listener.wait_for(f"{name}/status", lambda message: message.state == MappingStatus.WAITING, 60)
        robot.drive(rate_hz=12, depth=True)
        listener.wait_for(f"{name}/status", lambda message: message.metres, 20)
        time.sleep(1.0)
        metric = [each for each in listener.heard[f"{name}/window"] if each.accepted and each.metres]
        camera = {value.key: value.value for value in listener.newest("/diagnostics").status[0].values}
        message = listener.heard[f"{name}/depth/image_rect"][-1]
    listener.close()
    assert robot.scale_error(metric[-1]) < 0.05
    assert camera["/robot1/camera/image"] == "best effort, not calibrated"
    assert all(view.intrinsics_estimated for view in metric[-1].views)
    assert not transforms_to(listener, "fast3r_camera")
    assert not transforms_to(listener, CAMERA)
    depth = np.frombuffer(message.data, np.float32).reshape(message.height, message.width)
    truth = frames()[robot.index_at(ns_from_stamp(message.header.stamp))].depth
    assert np.nanmedian(depth / truth) == pytest.approx(1.0, abs=0.05)
    assert "Traceback" not in node.output()

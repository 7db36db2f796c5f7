"""The node on a robot: metres from odometry, TF and depth images, map -> odom, namespaces and remapping."""

from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

from fast3r_ros.msg import MappingStatus
from nav_msgs.msg import Odometry
from patience import wait_until
from robot import CAMERA, QUICK, Robot, frames, latched, listener_for, settle, transforms_to
from ros_harness import DOUBLE, NODE, Program, arguments, constants, domain, running
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

PATIENT = constants({"wait": 60.0})  # so that no transform is too late on a busy machine


def test_map_to_odom_composes_to_the_estimated_camera() -> None:
    domain_id = domain(6)
    parameters = {"tf_mode": "map_to_odom", "scale.source": "odometry", **QUICK}
    parameters |= {"frames.odom": "wheels", "frames.base": "chassis"}
    late = constants({"tf.tolerance": 0.5, "tf.rate": 5.0})
    node = Program([*DOUBLE, "0.0", *PATIENT, *late, *arguments(parameters)], domain_id)
    listener = listener_for(domain_id)
    with running(node):
        robot = Robot(listener, odom="wheels", base="chassis")
        listener.wait_for(f"{NODE}/status", lambda message: message.state == MappingStatus.WAITING)
        robot.drive(tf=True, odometry=True)
        status = listener.wait_for(f"{NODE}/status", lambda message: message.metres)
        assert status.scale_source == "odometry"
        settle(listener)
        window = [each for each in listener.heard[f"{NODE}/window"] if each.accepted and each.metres][-1]
        view = window.views[-1]
        index = robot.index_at(ns_from_stamp(view.header.stamp))
        odom_from_camera = robot.odom_from_base(index) @ robot.base_from_camera
        estimated = matrix_from_pose(view.pose.pose)

        def composed() -> bool:
            map_from_odom = matrix_from_transform(transforms_to(listener, "wheels")[-1].transform)
            return np.abs(map_from_odom @ odom_from_camera - estimated).max() < 1e-6

        wait_until(composed, "map -> odom that composes to the newest view")
        assert {each.header.frame_id for each in transforms_to(listener, "wheels")} == {"map"}
        # stamped into the future by the tolerance, by the clock of the images, and broadcast without any
        count = len(transforms_to(listener, "wheels"))
        wait_until(lambda: len(transforms_to(listener, "wheels")) > count + 6, "more transforms")
        stamps = [ns_from_stamp(each.header.stamp) for each in transforms_to(listener, "wheels")]
        ahead = (np.array(stamps[count:]) - frames()[-1].stamp_ns) / 1e9 - 0.5
        assert ahead.min() > 0
        assert ahead.max() < time.monotonic() - robot.shown_at
        assert (np.diff(ahead) > 0).all()
        assert len(ahead) <= np.ptp(ahead) / 0.2 + 2  # the rate; a busy machine broadcasts fewer
        # the image's frame has a parent already: the node gives it no second one
        assert not transforms_to(listener, CAMERA)
        assert not transforms_to(listener, "fast3r_camera")

        # another node claims odom: ours reports it and stops
        def ours() -> int:
            return sum(each.header.frame_id == "map" for each in transforms_to(listener, "wheels"))

        words = "wheels already has the parent world"

        def claimed() -> bool:
            robot.broadcast("world", "wheels")
            return words in listener.newest("/diagnostics").status[2].message

        def quiet() -> bool:
            """Claim it for a second of the node's time, in which five of our transforms would come."""
            count = ours()
            for _ in range(15):
                robot.broadcast("world", "wheels")
                listener.later(f"{NODE}/status")  # a fifteenth of a second
            return ours() == count

        wait_until(claimed, "the conflict to be told")
        wait_until(quiet, "our transforms to end")
        count = ours()
        # and continues after two seconds without such a claim
        wait_until(lambda: ours() > count + 5, "our transform again")
        wait_until(lambda: words not in listener.newest("/diagnostics").status[2].message, "the end of it")
    listener.close()
    assert "Traceback" not in node.output()


def test_metres_come_from_odometry_on_tf_that_is_late_while_the_camera_pans() -> None:
    domain_id = domain(13)
    parameters = {"scale.source": "odometry", "input.odometry": "tf", **QUICK}
    node = Program([*DOUBLE, "0.0", *PATIENT, *arguments(parameters)], domain_id)
    listener = listener_for(domain_id)
    with running(node):
        robot = Robot(listener, pans=True)
        listener.wait_for(f"{NODE}/status", lambda message: message.state == MappingStatus.WAITING)
        assert listener.node.count_subscribers("/odometry") == 0
        listener.listen(Odometry, f"{NODE}/odometry")
        robot.drive(tf=True, late=3)
        status = listener.wait_for(f"{NODE}/status", lambda message: message.metres)
        assert status.scale_source == "odometry"
        windows = listener.heard[f"{NODE}/window"]
        wait_until(lambda: any(each.accepted and each.metres for each in windows), "a window in metres")
        settle(listener)
        status = listener.newest(f"{NODE}/status")
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
        listener.wait_for(f"{NODE}/status", lambda message: message.state == MappingStatus.WAITING)
        tf = listener.node.create_publisher(TFMessage, "/tf_static", latched())
        listener.connect(tf, adapts=False)
        tf.publish(TFMessage(transforms=[stamped_transform(np.eye(4), "base_link", "camera_link", 0)]))
        cameras = {"front": "camera_link", "rear": "usb_cam"}
        images = {name: listener.node.create_publisher(Image, f"/{name}/image", 10) for name in cameras}
        listener.connect(*images.values())

        def told() -> bool:
            stamp_ns = listener.node.get_clock().now().nanoseconds
            for name, frame in cameras.items():
                images[name].publish(rgb_to_image(frames()[0].image, stamp_ns, frame))
            listener.later(f"{NODE}/status")
            text = listener.newest("/diagnostics").status[2].message
            return "camera_link does not look like an optical frame" in text and (
                "base_link -> usb_cam is not on TF: the camera is assumed to look ahead, level" in text
            )

        listener.wait_for("/diagnostics", lambda message: len(message.status) > 2)
        wait_until(told, "both warnings")
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
        robot = Robot(listener, "/robot1/camera", name, best_effort=True)
        listener.wait_for(f"{name}/status", lambda message: message.state == MappingStatus.WAITING)
        robot.drive(depth=True)
        listener.wait_for(f"{name}/status", lambda message: message.metres)
        settle(listener, name)
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

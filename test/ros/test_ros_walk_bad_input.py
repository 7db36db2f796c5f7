"""Bad input over DDS: each kind is counted with its reason, and the map is unchanged."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

from fast3r_ros.srv import SaveMap
from nav_msgs.msg import Odometry
from patience import wait_until
from ros_encoders import encode, known_picture
from ros_harness import NODE
from sensor_msgs.msg import CameraInfo, Image
from walk_session import Session

from fast3r_ros.ros.pose_messages import stamp_from_ns

SECOND = 100  # stamp of the invalid images; a valid one is a second earlier


def good(stamp: float = SECOND) -> Image:
    message = encode(known_picture(240, 320), "rgb8")
    message.header.stamp = stamp_from_ns(round(stamp * 1e9))
    return message


def changed(**changes: Any) -> Image:
    message = good()
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def test_bad_images_are_counted_and_leave_the_map_alone(session: Session) -> None:
    session.publish([good(SECOND - 1)], keyframes=1)
    session.listener.call(SaveMap, f"{NODE}/save_map", name="before.ply")  # processes the pending keyframes
    version, before = session.status().map_version, session.drops()
    other_frame = good()
    other_frame.header.frame_id = "another_camera"
    small = encode(known_picture(48, 64), "rgb8")
    small.header.stamp.sec = SECOND
    bad = {
        "truncated data": changed(data=good().data[:1000]),
        "wrong step": changed(step=11),
        "empty image": changed(width=0),
        "unknown encoding": changed(encoding="rgb9"),
        "size changed": small,
        "frame id changed": other_frame,
        "stamp repeated": good(SECOND - 1),
        "stamp went back": good(SECOND - 1.5),
    }
    session.publish(list(bad.values()))
    after = session.drops()
    counted = {reason: after.get(reason, 0) - before.get(reason, 0) for reason in bad}
    assert counted == dict.fromkeys(bad, 1)
    assert session.status().map_version == version
    for reason in bad:
        wait_until(lambda reason=reason: reason in session.diagnosis(0), f"{reason!r} in diagnostics")


def test_bad_calibration_and_odometry_are_counted(session: Session) -> None:
    session.publish([CameraInfo(width=320, height=240, k=[float("nan")] * 9)], "/camera_info")
    spinning = Odometry()
    spinning.pose.pose.orientation.w = 5.0
    session.publish([spinning], "/odometry")  # best effort: the node takes the newest
    reasons = ("unusable camera_info", "odometry: quaternion not of unit length")
    wait_until(lambda: session.drops().keys() >= set(reasons), "both problems")
    drops = session.drops()
    assert [drops[reason] for reason in reasons] == [1, 1]
    for reason in reasons:
        wait_until(lambda reason=reason: reason in session.diagnosis(0), f"{reason!r} in diagnostics")


def test_a_second_publisher_is_reported_and_ignored(session: Session) -> None:
    session.publish([changed(step=10)])
    node = session.listener.node
    first, second = session.camera, node.create_publisher(Image, "/image", 10)
    session.listener.connect(first, second)

    def counted() -> bool:
        first.publish(changed(step=11))
        second.publish(changed(step=12))
        return session.drops().get("second publisher on the image topic", 0) >= 4

    wait_until(counted, "images of the second publisher")
    wait_until(
        lambda: "2 publishers on /image" in session.diagnosis(0), "diagnostics to name both publishers"
    )
    node.destroy_publisher(second)

"""~/odometry: its frame, uncertainty and twist."""

from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

from fast3r_ros.geometry.rigid import BODY_FROM_OPTICAL, rigid_matrix
from fast3r_ros.geometry.rotation import matrix_from_vector, vector_from_matrix
from fast3r_ros.mapping.data import ViewEstimate
from fast3r_ros.ros.pose_messages import UNKNOWN_TWIST, keyframe_odometry, matrix_from_pose

NS = 1_000_000_000
MOUNT = rigid_matrix(BODY_FROM_OPTICAL[:3, :3], [0.5, 0.1, 1.0])
SPREAD = np.diag([0.01, 0.02, 0.03, 0.002, 0.003, 0.004]) ** 2


def base_at(seconds: float, speed: float = 2.0, spin: float = 0.5) -> np.ndarray:
    """A base that drives a circle: straight ahead at `speed` m/s, turning left at `spin` rad/s."""
    radius, angle = speed / spin, spin * seconds
    turn = matrix_from_vector(np.array([0, 0, angle]))
    return rigid_matrix(turn, [radius * np.sin(angle), radius * (1 - np.cos(angle)), 0.0])


def view(seconds: float, camera: str = "a", mount: Any = MOUNT, covariance: Any = SPREAD) -> ViewEstimate:
    map_from_camera = base_at(seconds) @ (MOUNT if mount is None else mount)
    image = np.zeros((2, 2, 3), np.uint8)
    return ViewEstimate(
        keyframe_id=0,
        stamp_ns=round(seconds * NS),
        camera=camera,
        map_from_camera=map_from_camera,
        covariance=covariance,
        intrinsics=np.eye(3),
        network_from_image=np.eye(3),
        image=image,
        maps=cast(Any, None),
        base_from_camera=mount,
    )


def odometry(of: ViewEstimate, *window: ViewEstimate) -> Any:
    return keyframe_odometry(of, window, "map", "base_link", "lens")


def vectors(message: Any) -> tuple[list[float], list[float]]:
    linear, angular = message.twist.twist.linear, message.twist.twist.angular
    return [linear.x, linear.y, linear.z], [angular.x, angular.y, angular.z]


def test_the_pose_is_the_bases_if_the_cameras_mounting_is_known() -> None:
    message = odometry(view(3.0))
    assert (message.header.frame_id, message.child_frame_id) == ("map", "base_link")
    assert matrix_from_pose(message.pose.pose) == pytest.approx(base_at(3.0), abs=1e-9)
    message = odometry(view(3.0, mount=None))
    assert message.child_frame_id == "lens"
    assert matrix_from_pose(message.pose.pose) == pytest.approx(base_at(3.0) @ MOUNT, abs=1e-9)


def test_the_covariance_moves_with_the_pose() -> None:
    """Against samples of disturbed camera poses."""
    rng = np.random.default_rng(0)
    true = view(3.0)
    expected = np.array(odometry(true).pose.covariance).reshape(6, 6)
    errors = []
    for error in rng.multivariate_normal(np.zeros(6), SPREAD, 20000):
        camera = true.map_from_camera.copy()
        camera[:3, :3] = matrix_from_vector(error[3:]) @ camera[:3, :3]
        camera[:3, 3] += error[:3]
        base = camera @ np.linalg.inv(MOUNT)
        turn = vector_from_matrix(base[:3, :3] @ base_at(3.0)[:3, :3].T)
        errors.append([*(base[:3, 3] - base_at(3.0)[:3, 3]), *turn])
    assert np.cov(np.array(errors).T) == pytest.approx(expected, abs=0.03 * expected.max())


def test_the_twist_is_the_mean_since_the_keyframe_before_in_the_bases_axes() -> None:
    now = view(3.0)
    message = odometry(now, view(2.5, mount=MOUNT), now)
    linear, angular = vectors(message)
    assert np.linalg.norm(linear) == pytest.approx(2.0, rel=0.01)
    assert linear[0] == pytest.approx(2.0, rel=0.02)
    assert angular == pytest.approx([0, 0, 0.5], abs=1e-6)
    covariance = np.array(message.twist.covariance).reshape(6, 6)
    assert covariance[5, 5] == pytest.approx(2 * 0.004**2 / 0.5**2)
    assert (np.linalg.eigvalsh(covariance) > 0).all()


def test_an_unknown_twist_has_a_huge_variance() -> None:
    now = view(3.0)
    together, old, other = view(2.999), view(0.5), view(2.5, camera="b", mount=None)
    for window in ([now], [together, now], [old, now], [other, now]):
        message = odometry(now, *window)
        assert message.twist.covariance[0] == UNKNOWN_TWIST
        assert vectors(message) == ([0, 0, 0], [0, 0, 0])


def test_cameras_of_a_rig_share_the_base() -> None:
    rear = MOUNT.copy()
    rear[:3, :3] = matrix_from_vector(np.array([0, 0, np.pi])) @ rear[:3, :3]
    now = view(3.0)
    linear, _ = vectors(odometry(now, view(2.5, "rear", rear), view(2.999, "rear", rear), now))
    assert linear[0] == pytest.approx(2.0, rel=0.02)

"""Stamps and poses as messages, and back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import (
    Point,
    Pose,
    PoseStamped,
    PoseWithCovariance,
    Quaternion,
    Transform,
    TransformStamped,
    TwistWithCovariance,
)
from nav_msgs.msg import Odometry, Path
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from fast3r_ros.geometry.rotation import cross_matrix, vector_from_matrix
from fast3r_ros.mapping.data import SIMULTANEOUS_NS, Float64, ViewEstimate
from fast3r_ros.mapping.expectation import InitialPose
from fast3r_ros.ros.upstream import TF_TRANSFORMATIONS

NS = 1_000_000_000


def ns_from_stamp(stamp: Time) -> int:
    """A message stamp as integer nanoseconds."""
    return stamp.sec * NS + stamp.nanosec


def stamp_from_ns(stamp_ns: int) -> Time:
    """Integer nanoseconds, within ROS's 32 bits of seconds, as a message stamp."""
    seconds, nanoseconds = divmod(stamp_ns, NS)
    return Time(sec=seconds, nanosec=nanoseconds)


UNKNOWN_TWIST = 1e6  # variance of a twist that is not estimated, (m/s)² and (rad/s)²


class BadPose(ValueError):
    """A pose that is not a rigid transform.  reason: the short phrase under which it is counted."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def quaternion_from_matrix(rotation: Float64) -> NDArray[np.float64]:
    """(3, 3) rotation -> (4,) unit quaternion x y z w."""
    if TF_TRANSFORMATIONS is not None:
        matrix = np.eye(4)
        matrix[:3, :3] = rotation
        return np.asarray(TF_TRANSFORMATIONS.quaternion_from_matrix(matrix))
    return Rotation.from_matrix(rotation).as_quat()


def matrix_from(translation: Sequence[float], quaternion: Sequence[float]) -> Float64:
    """Translation (3,) and quaternion x y z w -> (4, 4).  Raises BadPose."""
    values = np.array([*translation, *quaternion], np.float64)
    if not np.isfinite(values).all():
        raise BadPose("pose not finite", f"{values.tolist()}")
    length = float(np.linalg.norm(values[3:]))
    if abs(length - 1.0) > 0.01:
        raise BadPose("quaternion not of unit length", f"length {length:.4f}")
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_quat(values[3:]).as_matrix()
    matrix[:3, 3] = values[:3]
    return matrix


def matrix_from_pose(pose: Pose) -> Float64:
    """A pose as (4, 4).  Raises BadPose."""
    p, q = pose.position, pose.orientation
    return matrix_from((p.x, p.y, p.z), (q.x, q.y, q.z, q.w))


def matrix_from_transform(transform: Transform) -> Float64:
    """A transform as (4, 4).  Raises BadPose."""
    p, q = transform.translation, transform.rotation
    return matrix_from((p.x, p.y, p.z), (q.x, q.y, q.z, q.w))


def pose_from_matrix(matrix: Float64) -> Pose:
    """(4, 4) rigid -> Pose."""
    x, y, z = (float(value) for value in matrix[:3, 3])
    return Pose(position=Point(x=x, y=y, z=z), orientation=_quaternion(matrix))


def transform_from_matrix(matrix: Float64) -> Transform:
    """(4, 4) rigid -> Transform."""
    transform = Transform(rotation=_quaternion(matrix))
    translation = transform.translation
    translation.x, translation.y, translation.z = (float(value) for value in matrix[:3, 3])
    return transform


def _quaternion(matrix: Float64) -> Quaternion:
    x, y, z, w = (float(value) for value in quaternion_from_matrix(matrix[:3, :3]))
    return Quaternion(x=x, y=y, z=z, w=w)


def stamped_transform(parent_from_child: Float64, parent: str, child: str, stamp_ns: int) -> TransformStamped:
    """(4, 4) rigid `parent_from_child` as a message for /tf."""
    message = TransformStamped(child_frame_id=child, transform=transform_from_matrix(parent_from_child))
    message.header.frame_id = parent
    message.header.stamp = stamp_from_ns(stamp_ns)
    return message


def pose_with_covariance(matrix: Float64, covariance: Float64) -> PoseWithCovariance:
    """(4, 4) pose and (6, 6) covariance of (translation, rotation vector) in the parent frame."""
    return PoseWithCovariance(
        pose=pose_from_matrix(matrix), covariance=covariance.astype(np.float64).reshape(36)
    )


def odometry_message(
    map_from_child: Float64, covariance: Float64, parent: str, child: str, stamp_ns: int
) -> Odometry:
    """A pose as nav_msgs/Odometry; its twist is not estimated and has a huge variance."""
    message = Odometry(child_frame_id=child, pose=pose_with_covariance(map_from_child, covariance))
    message.header.frame_id = parent
    message.header.stamp = stamp_from_ns(stamp_ns)
    message.twist.covariance = (np.eye(6) * UNKNOWN_TWIST).reshape(36)
    return message


def initial_pose(message: PoseWithCovariance) -> InitialPose:
    """A pose from the user, accurate within three standard deviations, at least a metre and 60 degrees.

    Raises BadPose.
    """
    pose = matrix_from_pose(message.pose)
    covariance = np.array(message.covariance).reshape(6, 6)
    spread = np.sqrt(np.clip(np.nan_to_num(np.diag(covariance)), 0.0, 1e6))
    radius, angle = 3.0 * float(spread[:2].max()), 3.0 * float(spread[5])
    return InitialPose(pose, max(radius, 1.0), max(angle, float(np.deg2rad(60))))


def path_message(stamps_ns: Sequence[int], poses: Sequence[Float64], frame_id: str, stamp_ns: int) -> Path:
    """Poses (4, 4) in `frame_id` as a path."""
    path = Path()
    path.header.frame_id = frame_id
    path.header.stamp = stamp_from_ns(stamp_ns)
    for each_ns, matrix in zip(stamps_ns, poses, strict=True):
        stamped = PoseStamped(pose=pose_from_matrix(matrix))
        stamped.header.frame_id = frame_id
        stamped.header.stamp = stamp_from_ns(each_ns)
        path.poses.append(stamped)
    return path


LONGEST_NS = 2 * NS  # maximum time between two keyframes for a speed


def keyframe_odometry(
    view: ViewEstimate, views: Sequence[ViewEstimate], parent: str, base: str, camera: str
) -> Odometry:
    """The message of one keyframe.

    views: of its window, in time order.  parent: the map frame.  base: the child frame if the camera's pose
    on the robot is known, else camera.  The twist is in the child frame; without an earlier keyframe within
    two seconds it is unknown, with a huge variance.
    """
    pose, covariance = _pose(view)
    child = camera if view.map_from_base is None else base
    message = odometry_message(pose, covariance, parent, child, view.stamp_ns)
    before = _before(view, views)
    if before is not None:
        message.twist = _twist(before, view)
    return message


def _pose(view: ViewEstimate) -> tuple[Float64, Float64]:
    """The pose (4, 4) of the base, else of the camera, and its covariance (6, 6), both in `map`."""
    base = view.map_from_base
    if base is None:
        return view.map_from_camera, view.covariance
    move = np.eye(6)  # a rotation of the camera moves the base
    move[:3, 3:] = -cross_matrix(base[:3, 3] - view.map_from_camera[:3, 3])
    return base, move @ view.covariance @ move.T


def _before(view: ViewEstimate, views: Sequence[ViewEstimate]) -> ViewEstimate | None:
    """The newest earlier view with the same knowledge that is not simultaneous with this one."""
    earlier = takewhile(lambda other: view.stamp_ns - other.stamp_ns > SIMULTANEOUS_NS, views)
    same = [
        other
        for other in earlier
        if (other.map_from_base is None) == (view.map_from_base is None)
        and (view.map_from_base is not None or other.camera == view.camera)
    ]
    return same[-1] if same and view.stamp_ns - same[-1].stamp_ns <= LONGEST_NS else None


def _twist(before: ViewEstimate, view: ViewEstimate) -> TwistWithCovariance:
    """Mean linear and angular speed between two views, in the axes of the later one."""
    (first, first_covariance), (last, last_covariance) = _pose(before), _pose(view)
    seconds = (view.stamp_ns - before.stamp_ns) / NS
    turn = np.kron(np.eye(2), last[:3, :3].T)
    speed = last[:3, :3].T @ (last[:3, 3] - first[:3, 3]) / seconds
    spin = vector_from_matrix(first[:3, :3].T @ last[:3, :3]) / seconds
    covariance = turn @ (first_covariance + last_covariance) @ turn.T / seconds**2
    result = TwistWithCovariance(covariance=np.minimum(covariance, UNKNOWN_TWIST).reshape(36))
    for vector, values in ((result.twist.linear, speed), (result.twist.angular, spin)):
        vector.x, vector.y, vector.z = (float(value) for value in values)
    return result

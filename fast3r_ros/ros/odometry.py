"""~/odometry: the pose of the robot's base, or of the camera if its pose on the robot is unknown, and the
twist since the previous keyframe."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np
from geometry_msgs.msg import TwistWithCovariance
from nav_msgs.msg import Odometry

from fast3r_ros.geometry.rotation import cross_matrix, vector_from_matrix
from fast3r_ros.mapping.data import SIMULTANEOUS_NS, Float64, ViewEstimate
from fast3r_ros.ros.poses import UNKNOWN_TWIST, odometry_message
from fast3r_ros.ros.times import NS

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

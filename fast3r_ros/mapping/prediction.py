"""Poses between windows: of frames that no window has seen yet."""

from __future__ import annotations

import numpy as np

from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.geometry.rotation import matrix_from_vector, vector_from_matrix
from fast3r_ros.mapping.data import Float64, PoseEstimate
from fast3r_ros.mapping.map import Keyframe

_ODOMETRY_ERROR = 0.02  # of the way


def pose_of(keyframe: Keyframe) -> PoseEstimate:
    """The pose of a keyframe, as the map has it."""
    return PoseEstimate(
        keyframe.stamp_ns, keyframe.camera, keyframe.map_from_camera, keyframe.covariance, extrapolated=False
    )


def extrapolate(before: PoseEstimate, last: PoseEstimate, stamp_ns: int) -> PoseEstimate:
    """Constant velocity beyond `last`, at most as far again as from `before`; the uncertainty grows with
    the way.
    """
    share = min(1.0, (stamp_ns - last.stamp_ns) / (last.stamp_ns - before.stamp_ns))
    step = inverse(before.map_from_camera) @ last.map_from_camera
    ahead = np.eye(4)
    ahead[:3, :3] = matrix_from_vector(share * vector_from_matrix(step[:3, :3]))
    ahead[:3, 3] = share * step[:3, 3]
    return _moved(last, ahead, stamp_ns, error=1.0)


def follow_odometry(last: PoseEstimate, camera_from_camera: Float64, stamp_ns: int) -> PoseEstimate:
    """`last` moved by the odometry since then, (4, 4) from the new to the last camera in map units."""
    return _moved(last, camera_from_camera, stamp_ns, error=_ODOMETRY_ERROR)


def _moved(last: PoseEstimate, step: Float64, stamp_ns: int, error: float) -> PoseEstimate:
    spread = np.zeros(6)
    spread[:3] = error * np.linalg.norm(step[:3, 3])
    spread[3:] = error * np.linalg.norm(vector_from_matrix(step[:3, :3]))
    covariance = last.covariance + np.diag(spread**2)
    return PoseEstimate(stamp_ns, last.camera, last.map_from_camera @ step, covariance, extrapolated=True)

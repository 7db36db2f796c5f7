"""Predicted poses of frames that are not in any window yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.geometry.rotation import matrix_from_vector, vector_from_matrix
from fast3r_ros.mapping.data import Float64, Frame, PoseEstimate
from fast3r_ros.mapping.map import Keyframe

_ODOMETRY_ERROR = 0.02  # of the path length


def pose_of(keyframe: Keyframe) -> PoseEstimate:
    """The pose of a keyframe in the map."""
    return PoseEstimate(
        keyframe.stamp_ns,
        keyframe.camera,
        keyframe.map_from_camera,
        keyframe.covariance,
        extrapolated=False,
        base_from_camera=keyframe.base_from_camera,
    )


def predict(recent: Sequence[Keyframe], step: Float64 | None, frame: Frame) -> PoseEstimate:
    """The predicted pose of a frame: by odometry, else by constant velocity, else the last one.

    recent: the newest keyframes in time order.  step: from `odometry_step`, if the map is in metres.
    """
    last = pose_of(recent[-1])
    if step is not None:
        moved = _moved(last, step, frame.stamp_ns, _ODOMETRY_ERROR)
        return replace(moved, camera=frame.camera, base_from_camera=frame.base_from_camera)
    if len(recent) < 2 or recent[-2].camera != last.camera:
        return last
    return _extrapolated(pose_of(recent[-2]), last, frame.stamp_ns)


def _extrapolated(before: PoseEstimate, last: PoseEstimate, stamp_ns: int) -> PoseEstimate:
    """Constant velocity beyond `last`, at most as far as from `before`; uncertainty grows with distance."""
    share = min(1.0, (stamp_ns - last.stamp_ns) / (last.stamp_ns - before.stamp_ns))
    step = inverse(before.map_from_camera) @ last.map_from_camera
    ahead = np.eye(4)
    ahead[:3, :3] = matrix_from_vector(share * vector_from_matrix(step[:3, :3]))
    ahead[:3, 3] = share * step[:3, 3]
    return _moved(last, ahead, stamp_ns, error=1.0)


def _moved(last: PoseEstimate, step: Float64, stamp_ns: int, error: float) -> PoseEstimate:
    spread = np.zeros(6)
    spread[:3] = error * np.linalg.norm(step[:3, 3])
    spread[3:] = error * np.linalg.norm(vector_from_matrix(step[:3, :3]))
    covariance = last.covariance + np.diag(spread**2)
    moved = last.map_from_camera @ step
    return replace(last, stamp_ns=stamp_ns, map_from_camera=moved, covariance=covariance, extrapolated=True)

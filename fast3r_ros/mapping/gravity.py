"""Which way is up: from the tilt of the robot's base in odometry (REP-103: z up in odometry and map)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fast3r_ros.geometry.axes import BODY_FROM_OPTICAL
from fast3r_ros.geometry.rotation import matrix_from_vector
from fast3r_ros.mapping.data import Float64
from fast3r_ros.mapping.map import Keyframe
from fast3r_ros.mapping.odometry import OdometryBuffer


def extrinsics(base_from_camera: Mapping[str, Float64], camera: str) -> Float64:
    """`base_from_camera` (4, 4); a camera that is not listed looks ahead, level, from the base's origin."""
    return base_from_camera.get(camera, BODY_FROM_OPTICAL)


def tilt_only(odom_from_base: Float64) -> Float64:
    """(3, 3) rotation of the base with the heading taken out: x forward, level, z up."""
    forward = odom_from_base[:3, 0]
    heading = np.arctan2(forward[1], forward[0])
    return np.asarray(matrix_from_vector([0.0, 0.0, -heading]) @ odom_from_base[:3, :3])


def level_origin(
    map_from_base: Float64 | None, odom_from_base: Float64 | None, base_from_camera: Float64
) -> Float64:
    """The pose (4, 4) of an empty map's first camera: at the origin, with the attitude of the base.

    That is the given one, else the tilt in odometry, else level.
    """
    pose = np.eye(4)
    if map_from_base is not None:
        pose[:3, :3] = map_from_base[:3, :3]
    elif odom_from_base is not None:
        pose[:3, :3] = tilt_only(odom_from_base)
    pose[:3, :3] = pose[:3, :3] @ base_from_camera[:3, :3]
    return pose


def leveling(
    keyframes: Sequence[Keyframe], odometry: OdometryBuffer, base_from_camera: Mapping[str, Float64]
) -> Float64:
    """(3, 3) rotation that makes the map's z the vertical of odometry, averaged over the keyframes.

    The identity when odometry knows none of them.
    """
    up = np.zeros(3)
    for keyframe in keyframes:
        odom_from_base = odometry.at(keyframe.stamp_ns)
        if odom_from_base is not None:
            odom_from_camera = odom_from_base @ extrinsics(base_from_camera, keyframe.camera)
            up += keyframe.map_from_local.rotation @ odom_from_camera[2, :3]
    length = float(np.linalg.norm(up))
    if length == 0:
        return np.eye(3)
    axis = np.cross(up / length, [0.0, 0.0, 1.0])
    sine = float(np.linalg.norm(axis))
    angle = np.arctan2(sine, up[2] / length)
    return np.asarray(matrix_from_vector(axis / sine * angle)) if sine > 1e-9 else np.eye(3)

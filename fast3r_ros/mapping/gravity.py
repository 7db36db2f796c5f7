"""The vertical and the origin of the map, from the robot's base (REP-103: z up in base and map)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from fast3r_ros.geometry.rigid import BODY_FROM_OPTICAL, inverse
from fast3r_ros.geometry.rotation import matrix_from_vector
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.data import Float64, Keyframe
from fast3r_ros.mapping.inbox import OdometryBuffer


class Mounted(Protocol):
    """An image that may know its camera's pose on the robot: a frame, view or keyframe."""

    @property
    def camera(self) -> str:
        """The name of the camera."""
        ...

    @property
    def stamp_ns(self) -> int:
        """The stamp of the image."""
        ...

    @property
    def base_from_camera(self) -> Float64 | None:
        """(4, 4) metres at the image's stamp, None if unknown."""
        ...


def known_extrinsics(base_from_camera: Mapping[str, Float64], seen: Mounted) -> Float64 | None:
    """`base_from_camera` (4, 4) at an image's stamp, else the camera's default, None if unknown."""
    return base_from_camera.get(seen.camera) if seen.base_from_camera is None else seen.base_from_camera


def extrinsics(base_from_camera: Mapping[str, Float64], seen: Mounted) -> Float64:
    """Like `known_extrinsics`; an unknown camera looks ahead, level, from the base."""
    known = known_extrinsics(base_from_camera, seen)
    return BODY_FROM_OPTICAL if known is None else known


def tilt_only(odom_from_base: Float64) -> Float64:
    """(3, 3) rotation of the base without its heading: x forward, level, z up."""
    turn = matrix_from_vector([0.0, 0.0, -_heading(odom_from_base)])
    return np.asarray(turn @ odom_from_base[:3, :3])


def level_origin(
    map_from_base: Float64 | None, odom_from_base: Float64 | None, base_from_camera: Float64
) -> Float64:
    """The pose (4, 4) of an empty map's first camera: at the origin, with the attitude of the base.

    The attitude is the given one, else the tilt from odometry, else level.
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
    """(3, 3) rotation from the map's z to odometry's vertical, averaged over the keyframes.

    Without odometry the base, if known, is assumed level on average; the identity without both.
    """
    by_odometry, by_base = np.zeros(3), np.zeros(3)
    for keyframe in keyframes:
        odom_from_base = odometry.at(keyframe.stamp_ns)
        rotation = keyframe.map_from_local.rotation
        if odom_from_base is not None:
            odom_from_camera = odom_from_base @ extrinsics(base_from_camera, keyframe)
            by_odometry += rotation @ odom_from_camera[2, :3]
        base = known_extrinsics(base_from_camera, keyframe)
        if base is not None:
            by_base += rotation @ base[2, :3]
    up = by_odometry if by_odometry.any() else by_base
    return rotation_to_vertical(up) if up.any() else np.eye(3)


def rotation_to_vertical(up: Float64) -> Float64:
    """(3, 3) smallest rotation from a vector (3,) to the z axis."""
    unit = up / np.linalg.norm(up)
    axis = np.cross(unit, [0.0, 0.0, 1.0])
    sine = float(np.linalg.norm(axis))
    angle = np.arctan2(sine, unit[2])
    return np.asarray(matrix_from_vector(axis / sine * angle)) if sine > 1e-9 else np.eye(3)


def at_first_base(
    change: Sim3,
    keyframes: Iterable[Keyframe],
    base_from_camera: Mapping[str, Float64],
    map_from_first_base: Float64 | None,
) -> Sim3:
    """A change of the map to metres, extended so that the base's first known pose becomes the map's origin.

    keyframes: in time order.  map_from_first_base: (4, 4) pose to use instead of the origin; its tilt is
    ignored.  Returns the unchanged transform when no keyframe knows the base.
    """
    for keyframe in keyframes:
        known = known_extrinsics(base_from_camera, keyframe)
        if known is None:
            continue
        now = change.move_camera(keyframe.map_from_camera) @ inverse(known)
        wanted = np.eye(4) if map_from_first_base is None else map_from_first_base
        turn = matrix_from_vector([0.0, 0.0, _heading(wanted) - _heading(now)])
        return Sim3(1.0, turn, wanted[:3, 3] - turn @ now[:3, 3]) @ change
    return change


def _heading(map_from_base: Float64) -> float:
    return float(np.arctan2(map_from_base[1, 0], map_from_base[0, 0]))

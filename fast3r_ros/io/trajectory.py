"""Trajectories in the TUM RGB-D format, which other tools (such as evo) read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from fast3r_ros.errors import UserError
from fast3r_ros.io.files import whole_file
from fast3r_ros.mapping.data import Float64, PoseEstimate


def write_trajectory(path: str | Path, poses: Sequence[PoseEstimate] | Mapping[int, Float64]) -> None:
    """Write poses as lines `stamp tx ty tz qx qy qz qw`, in the given order.

    poses: estimates, or stamp in ns -> (4, 4) `map_from_camera`.  The stamp is written in seconds with all
    nine decimals; the pose is that of the camera's optical frame in the map.  Raises UserError when the file
    cannot be written.
    """
    if not isinstance(poses, Mapping):
        poses = {pose.stamp_ns: pose.map_from_camera for pose in poses}
    with whole_file(path) as temporary, temporary.open("w", encoding="ascii") as file:
        for stamp_ns, map_from_camera in poses.items():
            quaternion = Rotation.from_matrix(map_from_camera[:3, :3]).as_quat()
            numbers = " ".join(f"{value:.9f}" for value in (*map_from_camera[:3, 3], *quaternion))
            file.write(f"{stamp_ns // 10**9}.{stamp_ns % 10**9:09d} {numbers}\n")


def read_trajectory(path: str | Path) -> dict[int, Float64]:
    """Read a TUM trajectory: stamp in ns -> (4, 4) pose.  Raises UserError when a line is none."""
    poses: dict[int, Float64] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            stamp, *values = line.split()
            tx, ty, tz, qx, qy, qz, qw = map(float, values)
            pose = np.eye(4)
            pose[:3, :3] = Rotation.from_quat([qx, qy, qz, qw]).as_matrix()
        except ValueError as error:
            raise UserError(f"{path}, line {number}: expected 'stamp tx ty tz qx qy qz qw'") from error
        pose[:3, 3] = tx, ty, tz
        seconds, _, decimals = stamp.partition(".")
        poses[int(seconds) * 10**9 + int(decimals.ljust(9, "0")[:9] or 0)] = pose
    return poses

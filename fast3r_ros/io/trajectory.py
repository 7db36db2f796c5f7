"""Trajectories in the TUM RGB-D format, which other tools (such as evo) read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from scipy.spatial.transform import Rotation

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

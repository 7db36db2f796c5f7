"""Trajectories in the TUM RGB-D format, which other tools (such as evo) read, and their error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from fast3r_ros.errors import UserError
from fast3r_ros.files import whole_file
from fast3r_ros.mapping.data import Float64, PoseEstimate
from fast3r_ros.metrics.trajectory import trajectory_scores


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


def trajectory_error(
    trajectory: Sequence[PoseEstimate], truth: Mapping[int, Float64] | None
) -> dict[str, float] | None:
    """RMSE of the positions after one similarity, in the ground truth's unit and as a share of its path.

    `standing_still` is the static baseline: the RMSE of a camera at the centre of the ground truth.  None
    without ground truth, with fewer than three poses, and where the camera only rotates, which leaves no
    scale.
    """
    known = [pose for pose in trajectory if truth and pose.stamp_ns in truth]
    if not truth or len(known) < 3:
        return None
    poses = np.stack([truth[pose.stamp_ns] for pose in known])
    try:
        scores = trajectory_scores(np.stack([pose.map_from_camera for pose in known]), poses)
    except UserError:
        return None
    if np.isnan(scores.scale):
        return None
    standing_still = float(np.sqrt(np.var(poses[:, :3, 3], axis=0).sum()))
    return {
        "rmse": round(scores.ate, 5),
        "path": round(scores.path, 3),
        "share_of_path": round(scores.ate / scores.path, 5),
        "standing_still": round(standing_still, 5),
    }

"""Files of cameras and poses: cameras.json with every view's intrinsics and pose, and trajectories."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from fast3r_ros.errors import UserError
from fast3r_ros.files import whole_file
from fast3r_ros.mapping.data import Cloud, Float64, PoseEstimate
from fast3r_ros.metrics.trajectory import trajectory_scores

FORMAT = "fast3r_ros cameras 1"


@dataclass(frozen=True)
class SourceImage:
    """The original image of a view, upright and without lens distortion, as the mapper received it.

    name: the file, or the number of a video's frame or a bag's message.  width, height: in pixels.
    network_from_image: (3, 3) from its pixels to those at network size, centres at integer + 0.5 in both.
    """

    name: str
    width: int
    height: int
    network_from_image: Float64


@dataclass(frozen=True)
class CameraRecord:
    """A view with its pose, without its pixels.

    name: file name of its pictures without suffix.  width, height: of the image at network size, in pixels.
    intrinsics: (3, 3) for those pixels, centres at integer + 0.5.  map_from_camera: (4, 4) rigid.  source:
    the original image, if known.
    """

    name: str
    stamp_ns: int
    camera: str
    width: int
    height: int
    intrinsics: Float64
    map_from_camera: Float64
    source: SourceImage | None = None

    def of_source(self) -> CameraRecord:
        """The view with the size and the intrinsics of its original image, if known."""
        if self.source is None:
            return self
        matrix = np.linalg.inv(self.source.network_from_image) @ self.intrinsics
        return replace(self, width=self.source.width, height=self.source.height, intrinsics=matrix)


def name_of(keyframe_id: int) -> str:
    """The name of a keyframe's pictures, without suffix."""
    return f"{keyframe_id:06d}"


def write_cameras(path: str | Path, records: Sequence[CameraRecord], *, unit: str) -> None:
    """Write the views' intrinsics and poses as JSON.

    unit: of the translations, "m" or "map units".  Raises UserError when it cannot be written.
    """
    content = {
        "format": FORMAT,
        "unit": unit,
        "axes": "camera: x right, y down, z forward; map: z up; pixel centres at integer + 0.5",
        "views": [
            {
                "name": record.name,
                "stamp_ns": record.stamp_ns,
                "camera": record.camera,
                "width": record.width,
                "height": record.height,
                "intrinsics": record.intrinsics.tolist(),
                "map_from_camera": record.map_from_camera.tolist(),
                **({} if record.source is None else {"source": _source_entry(record, record.source)}),
            }
            for record in records
        ],
    }
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _source_entry(record: CameraRecord, source: SourceImage) -> dict[str, Any]:
    """The original image with its own intrinsics, so that results refer to the photos."""
    return {
        "name": source.name,
        "width": source.width,
        "height": source.height,
        "intrinsics": record.of_source().intrinsics.tolist(),
        "network_from_image": source.network_from_image.tolist(),
    }


def _read_source(entry: Mapping[str, Any] | None) -> SourceImage | None:
    if entry is None:
        return None
    transform = np.array(entry["network_from_image"], np.float64).reshape(3, 3)
    return SourceImage(str(entry["name"]), int(entry["width"]), int(entry["height"]), transform)


def read_cameras(path: str | Path) -> tuple[list[CameraRecord], str]:
    """Read cameras.json: the views and the unit of length.  Raises UserError for any other file."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise UserError(f"{path} has the format {content['format']!r}, this version reads {FORMAT!r}")
        records = [
            CameraRecord(
                view["name"],
                int(view["stamp_ns"]),
                view["camera"],
                int(view["width"]),
                int(view["height"]),
                np.array(view["intrinsics"], np.float64).reshape(3, 3),
                np.array(view["map_from_camera"], np.float64).reshape(4, 4),
                _read_source(view.get("source")),
            )
            for view in content["views"]
        ]
        return records, str(content["unit"])
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a cameras.json of this package ({error})") from error


_EDGES = np.array([[0, 1], [0, 2], [0, 3], [0, 4], [1, 2], [2, 3], [3, 4], [4, 1]])


def frustum_segments(
    map_from_camera: Float64,
    intrinsics: Float64 | None = None,
    width: int = 4,
    height: int = 3,
    *,
    size: float = 1.0,
) -> Float64:
    """The eight edges of a camera's view pyramid, (8, 2, 3) in the map frame.

    intrinsics: (3, 3) for an image of width x height pixels; without them, a field of view of 60 degrees is
    drawn.  size: the depth of the image plane in map units.
    """
    if intrinsics is None:
        focal = width / 2 / np.tan(np.deg2rad(30.0))
        intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]], np.float64)
    rays = np.linalg.solve(intrinsics, corners.T).T * size
    points = np.vstack([np.zeros(3), rays]) @ map_from_camera[:3, :3].T + map_from_camera[:3, 3]
    return points[_EDGES]


def frustum_size(cloud: Cloud, records: Sequence[CameraRecord]) -> float:
    """Depth of a drawn frustum in map units: a fiftieth of the map's extent."""
    shown = cloud.points if len(cloud.points) else np.array([view.map_from_camera[:3, 3] for view in records])
    low, high = np.percentile(shown, (2, 98), axis=0)
    return max(float(np.linalg.norm(high - low)) / 50, 1e-3)


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

"""A recording for the rerun viewer (.rrd): the cloud, and the cameras with their images over time."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fast3r_ros.errors import UserError
from fast3r_ros.files import whole_file
from fast3r_ros.io.cameras import CameraRecord, frustum_size
from fast3r_ros.io.view_images import read_image
from fast3r_ros.mapping.data import Cloud

TIMELINE = "stamp"
_ESTIMATE = (228, 87, 46)
_JPEG_QUALITY = 85  # the recording is built in memory; PNG would be several times larger


def require_rerun() -> None:
    """Raises UserError when rerun is not installed: before a long run, not after it."""
    if importlib.util.find_spec("rerun") is None:
        raise UserError("an .rrd needs rerun, an optional package of several 100 MB: pip install rerun-sdk")


def write_rerun(
    path: str | Path, cloud: Cloud, records: Sequence[CameraRecord], images: Path | None = None
) -> None:
    """Write `map` (with `confidence`), `trajectory` and the cameras (`cameras/CAMERA`).

    records: in time order; a camera's pose, intrinsics and image are on the timeline `stamp` at the view's
    stamp.  images: folder of the views' `NAME.png`; a view without a file has no image.  Coordinates are in
    the map frame, z up.  Raises UserError when rerun is not installed or the file cannot be written.
    """
    require_rerun()
    import rerun  # optional, and slow to import

    recording = rerun.RecordingStream("fast3r_ros")
    # not `recording.save`, which writes in the background and does not report a full disk
    content = recording.binary_stream()
    recording.log("/", rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
    points = rerun.Points3D(cloud.points, colors=cloud.colors)
    recording.log("map", points, rerun.AnyValues(confidence=cloud.confidence), static=True)
    positions = np.array([record.map_from_camera[:3, 3] for record in records]).reshape(-1, 3)
    recording.log("trajectory", rerun.LineStrips3D([positions], colors=[_ESTIMATE]), static=True)
    depth = frustum_size(cloud, records) if records else 0.0
    for record in records:
        recording.set_time(TIMELINE, timestamp=np.datetime64(record.stamp_ns, "ns"))
        camera, pose = ["cameras", record.camera], record.map_from_camera
        recording.log(camera, rerun.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))
        lens = rerun.Pinhole(
            image_from_camera=record.intrinsics,
            resolution=(record.width, record.height),
            camera_xyz=rerun.ViewCoordinates.RDF,
            image_plane_distance=depth,
        )
        recording.log(camera, lens)
        picture = images / f"{record.name}.png" if images else None
        if picture is not None and picture.is_file():
            recording.log(camera, rerun.Image(read_image(picture)).compress(jpeg_quality=_JPEG_QUALITY))
    with whole_file(path) as temporary:
        temporary.write_bytes(content.read() or b"")

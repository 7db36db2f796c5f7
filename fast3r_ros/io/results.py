"""A folder that `fast3r reconstruct` wrote, or a single PLY, read back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fast3r_ros.errors import UserError
from fast3r_ros.io.cameras import CameraRecord, read_cameras
from fast3r_ros.io.ply import read_ply
from fast3r_ros.io.view_images import read_image
from fast3r_ros.mapping.data import Cloud, UInt8


@dataclass(frozen=True)
class Results:
    """cloud and cameras: in the map frame.  unit: of length.  images: name -> picture, those that exist."""

    cloud: Cloud
    cameras: list[CameraRecord]
    unit: str
    images: dict[str, UInt8]


def read_results(path: str | Path, *, with_images: bool = False) -> Results:
    """Read a folder of results or one PLY file.  Raises UserError when it is neither."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"no such file or folder: {path}; give a folder that reconstruct wrote, or a .ply")
    if path.is_file():
        return Results(read_ply(path), [], "map units", {})
    if not (path / "map.ply").is_file():
        raise UserError(f"{path} holds no map.ply; give a folder that fast3r reconstruct wrote")
    cloud = read_ply(path / "map.ply")
    cameras: list[CameraRecord] = []
    unit = "map units"
    if (path / "cameras.json").is_file():
        cameras, unit = read_cameras(path / "cameras.json")
    images = {}
    if with_images:
        files = {camera.name: path / "images" / f"{camera.name}.png" for camera in cameras}
        images = {name: read_image(file) for name, file in files.items() if file.is_file()}
    return Results(cloud, cameras, unit, images)

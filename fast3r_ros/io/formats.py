"""The file formats of a map: one table from a suffix to its writer and reader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fast3r_ros.errors import UserError
from fast3r_ros.io.cameras import CameraRecord, write_cameras, write_trajectory
from fast3r_ros.io.pcd import read_pcd, write_pcd
from fast3r_ros.io.ply import read_ply, write_ply
from fast3r_ros.io.rerun_file import write_rerun
from fast3r_ros.io.scenes import write_colmap
from fast3r_ros.io.view_images import read_image
from fast3r_ros.mapping.data import Cloud, UInt8


@dataclass(frozen=True)
class Results:
    """cloud and cameras: in the map frame.  unit: of length, "unknown" if the file does not contain it.

    images: folder of the views' `NAME.png`, None if there is none.  distorted: whether a COLMAP model's
    lenses have distortion, which the cameras ignore.  parts: number of unconnected parts of the map; this is
    the main one.  caveat: reason not to trust the map, from report.json; empty if there is none.
    """

    cloud: Cloud
    cameras: list[CameraRecord]
    unit: str
    images: Path | None = None
    distorted: bool = False
    parts: int = 1
    caveat: str = ""

    @property
    def left_out(self) -> str:
        """The omitted parts, as the end of a sentence; empty if there are none."""
        return f" (the main of {self.parts} unconnected parts)" if self.parts > 1 else ""

    def read_images(self) -> dict[str, UInt8]:
        """The existing pictures of views by name, (h, w, 3) RGB.  Raises UserError for a damaged one."""
        if self.images is None:
            return {}
        files = {camera.name: self.images / f"{camera.name}.png" for camera in self.cameras}
        return {name: read_image(file) for name, file in files.items() if file.is_file()}


@dataclass(frozen=True)
class Format:
    """write: of results to a path.  read: the cloud of a file, None for a format that is not read.

    cameras, points: whether a file needs at least one.  lenses: whether it can represent lens distortion, or
    has no use for it.
    """

    write: Callable[[Path, Results], None]
    read: Callable[[str | Path], Cloud] | None = None
    cameras: bool = False
    points: bool = False
    lenses: bool = True

    def check(self, path: Path, results: Results, name: object) -> None:
        """Raise UserError for results, called `name`, that a file at `path` cannot represent."""
        if self.cameras and not results.cameras:
            raise UserError(f"{name} has no cameras, which {path} needs; give a folder of results")
        if not self.lenses and results.distorted:
            raise UserError(
                f"{name} has lens distortion, which {path} cannot represent; undistort the images with "
                "COLMAP first (colmap image_undistorter)"
            )
        if self.points and not len(results.cloud.points):
            raise UserError(f"{name} has no points: an empty map is no glTF scene")


def _write_ply(path: Path, results: Results) -> None:
    axes = "" if results.unit == "unknown" else "; z up"  # a map of ours; another program's axes are unknown
    write_ply(path, results.cloud, comment=f"lengths in {results.unit}{axes}")


def _write_glb(path: Path, results: Results) -> None:
    from fast3r_ros.io.glb import write_glb  # through a package that a robot may lack

    write_glb(path, results.cloud, results.cameras)


def _read_glb(path: str | Path) -> Cloud:
    from fast3r_ros.io.glb import read_glb

    return read_glb(path)


def _write_colmap(path: Path, results: Results) -> None:
    names = {}  # of a foreign model's images; our images at network size have their views' names
    for camera in results.cameras:
        if camera.source is not None and np.array_equal(camera.source.network_from_image, np.eye(3)):
            names[camera.name] = camera.source.name
    write_colmap(path, results.cloud, results.cameras, names)


def _write_trajectory(path: Path, results: Results) -> None:
    write_trajectory(path, {camera.stamp_ns: camera.map_from_camera for camera in results.cameras})


FORMATS = {
    ".ply": Format(_write_ply, read_ply),
    ".pcd": Format(lambda path, results: write_pcd(path, results.cloud), read_pcd),
    ".glb": Format(_write_glb, _read_glb, points=True),
    ".txt": Format(_write_trajectory, cameras=True),
    ".json": Format(
        lambda path, results: write_cameras(path, results.cameras, unit=results.unit),
        cameras=True,
        lenses=False,
    ),
    ".rrd": Format(lambda path, results: write_rerun(path, results.cloud, results.cameras, results.images)),
    "": Format(_write_colmap, cameras=True, lenses=False),  # a folder
}
CLOUDS = tuple(suffix for suffix, form in FORMATS.items() if form.read)


def save(path: Path, results: Results) -> None:
    """Write results in the format of the path's suffix, one of FORMATS.

    Raises UserError when the file cannot be written.
    """
    FORMATS[path.suffix.lower()].write(path, results)


def read_cloud(path: Path) -> Cloud:
    """The cloud of a file whose suffix is one of CLOUDS.  Raises UserError for an unusable file."""
    read = FORMATS[path.suffix.lower()].read
    assert read is not None
    return read(path)

"""`fast3r convert`: convert a result to another format."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fast3r_ros.errors import UserError

if TYPE_CHECKING:
    from fast3r_ros.io.results import Results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sub-command's arguments."""
    parser.add_argument(
        "input",
        type=Path,
        help="folder that reconstruct wrote, a .ply, .pcd or .glb, or a folder with a COLMAP model",
    )
    parser.add_argument(
        "output",
        type=Path,
        help="a .ply, .pcd, .glb, .txt (trajectory), .json (cameras) or .rrd (rerun) file; a name without "
        "suffix is a folder for COLMAP",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")


def run(arguments: argparse.Namespace) -> int:
    """Convert and report what was written."""
    from fast3r_ros.io.results import read_results

    output, suffix = arguments.output, arguments.output.suffix.lower()
    writers = _writers()
    if suffix not in writers:
        known = ", ".join(filter(None, writers))
        raise UserError(f"{output}: unknown format {suffix}; use {known}, or no suffix for COLMAP")
    if not arguments.overwrite and _exists(output):
        raise UserError(f"{output} exists; choose another name, or replace it with --overwrite")
    if output.resolve() == arguments.input.resolve():
        raise UserError(f"{output} is the input; choose another name")
    results = read_results(arguments.input)
    if suffix in ("", ".txt", ".json") and not results.cameras:
        raise UserError(f"{arguments.input} has no cameras, which {output} needs; give a folder of results")
    if suffix in ("", ".json") and results.distorted:
        raise UserError(
            f"{arguments.input} has lens distortion, which {output} cannot represent; undistort the images "
            "with COLMAP first (colmap image_undistorter)"
        )
    if suffix == ".glb" and not len(results.cloud.points):
        raise UserError(f"{arguments.input} has no points: an empty map is no glTF scene")
    writers[suffix](output, results)
    counts = f"{len(results.cloud.points):,} points, {len(results.cameras)} cameras"
    print(f"{counts}{results.left_out} -> {output}")
    return 0


def _exists(output: Path) -> bool:
    """Whether writing would replace something: a file, or a COLMAP model of a folder."""
    if output.suffix or not output.is_dir():
        return output.exists() or output.is_symlink()
    return any((output / f"{name}.txt").exists() for name in ("cameras", "images", "points3D"))


def _writers() -> dict[str, Callable[[Path, Results], None]]:
    """Suffix -> writer."""
    import numpy as np

    from fast3r_ros.io.cameras import write_cameras, write_trajectory
    from fast3r_ros.io.glb import write_glb
    from fast3r_ros.io.pcd import write_pcd
    from fast3r_ros.io.ply import write_ply
    from fast3r_ros.io.rerun_file import write_rerun
    from fast3r_ros.io.scenes import write_colmap

    def trajectory(path: Path, results: Results) -> None:
        write_trajectory(path, {camera.stamp_ns: camera.map_from_camera for camera in results.cameras})

    def colmap(path: Path, results: Results) -> None:
        names = {}  # of a foreign model's images; our images at network size have their views' names
        for camera in results.cameras:
            if camera.source is not None and np.array_equal(camera.source.network_from_image, np.eye(3)):
                names[camera.name] = camera.source.name
        write_colmap(path, results.cloud, results.cameras, names)

    return {
        "": colmap,
        ".ply": lambda path, results: write_ply(path, results.cloud, comment=f"lengths in {results.unit}"),
        ".pcd": lambda path, results: write_pcd(path, results.cloud),
        ".glb": lambda path, results: write_glb(path, results.cloud, results.cameras),
        ".txt": trajectory,
        ".json": lambda path, results: write_cameras(path, results.cameras, unit=results.unit),
        ".rrd": lambda path, results: write_rerun(path, results.cloud, results.cameras, results.images),
    }

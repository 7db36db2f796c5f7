"""`fast3r convert`: a result into another format."""

from __future__ import annotations

import argparse
from pathlib import Path

from fast3r_ros.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sub-command's arguments."""
    parser.add_argument("input", type=Path, help="folder that reconstruct wrote, or a .ply file")
    parser.add_argument(
        "output",
        type=Path,
        help="a .ply, .pcd, .glb or .txt (trajectory) file; a name without suffix is a folder for COLMAP",
    )


def run(arguments: argparse.Namespace) -> int:
    """Convert and say what was written."""
    from fast3r_ros.io.colmap import write_colmap
    from fast3r_ros.io.glb import write_glb
    from fast3r_ros.io.pcd import write_pcd
    from fast3r_ros.io.ply import write_ply
    from fast3r_ros.io.results import read_results
    from fast3r_ros.io.trajectory import write_trajectory

    results = read_results(arguments.input)
    output, suffix = arguments.output, arguments.output.suffix.lower()
    if suffix in ("", ".txt") and not results.cameras:
        raise UserError(f"{arguments.input} has no cameras, which {output} needs; give a folder of results")
    if not suffix:
        write_colmap(output, results.cloud, results.cameras)
    elif suffix == ".ply":
        write_ply(output, results.cloud, comment=f"lengths in {results.unit}; z up")
    elif suffix == ".pcd":
        write_pcd(output, results.cloud)
    elif suffix == ".glb":
        if not len(results.cloud.points):
            raise UserError(f"{arguments.input} has no points: an empty map is no glTF scene")
        write_glb(output, results.cloud, results.cameras)
    elif suffix == ".txt":
        write_trajectory(output, {camera.stamp_ns: camera.map_from_camera for camera in results.cameras})
    else:
        raise UserError(
            f"{output}: unknown format {suffix}; use .ply, .pcd, .glb, .txt or no suffix (COLMAP)"
        )
    print(f"{len(results.cloud.points):,} points, {len(results.cameras)} cameras -> {output}")
    return 0

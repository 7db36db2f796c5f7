"""`fast3r convert`: convert a result to another format."""

from __future__ import annotations

import argparse
from pathlib import Path

from fast3r_ros.errors import UserError


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
    from fast3r_ros.io.formats import FORMATS, save
    from fast3r_ros.io.results import read_results

    output, suffix = arguments.output, arguments.output.suffix.lower()
    if suffix not in FORMATS:
        known = ", ".join(filter(None, FORMATS))
        raise UserError(f"{output}: unknown format {suffix}; use {known}, or no suffix for COLMAP")
    if not arguments.overwrite and _exists(output):
        raise UserError(f"{output} exists; choose another name, or replace it with --overwrite")
    if output.resolve() == arguments.input.resolve():
        raise UserError(f"{output} is the input; choose another name")
    results = read_results(arguments.input)
    FORMATS[suffix].check(output, results, arguments.input)
    save(output, results)
    counts = f"{len(results.cloud.points):,} points, {len(results.cameras)} cameras"
    print(f"{counts}{results.left_out} -> {output}")
    return 0


def _exists(output: Path) -> bool:
    """Whether writing would replace something: a file, or a COLMAP model of a folder."""
    if output.suffix or not output.is_dir():
        return output.exists() or output.is_symlink()
    return any((output / f"{name}.txt").exists() for name in ("cameras", "images", "points3D"))

"""The summary printed at the end of a reconstruction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def scale_that_is_missing(status: Mapping[str, Any]) -> str:
    """A sentence when a requested scale was not found and the map is in map units; otherwise empty.

    status: the fields of a `MapperStatus`.
    """
    if status["scale_source"] == "none" or status["metres"]:
        return ""
    sigma = status["scale_sigma"]
    known = (
        f"gives it only within {sigma:.0%}" if math.isfinite(sigma) else "gave too little data to measure it"
    )
    return f"no scale, lengths are map units: {status['scale_source']} {known}"


def print_summary(output: Path, report: dict[str, Any]) -> None:
    """Print a few lines about the results."""
    print(
        f"{report['frames']} frames, {report['keyframes']} keyframes, {report['windows']} windows, "
        f"{report['map_points']:,} points ({report['unit']})"
    )
    for skipped in report["frames_skipped"][:10]:
        name, reason = skipped["name"], skipped["reason"]
        print(f"skipped {reason}" if reason.startswith(name) else f"skipped {name}: {reason}")
    for what, counts in (
        ("frames that are no keyframe", report["mapper"]["dropped"]),
        ("windows rejected", report["windows_rejected"]),
    ):
        if counts:
            print(f"{what}: {', '.join(f'{reason} ({count})' for reason, count in counts.items())}")
    if repeated := report["mapper"]["repeated_passes"]:
        print(f"passes repeated in a safer precision because results were not finite: {repeated}")
    error = report["trajectory_error"]
    if error:
        share = f"{error['share_of_path']:.1%} of the path of {error['path']} m"
        print(f"trajectory error: {error['rmse']:.3f} m RMSE, {share}", end="")
        print(f" (static baseline {error['standing_still']:.3f} m)")
    sizes = list(report["submaps"].values())
    if len(sizes) > 1:
        print(
            f"the map has {len(sizes)} unconnected parts: map.ply and the other files describe the "
            f"main one ({sizes[0]} of {sum(sizes)} keyframes), map_submap_*.ply are the others"
        )
    missing = scale_that_is_missing(report["mapper"])
    if missing:
        print(missing)
    if not report["map_points"]:
        print("the map is empty: no window of this source could be reconstructed with this model")
    if report["stopped"]:
        print(f"partial result: {report['stopped']}")
    print(f"results in {output}: start with {output / 'preview.png'}")
    if report["caveat"]:
        print(report["caveat"])

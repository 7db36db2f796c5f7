"""The numbers that the demo prints and draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fast3r_ros.geometry.similarity import fit_similarity
from fast3r_ros.mapping.data import Float64
from fast3r_ros.msg import MappingStatus
from fast3r_ros.ros.demo_listener import DemoListener


@dataclass(frozen=True)
class TrajectoryError:
    """rmse: of the camera's positions after one similarity; length: of the true way; both in metres."""

    rmse: float
    length: float
    poses: int


def trajectory_error(estimate: Mapping[int, Float64], truth: Mapping[int, Float64]) -> TrajectoryError | None:
    """Compare positions of the stamps that both have; None when they are too few or lie on a line."""
    stamps = sorted(estimate.keys() & truth.keys())
    if len(stamps) < 3:
        return None
    estimated = np.array([estimate[stamp][:3, 3] for stamp in stamps])
    true = np.array([truth[stamp][:3, 3] for stamp in stamps])
    try:
        moved = fit_similarity(estimated, true).apply(estimated)
    except ValueError:
        return None
    length = float(np.linalg.norm(np.diff(true, axis=0), axis=1).sum())
    return TrajectoryError(float(np.sqrt(((moved - true) ** 2).sum(1).mean())), length, len(stamps))


def unit(status: MappingStatus) -> str:
    """The map's unit of length, for people."""
    return "m" if status.metres else "map units"


def numbers(listener: DemoListener, status: MappingStatus, sent: int) -> dict[str, str]:
    """The main numbers for the picture, as label -> text."""
    error = trajectory_error(listener.path, listener.truth)
    shown = {
        "frames used": f"{status.frames_used} of {sent}",
        "windows": f"{status.windows - status.windows_rejected} of {status.windows}",
        "map points": f"{status.map_points:,}",
        "image to result": f"{status.image_age:.1f} s",
    }
    if error is not None:
        shown["trajectory error"] = f"{error.rmse:.2f} m ({error.rmse / max(error.length, 1e-9):.1%})"
    return shown


def summary(listener: DemoListener, status: MappingStatus, sent: int) -> dict[str, str]:
    """What happened, as label -> line."""
    drops = ", ".join(f"{drop.count} {drop.reason}" for drop in status.drops if drop.count)
    stages = ", ".join(f"{each.stage} {each.seconds:.2f}" for each in status.latencies)
    lines = {
        "frames": f"{sent} played, {status.frames_received} received, {status.frames_used} used"
        + (f"; left out: {drops}" if drops else ""),
        "windows": f"{status.windows} (up to {status.window_size} views), {status.windows_rejected} rejected",
        "map": f"{status.map_points:,} points in {unit(status)}, {status.map_bytes / 1e6:.0f} MB",
        "published": ", ".join(
            f"{listener.at_input(topic)}/{len(listener.published[topic])} {name}"
            for topic, name in (
                ("cloud", "clouds"),
                ("confidence", "confidence images"),
                ("tf", "transforms"),
            )
        )
        + " at an input image's stamp and size",
        "trajectory": _trajectory_line(listener),
        "latency": f"image to result {status.image_age:.2f} s, callbacks {1e3 * status.callback_p99:.1f} ms "
        f"(99th percentile); newest window in s: {stages}",
    }
    if status.last_error:
        lines["last error"] = status.last_error
    return lines


def _trajectory_line(listener: DemoListener) -> str:
    poses = f"{len(listener.path)} poses"
    if not listener.truth:
        return f"{poses}; the source has no ground truth"
    error = trajectory_error(listener.path, listener.truth)
    if error is None:
        return f"{poses}; too few to compare with the truth"
    share = error.rmse / max(error.length, 1e-9)
    return f"{poses}; {error.rmse:.3f} m RMSE over {error.length:.1f} m after one similarity ({share:.1%})"

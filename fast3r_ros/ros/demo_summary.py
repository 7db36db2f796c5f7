"""The numbers for the demo's output and preview."""

from __future__ import annotations

from fast3r_ros.io.trajectory import trajectory_error
from fast3r_ros.msg import MappingStatus
from fast3r_ros.ros.demo_listener import DemoListener


def unit(status: MappingStatus) -> str:
    """The map's unit of length, human-readable."""
    return "m" if status.metres else "map units"


def parts(listener: DemoListener, status: MappingStatus) -> list[int]:
    """Number of keyframes of the main (published) submap, and of the others together, as one part."""
    main = len(listener.path)
    return [main, max(0, status.frames_used - main)] if status.submaps > 1 else [main]


def numbers(listener: DemoListener, status: MappingStatus, sent: int) -> dict[str, str]:
    """The main numbers for the preview, as label -> text."""
    error = trajectory_error(listener.trajectory(), listener.truth)
    shown = {
        "frames used": f"{status.frames_used} of {sent}",
        "windows": f"{status.windows - status.windows_rejected} of {status.windows}",
        "map points": f"{status.map_points:,}",
        "image to result": f"{status.image_age:.1f} s",
    }
    if error is not None:
        label = f"trajectory RMSE\n(static baseline {error['standing_still']:.2f} m)"
        shown[label] = f"{error['rmse']:.2f} m ({error['share_of_path']:.1%})"
    return shown


def summary(listener: DemoListener, status: MappingStatus, sent: int) -> dict[str, str]:
    """The summary, as label -> line."""
    drops = ", ".join(f"{drop.count} {drop.reason}" for drop in status.drops if drop.count)
    stages = ", ".join(f"{each.stage} {each.seconds:.2f}" for each in status.latencies)
    lines = {
        "frames": f"{sent} played, {status.frames_received} received, {status.frames_used} used"
        + (f"; dropped: {drops}" if drops else ""),
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
    error = trajectory_error(listener.trajectory(), listener.truth)
    if error is None:
        return f"{poses}; too few to compare with the ground truth"
    rmse, path, share = error["rmse"], error["path"], error["share_of_path"]
    return f"{poses}; {rmse:.3f} m RMSE over {path:.1f} m after one similarity ({share:.1%})"

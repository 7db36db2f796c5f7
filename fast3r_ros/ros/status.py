"""Node status: one snapshot, as ~/status and as /diagnostics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from fast3r_ros.mapping.data import MapperStatus
from fast3r_ros.msg import MappingStatus
from fast3r_ros.ros.counters import LOST
from fast3r_ros.ros.messages import counts, latencies
from fast3r_ros.ros.pose_messages import stamp_from_ns

STATE_NAMES = {
    MappingStatus.UNCONFIGURED: "not configured",
    MappingStatus.INACTIVE: "configured, not active",
    MappingStatus.WAITING: "waiting for images",
    MappingStatus.MAPPING: "mapping",
    MappingStatus.LOCALIZING: "localising in the map without changing it",
    MappingStatus.PAUSED: "paused",
    MappingStatus.LOST: "lost: the newest windows do not fit the map",
    MappingStatus.ERROR: "error",
}


@dataclass(frozen=True)
class CameraReport:
    """One camera's input: topic, its publishers' names, seconds since the last image (None: never one).

    unheard: publishers whose images cannot be received because they publish best effort.  name: of the camera
    in a rig.  image: description of the first image, "" before.  others: published image topics, if this one
    has no publisher.  note: a remark on the subscription.
    """

    topic: str
    publishers: Sequence[str]
    silence: float | None
    reliable: bool
    calibrated: bool
    unheard: Sequence[str] = ()
    name: str = ""
    image: str = ""
    others: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True)
class Report:
    """The node at one moment.

    drops and problems: reason -> count, without the mapper's own drops.  parents: our frame -> another's.

    waiting_for: why a transform is not broadcast as intended, "" if it is; broadcast: the broadcast
    transforms.  held_back: why metric outputs are not published, "" if they are; no_grid: why there is no
    grid.  assumed, wrong_frames: see `waiting.Mounts`.  clock_difference: by how much the images' stamps are
    ahead of the node's clock, 0 if they may be equal.  Durations in seconds; callback times as in
    Counters.callback_times.  now_ns: the node's clock; stamp_ns: of the newest image used, or now.
    """

    now_ns: int
    stamp_ns: int
    state: int
    received: int = 0
    drops: Mapping[str, int] = field(default_factory=dict)
    problems: Mapping[str, int] = field(default_factory=dict)
    last_error: str = ""
    mapper: MapperStatus | None = None
    map_version: int = 0
    window_size: int = 0
    latencies: Mapping[str, float] = field(default_factory=dict)
    image_age: float = 0.0
    callback_p99: float = 0.0
    callback_max: float = 0.0
    device: str = ""
    accelerate: str = ""
    gpu_bytes: int = 0
    gpu_peak_bytes: int = 0
    cameras: Sequence[CameraReport] = ()
    timeout: float = 3.0
    parents: Mapping[str, str] = field(default_factory=dict)
    waiting_for: str = ""
    no_grid: str = ""
    assumed: Mapping[str, str] = field(default_factory=dict)
    wrong_frames: Mapping[str, str] = field(default_factory=dict)
    broadcast: str = ""
    held_back: str = ""
    clock_difference: float = 0.0


def status_message(report: Report, map_frame: str) -> MappingStatus:
    """The report as ~/status."""
    message = MappingStatus(state=report.state)
    message.header.stamp = stamp_from_ns(report.stamp_ns)
    message.header.frame_id = map_frame
    message.frames_received = report.received
    drops = Counter(report.drops) + Counter(report.mapper.dropped if report.mapper else {})
    message.drops = counts(drops)
    message.frames_dropped = sum(drops.values())
    message.problems = counts(report.problems)
    message.window_size = report.window_size
    message.latencies = latencies(report.latencies)
    message.image_age = report.image_age
    message.callback_p99, message.callback_max = report.callback_p99, report.callback_max
    message.device = report.device
    message.gpu_bytes, message.gpu_peak_bytes = report.gpu_bytes, report.gpu_peak_bytes
    message.last_error = report.last_error
    message.map_version = report.map_version
    message.scale_sigma = float("nan")
    if report.mapper is not None:
        _add_mapper(message, report.mapper)
    used_or_dropped = message.frames_used + message.frames_dropped
    message.frames_waiting = message.frames_received - used_or_dropped
    return message


def _add_mapper(message: MappingStatus, mapper: MapperStatus) -> None:
    message.frames_used = mapper.keyframes
    message.windows = mapper.windows + mapper.windows_rejected
    message.windows_rejected = mapper.windows_rejected
    message.metres, message.scale_source = mapper.metres, mapper.scale_source
    if math.isfinite(mapper.scale_sigma):
        message.scale_sigma = float(mapper.scale_sigma)
    message.map_points, message.map_bytes = mapper.map_points, mapper.map_bytes
    message.submaps, message.loops_closed = mapper.submaps, mapper.loops_closed
    if not message.last_error:
        message.last_error = mapper.last_error


def diagnostics_message(report: Report, node_name: str) -> DiagnosticArray:
    """The report as /diagnostics, with advice."""
    message = DiagnosticArray()
    message.header.stamp = stamp_from_ns(report.now_ns)  # monitors treat old messages as stale
    message.status = [
        _input_status(report, node_name),
        _mapping_status(report, node_name),
        _transform_status(report, node_name),
    ]
    return message


def _worst(sentences: Sequence[tuple[bytes, str]], good: str) -> tuple[bytes, str]:
    """The worst level, and all findings with the worst first."""
    if not sentences:
        return DiagnosticStatus.OK, good
    ordered = sorted(sentences, key=lambda found: found[0], reverse=True)
    return ordered[0][0], "; ".join(text for _, text in ordered)


def camera_finding(camera: CameraReport, timeout: float) -> tuple[bytes, str] | None:
    """Level and reason if a camera's images do not arrive; None if they do."""
    warn, error = DiagnosticStatus.WARN, DiagnosticStatus.ERROR
    topic, publishers = camera.topic, camera.publishers
    if not publishers:
        others = f"; images are published on {', '.join(camera.others)}" if camera.others else ""
        return error, f"{topic} has no publisher: start the camera or remap the topic{others}"
    if len(publishers) > 1:
        return error, f"{len(publishers)} publishers on {topic} ({', '.join(publishers)}): stop all but one"
    if camera.unheard:
        return error, f"{camera.unheard[0]} publishes {topic} best effort: {UNHEARD}"
    if camera.silence is None:
        return warn, f"no image yet on {topic}, published by {publishers[0]}"
    if camera.silence > timeout:
        return warn, f"no image for {camera.silence:.1f} s on {topic}"
    return None


def _input_status(report: Report, name: str) -> DiagnosticStatus:
    found: list[tuple[bytes, str]] = []
    warn = DiagnosticStatus.WARN
    running = report.state in (
        MappingStatus.WAITING,
        MappingStatus.MAPPING,
        MappingStatus.LOCALIZING,
        MappingStatus.LOST,
    )
    for camera in report.cameras if running else ():
        finding = camera_finding(camera, report.timeout)
        if finding is not None:
            found.append(finding)
    dropped = sum(report.drops.values())
    bad = {reason: count for reason, count in report.drops.items() if reason not in NORMAL_DROPS}
    if bad:
        words = ", ".join(f"{reason}: {count}" for reason, count in bad.items())
        found.append((warn, f"images dropped ({words}); last error: {report.last_error}"))
    bad_input = {reason: count for reason, count in report.problems.items() if reason != LOST}
    if bad_input:
        words = ", ".join(f"{reason}: {count}" for reason, count in bad_input.items())
        found.append((warn, f"invalid input ignored ({words})"))
    if LOST in report.problems:
        advice = "compress them, publish them reliable, or give the publisher config/fastdds.xml"
        found.append((warn, f"{report.problems[LOST]} {LOST}: {advice}"))
    level, text = _worst(found, f"{report.received} images received, {dropped} dropped")
    values: dict[str, object] = {"images received": report.received}
    values["callback p99 (ms)"] = f"{report.callback_p99 * 1e3:.2f}"
    values.update({f"dropped: {reason}": count for reason, count in report.drops.items()})
    values.update({f"problem: {reason}": count for reason, count in report.problems.items()})
    for camera in report.cameras:
        reliability = "reliable" if camera.reliable else "best effort"
        values[camera.topic] = f"{reliability}, {'calibrated' if camera.calibrated else 'not calibrated'}"
    return _status(f"{name}: input", level, text, values)


UNHEARD = "a reliable subscription receives nothing from it; set input.reliability to auto"
# drops in normal operation, not a fault of the input
NORMAL_DROPS = frozenset(["too slow: a newer image replaced it", "paused", "not active"])


def _mapping_status(report: Report, name: str) -> DiagnosticStatus:
    level, text = DiagnosticStatus.OK, STATE_NAMES[report.state]
    mapper = report.mapper
    values: dict[str, object] = {"state": text, "device": report.device, "accelerate": report.accelerate}
    if report.state == MappingStatus.ERROR:
        level, text = DiagnosticStatus.ERROR, report.last_error
    elif report.state == MappingStatus.LOST:
        level, text = DiagnosticStatus.WARN, f"{text}; go back to a mapped place, or call ~/reset"
    elif report.held_back:
        level, text = DiagnosticStatus.WARN, f"{text}; {report.held_back}"
    elif report.no_grid:
        level, text = DiagnosticStatus.WARN, f"{text}; no ~/grid: {report.no_grid}"
    elif mapper is not None and mapper.submaps > 1:
        apart = f"{mapper.submaps} unconnected parts; go back to a mapped place"
        text = f"{text}; {apart}; ~/map_cloud, ~/path and ~/grid show the main one until then"
        level = DiagnosticStatus.WARN
    elif mapper is not None and mapper.calibration:
        level, text = DiagnosticStatus.WARN, f"{text}; {mapper.calibration}"
    if mapper is not None:
        for camera, share in mapper.focal_differences.items():
            values[f"network's focal length, {camera}"] = f"{100 * share:+.1f} % of the calibration's"
        values.update(
            {
                "windows": mapper.windows,
                "windows rejected": mapper.windows_rejected,
                "passes repeated in a safer precision": mapper.repeated_passes,
                "map points": mapper.map_points,
                "unconnected parts": mapper.submaps,
                "map MB": f"{mapper.map_bytes / 1e6:.1f}",
                "scale": f"{mapper.scale_source}, {'metres' if mapper.metres else 'map units'}",
                "image age (s)": f"{report.image_age:.2f}",
            }
        )
    values.update({f"{stage} (ms)": f"{seconds * 1e3:.1f}" for stage, seconds in report.latencies.items()})
    return _status(f"{name}: mapping", level, text, values)


def clock(report: Report) -> str:
    """The clock of the transforms."""
    apart = report.clock_difference
    if not apart:
        return "this node's"
    return f"{abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} this node's, as with a recording"


def _transform_status(report: Report, name: str) -> DiagnosticStatus:
    found = [
        (
            DiagnosticStatus.ERROR,
            f"{child} already has the parent {parent}: stop that publisher or set tf_mode to none",
        )
        for child, parent in report.parents.items()
    ]
    if report.waiting_for:
        found.append((DiagnosticStatus.WARN, report.waiting_for))
    found += [(DiagnosticStatus.WARN, text) for text in report.wrong_frames.values()]
    if report.mapper is not None and report.mapper.scale_source == "odometry":
        found += [(DiagnosticStatus.WARN, text) for text in report.assumed.values()]
    level, text = _worst(found, report.broadcast or "nothing broadcast yet")
    values = {
        "broadcast": report.broadcast,
        "images' clock": clock(report),
        **report.assumed,
        **report.wrong_frames,
    }
    return _status(f"{name}: transforms", level, text, values)


def _status(name: str, level: bytes, text: str, values: Mapping[str, object]) -> DiagnosticStatus:
    pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return DiagnosticStatus(name=name, level=level, message=text, hardware_id="", values=pairs)

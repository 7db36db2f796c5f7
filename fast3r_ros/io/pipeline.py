"""Runs a whole source through the mapper and writes every result file into one folder."""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from fast3r_ros.demo_model import reconstruct_caveat
from fast3r_ros.errors import UserError
from fast3r_ros.io.cameras import trajectory_error, write_trajectory
from fast3r_ros.io.formats import Results, save
from fast3r_ros.io.mesh import write_mesh
from fast3r_ros.io.ply import write_ply
from fast3r_ros.io.preview import write_preview
from fast3r_ros.io.recorder import Recorder
from fast3r_ros.io.run_report import (
    PROGRAM,
    UNFINISHED,
    claim_folder,
    list_files,
    peak_memory,
    versions,
    write_report,
)
from fast3r_ros.io.scenes import FOLDER, LISTED, plan_photos, write_colmap, write_photos, write_transforms
from fast3r_ros.io.sources import Source
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import (
    Float64,
    Frame,
    MapperStatus,
    PoseEstimate,
    ViewEstimate,
    WindowResult,
)
from fast3r_ros.mapping.map import Map
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.mapping.one_pass import OnePass

# Names that a run may write, relative to its folder.
RESULTS = re.compile(
    r"map(_mesh)?\.(ply|pcd|glb)|map_submap_\d+\.ply|trajectory(_submap_\d+)?\.txt"
    r"|(cameras|transforms)\.json|preview\.png|report\.json"
    r"|(mapping|replay)_node\.log"  # of the demo
    r"|sparse/0/(cameras|images|points3D)\.txt|(images|depth|confidence)/\d{6,}\.(jpg|png)"
)
MAX_SCALE_SIGMA = 0.1  # relative; with a larger uncertainty at the end the map stays in map units
_LOOKAHEAD_NS = 200_000_000


def begin_results(directory: Path, sources: Sequence[Path] = ()) -> None:
    """Make the folder, remove an earlier run's results, and leave a report that says `complete: false`.

    A killed run then does not look finished.  sources: the files that are read.  Raises UserError when the
    folder is not writable, or when files of others would be replaced; see `claim_folder`.
    """
    claim_folder(directory, sources, RESULTS, LISTED)


@dataclass
class Progress:
    """Progress of a run, updated while frames arrive, so that a failed run can still be reported.

    stopped: why the run ended early, empty when it reached the end.  timings: seconds per stage.
    """

    frames: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    timings: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    stopped: str = ""


class Mapped(Protocol):
    """The source of results: a `Mapper` or a `OnePass`."""

    @property
    def map(self) -> Map:
        """The map so far."""
        ...

    def status(self) -> MapperStatus:
        """Counts since the start."""
        ...

    def trajectory(self, by_arrival: bool = False, submap: int | None = None) -> list[PoseEstimate]:
        """Every keyframe of a submap (None: the main one) with its latest pose, in time order."""
        ...


def with_odometry(
    frames: Iterable[Frame], odometry: Iterable[tuple[int, Float64]], mapper: Mapper | OnePass
) -> Iterator[Frame]:
    """The frames; before each frame the mapper gets the odometry up to shortly after it, to interpolate.

    odometry: stamp in ns and (4, 4) `odom_from_base` in metres, in time order.
    """
    poses = iter(odometry)
    waiting = next(poses, None)
    for frame in frames:
        while waiting is not None and waiting[0] <= frame.stamp_ns + _LOOKAHEAD_NS:
            mapper.add_odometry(*waiting)
            waiting = next(poses, None)
        yield frame


def noted(frames: Iterable[Frame], source: Source, recorder: Recorder) -> Iterator[Frame]:
    """The frames; the recorder notes each frame's name in the source, for cameras.json."""
    for frame in frames:
        recorder.note(frame, source.frame_name(frame.stamp_ns))
        yield frame


def map_source(
    frames: Iterable[Frame],
    mapper: Mapper,
    recorder: Recorder,
    progress: Progress,
    on_frame: Callable[[WindowResult | None], None],
) -> None:
    """Feed all frames to the mapper; no frame is dropped for arriving too fast.

    on_frame: called after every frame and at the end, with the window's result when one was processed.
    """
    started = time.perf_counter()
    for frame in frames:
        progress.timings["read"] += time.perf_counter() - started
        mapper.add_frame(frame)
        progress.frames += 1
        result = mapper.process_window() if mapper.window_ready() else None
        _note(result, mapper, recorder, progress)
        on_frame(result)
        started = time.perf_counter()
    mapper.set_config(_with_scale_as_known(mapper.config))
    result = mapper.finish()
    _note(result, mapper, recorder, progress)
    on_frame(result)


def map_at_once(
    frames: Iterable[Frame],
    one_pass: OnePass,
    recorder: Recorder,
    progress: Progress,
    on_frame: Callable[[WindowResult | None], None],
) -> None:
    """Feed all frames to one pass; its views are written a few at a time.  on_frame: as in `map_source`."""
    started = time.perf_counter()
    for frame in frames:
        progress.timings["read"] += time.perf_counter() - started
        one_pass.add_frame(frame)
        progress.frames += 1
        on_frame(None)
        started = time.perf_counter()
    one_pass.config = _with_scale_as_known(one_pass.config)
    for result in one_pass.process():
        _note(result, one_pass, recorder, progress)
        on_frame(result)


def _with_scale_as_known(config: MapperConfig) -> MapperConfig:
    """For the end of input: the scale is accepted at its present accuracy."""
    sigma = max(config.scale.accept_sigma, MAX_SCALE_SIGMA)
    return replace(config, scale=replace(config.scale, accept_sigma=sigma))


def _note(result: WindowResult | None, mapper: Mapped, recorder: Recorder, progress: Progress) -> None:
    if result is None:
        return
    for stage, seconds in result.timings.items():
        progress.timings[stage] += seconds
    if not result.accepted:
        progress.rejected[result.reason] += 1
    started = time.perf_counter()
    recorder.add(result.views, mapper.map.keyframes)
    progress.timings["write"] += time.perf_counter() - started


def write_results(
    directory: Path,
    source: Source,
    mapper: Mapped,
    recorder: Recorder,
    progress: Progress,
    settings: Mapping[str, Any],
    rerun_file: Path | None = None,
    *,
    colmap_images: str = "original",
    mesh: bool = False,
) -> dict[str, Any]:
    """Write every result file and return the report.

    The files describe the map's main submap.  The other submaps, whose pose and scale relative to it are
    unknown, get a cloud and a trajectory each.
    settings: the run's settings, for the report.  rerun_file: path of a recording for rerun, if wanted.
    colmap_images: the images of COLMAP's model and transforms.json, "original" (these are written, too) or
    "network" for network size.  mesh: also write a mesh.  Raises UserError when a file cannot be written,
    after writing the others: files that exist then are whole, and the report marks the result as partial.
    """
    started = time.perf_counter()
    status, trajectory, part = mapper.status(), mapper.trajectory(), mapper.map.part()
    parts = mapper.map.parts
    results = Results(
        mapper.map.cloud(),
        recorder.cameras(part),
        "m" if mapper.map.known_scale(mapper.map.main) else "map units",
        directory / "images",
        caveat=reconstruct_caveat(settings.get("model", ""), source.synthetic, source.name, directory),
    )
    outcome = _Outcome(
        results,
        trajectory,
        recorder.samples(part),
        trajectory_error(trajectory, source.truth),
        list(parts.values()),
        Path(source.name).name or source.name,
    )
    numbers = _numbers(progress, len(trajectory), status.windows, len(results.cloud.points), outcome.error)
    writers = _writers(directory, outcome, numbers, source.truth)
    writers += [partial(_write_submap, directory, mapper, submap) for submap in list(parts)[1:]]
    writers.append(lambda: recorder.finish(mapper.map.keyframes))
    photos = plan_photos(results.cameras, source, directory) if colmap_images == "original" else {}
    planned = [f"{FOLDER}/{name}" for name in photos.values()]
    writers.append(lambda: _write_training_views(directory, outcome, photos))
    if mesh:
        writers.append(lambda: write_mesh(directory, results.cameras))
    if rerun_file is not None:
        writers.append(partial(save, rerun_file, results))
    if photos:  # large, so the report lists them first, in case the run is killed while writing
        listed = {**UNFINISHED, "files": [*list_files(directory, RESULTS), *planned]}
        writers.append(lambda: write_report(directory / "report.json", listed))
        writers.append(lambda: write_photos(results.cameras, source, directory, photos))
    failure = _first_failure(writers)
    progress.stopped = progress.stopped or str(failure or "")
    progress.timings["write"] += time.perf_counter() - started
    report = {
        "program": PROGRAM,
        "complete": not progress.stopped,
        "stopped": progress.stopped,
        "source": source.name,
        "model": settings.get("model", ""),
        "caveat": results.caveat,
        "unit": results.unit,
        "frames": progress.frames,
        "frames_skipped": [asdict(skipped) for skipped in source.skipped],
        "keyframes": len(trajectory),
        "windows": status.windows,
        "windows_rejected": dict(progress.rejected),
        "map_points": len(results.cloud.points),
        "trajectory_error": outcome.error,
        "seconds": {name: round(seconds, 3) for name, seconds in progress.timings.items()},
        "peak_memory_mib": peak_memory(),
        "submaps": parts,
        "views": [
            {
                "name": view.name,
                "stamp_ns": view.stamp_ns,
                "source": view.source.name if view.source else "",
                "submap": submap,
            }
            for submap in parts
            for view in recorder.cameras(mapper.map.part(submap))
        ],
        "mapper": asdict(status),
        "settings": dict(settings),
        "versions": versions(),
        "files": [*list_files(directory, RESULTS), *sorted({*planned})],
    }
    unreported = _first_failure([lambda: write_report(directory / "report.json", report)])
    if failure or unreported:
        raise failure or unreported  # type: ignore[misc]
    return report


@dataclass(frozen=True)
class _Outcome:
    """The results for the main submap, in the map frame.

    error: see `trajectory_error`.  parts: keyframes of each submap, the main one's first.
    title: name of the source.
    """

    results: Results
    trajectory: list[PoseEstimate]
    samples: list[ViewEstimate]
    error: dict[str, float] | None
    parts: list[int]
    title: str


def _writers(
    directory: Path, outcome: _Outcome, numbers: Mapping[str, str], truth: Mapping[int, Float64] | None
) -> list[Callable[[], None]]:
    """The writers of the files, small files first: they may fit on a disk where a cloud does not."""
    results = outcome.results

    def draw() -> None:
        write_preview(
            directory / "preview.png",
            cloud=results.cloud,
            trajectory=outcome.trajectory,
            views=outcome.samples,
            numbers=numbers,
            title=outcome.title,
            truth=truth,
            unit=results.unit,
            parts=outcome.parts,
            caveat=results.caveat,
        )

    writers: list[Callable[[], None]] = [
        lambda: write_trajectory(directory / "trajectory.txt", outcome.trajectory),
        partial(save, directory / "cameras.json", results),
        draw,
        partial(save, directory / "map.ply", results),
        partial(save, directory / "map.pcd", results),
    ]
    if results.cameras:  # an empty scene is not a valid glTF file
        writers.append(partial(save, directory / "map.glb", results))
    return writers


def _write_submap(directory: Path, mapper: Mapped, submap: int) -> None:
    """Cloud and trajectory of a part that is not connected to the main one; pose and scale are unknown."""
    trajectory = mapper.trajectory(submap=submap)
    write_trajectory(directory / f"trajectory_submap_{submap}.txt", trajectory)
    comment = "a part that is not connected to map.ply: its pose and scale relative to it are unknown; z up"
    write_ply(directory / f"map_submap_{submap}.ply", mapper.map.cloud(submap), comment=comment)


def _write_training_views(directory: Path, outcome: _Outcome, photos: Mapping[str, str]) -> None:
    """COLMAP's model and transforms.json, for the photos if any, else for images at network size."""
    cameras = [each.of_source() for each in outcome.results.cameras] if photos else outcome.results.cameras
    names = {camera.name: photos.get(camera.name, f"{camera.name}.png") for camera in cameras}
    write_colmap(directory / "sparse" / "0", outcome.results.cloud, cameras, names)
    files = {view: f"{FOLDER}/{name}" for view, name in names.items()}
    write_transforms(directory / "transforms.json", cameras, files, "map.ply")


def _first_failure(writers: Iterable[Callable[[], None]]) -> UserError | None:
    """Run all writers; returns the first error."""
    failure = None
    for write in writers:
        try:
            write()
        except UserError as error:
            failure = failure or error
    return failure


def _numbers(
    progress: Progress, keyframes: int, windows: int, points: int, error: dict[str, float] | None
) -> dict[str, str]:
    """The main numbers for the preview."""
    numbers = {
        "frames": f"{progress.frames:,}",
        "keyframes": f"{keyframes:,}",
        "windows": f"{windows:,}",
        "map points": f"{points:,}",
    }
    network = progress.timings["encode"] + progress.timings["network"]
    if windows:
        numbers["network per window"] = f"{network / windows:.2f} s"
    if error:
        label = f"trajectory RMSE\n(static baseline {error['standing_still']:.2f} m)"
        numbers[label] = f"{error['rmse']:.3f} m"
    if progress.stopped:
        numbers["not all was mapped"] = "partial"
    return numbers

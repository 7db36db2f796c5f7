"""`benchmark mapping`: the mapper's guarantees, measured against synthetic ground truth.

Every scenario is a function of a seed that returns numbers; `run` repeats it with other seeds and summarises
medians and spread in one JSON-able dictionary.  The tests run the same scenarios, smaller, and check the
guarantees.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fast3r_ros.benchmark.measure import machine, summarised
from fast3r_ros.benchmark.synthetic_run import (
    SECOND_NS,
    SMALL,
    Run,
    fingerprint,
    laps,
    odometry_of,
    recorded_frames,
    start,
    the_loop,
)
from fast3r_ros.geometry.rigid import BODY_FROM_OPTICAL, rigid_matrix
from fast3r_ros.geometry.rotation import angle_between, matrix_from_vector
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.data import Frame
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.synthetic.oracle_network import REALISTIC, Disturbance
from fast3r_ros.synthetic.sequence import RecordedSequence, SyntheticSequence, loop_sequence

Float64 = NDArray[np.float64]

_OTHER_FOCAL = replace(REALISTIC, focal_error=0.02)
_NEW_MAP_WINDOWS, _NEW_MAP_FIRST = 15, 3  # the first few have little to register against


def loop_accuracy(
    loop: bool,
    seed: int = 0,
    size: tuple[int, int] = SMALL,
    background: bool = False,
    disturbance: Disturbance | None = None,
) -> dict[str, float]:
    """600 frames over a 60 m loop: 1 % depth error, half of it smooth, 5 % outliers, random scales.

    background: optimise in a thread like the node, so that runs differ slightly.
    disturbance: other errors of the network than these.
    """
    sequence, frames = the_loop(size=size, seed=seed)
    run = start(sequence, disturbance, seed, loop__enabled=loop, loop__background=background)
    return run.feed(frames).scores()


def recorded_path(
    sequence: RecordedSequence, disturbance: Disturbance | None, back: bool, loop: bool, seed: int = 0
) -> dict[str, float]:
    """The recorded frames once, or out and back over them."""
    out = list(range(len(sequence)))
    path = sequence.part(out + out[::-1] if back else out)
    return start(path, disturbance, seed, loop__enabled=loop).feed(path).scores()


def recorded_scenarios(sequence: RecordedSequence) -> dict[str, Callable[..., dict[str, Any]]]:
    """The scenarios of `--recorded`, without and with the errors of trained networks."""
    errors = {"": None, "trained_": REALISTIC, "trained_focal_": _OTHER_FOCAL}
    paths = {"out": (False, False), "out_and_back": (True, False), "out_and_back_with_closure": (True, True)}
    return {
        f"recorded_{kind}{path}": partial(recorded_path, sequence, disturbance, *paths[path])
        for kind, disturbance in errors.items()
        for path in paths
    }


def many_outliers(
    frames: int = 200, seed: int = 0, disturbance: Disturbance | None = None
) -> dict[str, float]:
    """30 % outlier pixels with full confidence."""
    sequence, all_frames = the_loop()
    outliers = replace(disturbance or Disturbance(), outliers=0.3, wrong_confidence=True)
    return start(sequence, outliers, seed).feed(all_frames[:frames]).scores()


def pure_noise(frames: int = 120, seed: int = 0, disturbance: Disturbance | None = None) -> dict[str, Any]:
    """One window of nonsense in the middle: it must be rejected and leave the map bit-identical."""
    sequence, all_frames = the_loop()
    run = start(sequence, disturbance, seed).feed(all_frames[:frames], finish=False)
    run.mapper.map.fuse_moved()
    before = fingerprint(run.mapper)
    good = run.network.disturbance
    run.network.disturbance = replace(good, pure_noise=True)
    rest = iter(all_frames[frames:])
    count = len(run.results)
    while len(run.results) == count:
        run.feed([next(rest)], finish=False)
    rejected = not run.results[-1].accepted
    unchanged = fingerprint(run.mapper) == before
    run.network.disturbance = good
    run.feed(list(rest)[:100])
    return {"refused": rejected, "unchanged": unchanged, "reason": run.results[count].reason, **run.scores()}


def disorder(seed: int = 0, frames: int = 400, disturbance: Disturbance | None = None) -> dict[str, float]:
    """Half of the frames missing, some twice, some late, and a pause of 60 s in the middle."""
    rng = np.random.default_rng(seed)
    sequence, all_frames = the_loop()
    half = frames // 2
    late = replace(
        sequence, world_from_camera=sequence.world_from_camera[half:], start_ns=_later(sequence, half, 60)
    )
    first = replace(sequence, world_from_camera=sequence.world_from_camera[:half])
    shifted = [replace(f, stamp_ns=late.stamp_ns(i)) for i, f in enumerate(all_frames[half:frames])]
    kept = [frame for frame in all_frames[:half] + shifted if rng.random() < 0.5]
    doubled = [frame for frame in kept for _ in range(1 + int(rng.random() < 0.2))]
    for i in rng.choice(len(doubled) - 1, len(doubled) // 10, replace=False):
        doubled[i], doubled[i + 1] = doubled[i + 1], doubled[i]
    return start([first, late], disturbance, seed).feed(doubled).scores()


def odometry_scale(
    noise: float = 0.01,
    slipping: float = 0.0,
    seed: int = 0,
    frames: int = 300,
    disturbance: Disturbance | None = None,
) -> dict[str, Any]:
    """Scale from odometry with noisy increments that are too long for a share of the path (wheel slip)."""
    sequence, all_frames = the_loop()
    run = start(sequence, disturbance, seed, scale__source="odometry")
    for stamp_ns, odom_from_base in odometry_of(sequence, noise, slipping, seed, frames):
        run.mapper.add_odometry(stamp_ns, odom_from_base)
    run.feed(all_frames[:frames])
    return _scale_report(run)


def standing_robot(
    seconds: int = 120, max_similarity: float = 1.0, seed: int = 0, disturbance: Disturbance | None = None
) -> dict[str, Any]:
    """A stationary robot whose odometry jitters by a millimetre: no scale can be measured.

    max_similarity: with 1, the same view becomes a keyframe repeatedly.
    """
    sequence, all_frames = the_loop()
    still = replace(
        sequence, world_from_camera=np.repeat(sequence.world_from_camera[:1], seconds, axis=0), rate=1.0
    )
    alike: dict[str, Any] = {"keyframes__max_interval": 1.0, "keyframes__max_similarity": max_similarity}
    run = start(still, disturbance, seed, scale__source="odometry", **alike)
    rng = np.random.default_rng(seed)
    for i in range(seconds):
        pose = np.eye(4)
        pose[:3, 3] = rng.normal(0, 0.001, 3)
        run.mapper.add_odometry(still.stamp_ns(i), pose)
    run.feed(replace(all_frames[0], stamp_ns=still.stamp_ns(i)) for i in range(seconds))
    status = run.mapper.status()
    counts = {"keyframes": status.keyframes, "windows": status.windows, "submaps": status.submaps}
    return {"metres": status.metres, "redundant": status.dropped.get("redundant", 0), **counts}


def rig_scale(
    baseline: float = 0.3, frames: int = 240, seed: int = 0, disturbance: Disturbance | None = None
) -> dict[str, Any]:
    """The scale from two cameras next to each other with synchronous images."""
    left, left_frames = the_loop()
    offset = np.eye(4)
    offset[0, 3] = baseline  # to the right, in the optical frame
    poses = (left.world_from_camera @ offset)[:frames]
    right = replace(left, world_from_camera=poses, camera="right_optical_frame")
    run = start([left, right], disturbance, seed, scale__source="rig")
    run.mapper.set_extrinsics(left.camera, BODY_FROM_OPTICAL)
    run.mapper.set_extrinsics(right.camera, BODY_FROM_OPTICAL @ offset)
    run.feed(frame for i in range(0, frames, 2) for frame in (left_frames[i], right[i]))
    return _scale_report(run)


def other_scale(
    source: str, frames: int = 200, seed: int = 0, disturbance: Disturbance | None = None
) -> dict[str, Any]:
    """The scale from metric depth images, the camera's height, or a fixed factor."""
    sequence, all_frames = the_loop()
    height = float(sequence.world_from_camera[:frames, 2, 3].mean())
    run = start(sequence, disturbance, seed, scale__source=source, scale__camera_height=height)
    return _scale_report(run.feed(all_frames[:frames]))


def lost_track(seed: int = 0, disturbance: Disturbance | None = None) -> dict[str, Any]:
    """10 s without features while the camera moves on, then the path back to the start."""
    sequence, frames = the_loop()
    blank = [replace(frame, image=np.full_like(frame.image, 128)) for frame in frames[150:250]]
    run = start(sequence, disturbance, seed)
    run.feed([*frames[:150], *blank, *frames[250:450]], finish=False)
    lost = run.mapper.status()
    again = replace(sequence, start_ns=_later(sequence, len(sequence), 0.1))
    run.network.add(again)
    run.sequences = [sequence, again]
    lap = [replace(frame, stamp_ns=again.stamp_ns(i)) for i, frame in enumerate(frames[:100])]
    run.feed([*frames[450:], *lap])
    return {
        "submaps_when_lost": lost.submaps,
        "submaps_at_the_end": run.mapper.status().submaps,
        **run.scores(),
    }


def localization(
    places: int = 20,
    seed: int = 3,
    frames: int = 300,
    directory: Path | None = None,
    disturbance: Disturbance | None = None,
) -> dict[str, Any]:
    """Single frames from random places near the mapped trajectory, localised in the saved and loaded map."""
    sequence, all_frames = the_loop()
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, frames, places)
    offset = rigid_matrix(
        matrix_from_vector(np.stack([0 * chosen, rng.uniform(-0.35, 0.35, places), 0 * chosen], 1)),
        rng.uniform(-0.25, 0.25, (places, 3)) * [1, 0.3, 1],
    )
    poses = sequence.world_from_camera[chosen] @ offset
    queries = replace(sequence, world_from_camera=poses, start_ns=_later(sequence, 0, 10_000))
    run = start([sequence, queries], disturbance, seed).feed(all_frames[:frames])
    world_from_map = run.world_from_map()
    with tempfile.TemporaryDirectory() as temporary:
        place = directory or Path(temporary) / "map"
        run.mapper.save_map(place)
        run.mapper.load_map(place)
    return localized(run.mapper, queries, world_from_map)


def localized(mapper: Mapper, queries: SyntheticSequence, world_from_map: Sim3) -> dict[str, Any]:
    """Number of `queries` localised within 5 cm and 2 degrees, and the errors of the localised ones."""
    position, angle = [], []
    for query, truth in zip(queries, queries.world_from_camera, strict=True):
        found = mapper.localize(query)
        if found is None:
            continue
        estimate = world_from_map.move_camera(found.map_from_camera)
        position.append(float(np.linalg.norm(estimate[:3, 3] - truth[:3, 3])))
        angle.append(float(np.rad2deg(angle_between(estimate[:3, :3], truth[:3, :3]))))
    good = sum(p < 0.05 and a < 2.0 for p, a in zip(position, angle, strict=True))
    worst = {"worst_position": max(position, default=np.nan), "worst_angle": max(angle, default=np.nan)}
    return {"places": len(queries), "good": good, "found": len(position), **worst}


def long_run(
    windows: int = 1000,
    memory_mb: float = 200.0,
    background: bool = True,
    seed: int = 0,
    disturbance: Disturbance | None = None,
) -> dict[str, Any]:
    """Many laps: the cost of a window outside of the network early and late, and the memory of the map.

    fastest_ratio: of the cheapest windows at the end to those of a new map that takes turns with this one.
    """
    sequence, frames = the_loop(size=(56, 40))

    def begin() -> tuple[Run, Iterator[Frame]]:
        run = start(sequence, disturbance, seed, map__memory_mb=memory_mb, loop__background=background)
        return run, laps(run, sequence, frames, 5)

    (run, walk), most = begin(), 0
    while len(run.results) < windows:
        run.feed([next(walk)], finish=False)
        most = max(most, run.mapper.status().map_bytes)
    cost = np.array(run.seconds)
    early, late = cost[windows // 20 : 3 * windows // 20], cost[9 * windows // 10 :]
    young, other_walk = begin()
    while len(young.results) < _NEW_MAP_WINDOWS:
        for each, its_frames in ((run, walk), (young, other_walk)):
            each.feed([next(its_frames)], finish=False)
        most = max(most, run.mapper.status().map_bytes)
    return {
        "windows": len(cost),
        "early_ms": 1e3 * float(np.median(early)),
        "late_ms": 1e3 * float(np.median(late)),
        "ratio": float(np.median(late) / np.median(early)),
        "fastest_ratio": min(run.seconds[len(cost) :][_NEW_MAP_FIRST:]) / min(young.seconds[_NEW_MAP_FIRST:]),
        "largest_map_mb": most / 2**20,
        "memory_mb": memory_mb,
        "rejected": sum(not result.accepted for result in run.results),
    }


def window_cost(
    windows: int = 10,
    size: tuple[int, int] = (224, 160),
    seed: int = 0,
    disturbance: Disturbance | None = None,
) -> dict[str, float]:
    """Milliseconds per stage of a window of 16 views, and of everything except the network."""
    sequence = loop_sequence(width=size[0], height=size[1])
    run = start(sequence, disturbance, seed)
    frame = 0
    while len(run.results) < windows:  # every third frame, to save rendering
        run.feed([sequence[frame]], finish=False)
        frame += 3
    full = run.results[4:]
    stages = {name for result in full for name in result.timings}
    wall = {
        f"{name}_wall_ms": 1e3 * float(np.median([r.timings.get(name, 0.0) for r in full])) for name in stages
    }
    seconds = run.seconds[4:]
    return {
        **wall,
        "registration_and_fusion_ms": 1e3 * float(np.median(seconds)),
        "registration_and_fusion_fastest_ms": 1e3 * min(seconds),
    }


_PROMISES: dict[str, Callable[..., dict[str, Any]]] = {
    "loop_without_closure": partial(loop_accuracy, False),
    "loop_with_closure": partial(loop_accuracy, True),
    "many_outliers": many_outliers,
    "pure_noise": pure_noise,
    "disorder": disorder,
    "odometry_scale": odometry_scale,
    "odometry_scale_slipping": partial(odometry_scale, slipping=1 / 3),
    "standing_robot": standing_robot,
    "rig_scale": rig_scale,
    "depth_scale": partial(other_scale, "depth"),
    "camera_height_scale": partial(other_scale, "camera_height", frames=260),
    "lost_track": lost_track,
    "localization": localization,
    "window_cost": window_cost,
    "long_run": long_run,
}

# every guarantee, without and with the errors of trained networks
SCENARIOS: dict[str, Callable[..., dict[str, Any]]] = {
    **_PROMISES,
    **{f"trained_{name}": partial(scenario, disturbance=REALISTIC) for name, scenario in _PROMISES.items()},
    "trained_loop_focal_error": partial(loop_accuracy, True, disturbance=_OTHER_FOCAL),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options: scenarios and number of runs."""
    parser.add_argument(
        "scenarios",
        nargs="*",
        choices=[[], *SCENARIOS],
        metavar="SCENARIO",
        help=f"of {', '.join(SCENARIOS)} (all)",
    )
    parser.add_argument(
        "--recorded",
        type=Path,
        metavar="FOLDER",
        help="also measure on this folder's recorded RGB-D (7-Scenes); only there unless scenarios are given",
    )
    parser.add_argument(
        "--runs", type=int, default=3, help="runs of each, with seeds from 0 (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """The scenarios as one JSON-able document."""
    known, names, scenarios = SCENARIOS, arguments.scenarios or list(SCENARIOS), {}
    if arguments.recorded is not None:
        recorded = recorded_scenarios(recorded_frames(arguments.recorded))
        known, names = {**SCENARIOS, **recorded}, [*arguments.scenarios, *recorded]
    for name in names:
        results = [_timed(known[name], seed) for seed in range(max(arguments.runs, 1))]
        scenarios[name] = summarised(results)
    return {"benchmark": "mapping", "machine": machine(torch.device("cpu")), "scenarios": scenarios}


def _timed(scenario: Callable[..., dict[str, Any]], seed: int) -> dict[str, Any]:
    """A scenario's result, and its processor time including the stand-in network."""
    start_time = time.process_time()
    return {**scenario(seed=seed), "processor_s": time.process_time() - start_time}


def _later(sequence: SyntheticSequence, frame: int, seconds: float) -> int:
    return sequence.stamp_ns(frame) + round(seconds * SECOND_NS)


def _scale_report(run: Run) -> dict[str, Any]:
    """Whether the map is metric, and its scale error against the ground truth."""
    status = run.mapper.status()
    error = 100 * abs(np.log(run.world_from_map().scale))
    return {
        "metres": status.metres,
        "scale_error_percent": float(error),
        "sigma": status.scale_sigma,
        **run.scores(),
    }

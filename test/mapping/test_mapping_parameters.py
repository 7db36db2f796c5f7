"""Every parameter of the mapper has an effect: another value gives another map of the same frames.

Values that may change at run time are set in a mapper that was made with the others.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import pytest

from fast3r_ros.benchmark.synthetic_run import Run, start, the_loop
from fast3r_ros.mapping.config import MapperConfig, flat_parameters
from fast3r_ros.mapping.data import Frame, Reconstruction
from fast3r_ros.synthetic.oracle_network import Disturbance
from fast3r_ros.synthetic.sequence import SyntheticSequence

pytestmark = pytest.mark.slow

PARAMETERS = dict(flat_parameters())
QUIET = {"loop.background": False}
LESS, MORE = operator.lt, operator.gt


@dataclass
class Outcome:
    """A run; of each pass its views, and the keyframes that were retrieved for it."""

    run: Run
    passes: list[int] = field(default_factory=list)
    retrieved: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """A different value, and the quantity that it increases or decreases, with other parameters and frames.

    world: steady, blurred (every third frame), noise (windows without sense), jump (from the middle on
    somewhere else), return (from the middle on the way back) or drift (odometry, which grows three percent
    longer from the middle on).
    """

    value: Any
    compare: Callable[[float, float], bool]
    observe: Callable[[Outcome], float]
    others: dict[str, Any] = field(default_factory=dict)
    world: str = "steady"
    frames: int = 60


def status(name: str) -> Callable[[Outcome], float]:
    return lambda outcome: float(getattr(outcome.run.mapper.status(), name))


def dropped(reason: str) -> Callable[[Outcome], float]:
    return lambda outcome: outcome.run.mapper.status().dropped.get(reason, 0)


def accepted(outcome: Outcome) -> float:
    return sum(result.accepted for result in outcome.run.results)


def inliers(outcome: Outcome) -> float:
    return float(np.mean([result.inlier_share for result in outcome.run.results[1:]]))


def valid(outcome: Outcome) -> float:
    return float(np.mean([view.valid.mean() for result in outcome.run.results for view in result.views]))


def extent(outcome: Outcome) -> float:
    return float(np.linalg.norm(np.ptp(outcome.run.positions()[0], axis=0)))


def cloud(outcome: Outcome) -> float:
    return len(outcome.run.mapper.map.cloud().points)


def views(outcome: Outcome) -> float:
    return sum(outcome.passes)


def retrieved(outcome: Outcome) -> float:
    return sum(outcome.retrieved)


LOOP = {"loop.min_separation": 4, "loop.interval": 1}
METRIC = {"scale.source": "odometry", "scale.accept_sigma": 0.1, "loop.enabled": False}
HEIGHT = {"scale.source": "camera_height", "scale.accept_sigma": 0.5}
CASES = {
    "keyframes.motion": Case(0.3, LESS, status("keyframes")),
    "keyframes.min_interval": Case(3.0, LESS, status("keyframes")),
    "keyframes.max_interval": Case(0.5, MORE, status("keyframes"), {"keyframes.motion": 1.0}),
    "keyframes.sharpness": Case(0.0, LESS, dropped("blurred"), world="blurred"),
    "keyframes.contrast": Case(0.5, MORE, dropped("featureless")),
    "keyframes.max_similarity": Case(0.1, MORE, dropped("redundant")),
    "window.size": Case(9, LESS, views, frames=100),
    "window.stride": Case(2, MORE, lambda outcome: len(outcome.passes)),
    "window.overlap": Case(12, MORE, lambda outcome: outcome.passes[0], {"window.size": 32}),
    "registration.inlier_distance": Case(0.005, LESS, inliers),
    "registration.min_inlier_share": Case(1.0, LESS, accepted),
    "registration.min_view_share": Case(1.0, LESS, status("keyframes")),
    "registration.min_view_confidence": Case(1.0, LESS, status("keyframes")),
    "registration.retries": Case(6, MORE, views, world="noise"),
    "registration.lost_after": Case(100, LESS, status("submaps"), world="jump", frames=120),
    "registration.pixels": Case(100, operator.ne, inliers),
    "points.min_confidence": Case(5.0, LESS, valid),
    "points.drop_share": Case(0.9, LESS, valid),
    "points.edge_ratio": Case(0.01, LESS, valid),
    "points.max_depth_ratio": Case(1.0, LESS, valid),
    "scale.source": Case("fixed", MORE, status("metres")),
    "scale.accept_sigma": Case(0.0001, LESS, status("metres"), {"scale.source": "odometry"}, "drift"),
    "scale.hysteresis": Case(10.0, operator.ne, extent, METRIC, "drift", 200),
    "scale.min_baseline": Case(100.0, LESS, status("metres"), METRIC, "drift"),
    "scale.camera_height": Case(2.0, MORE, extent, HEIGHT),
    "scale.metres_per_unit": Case(2.0, MORE, extent, {"scale.source": "fixed"}),
    "loop.enabled": Case(False, LESS, retrieved, LOOP, "return", 120),
    "loop.candidates": Case(1, LESS, retrieved, LOOP, "return", 120),
    "loop.min_similarity": Case(1.0, LESS, retrieved, LOOP, "return", 120),
    "loop.interval": Case(1000, LESS, retrieved, LOOP, "return", 120),
    "loop.min_separation": Case(1000, LESS, retrieved, LOOP, "return", 120),
    "loop.min_inlier_share": Case(1.0, LESS, status("loops_closed"), LOOP, "return", 120),
    "map.voxel_size": Case(0.5, LESS, cloud),
    "map.points_per_keyframe": Case(100, LESS, cloud),
    "map.max_points": Case(1000, LESS, cloud, frames=140),
    "map.memory_mb": Case(1.0, LESS, status("map_bytes"), frames=140),
}
# when, not what: test_mapping_promises, and below; what needs a base: test_mapping_expectation
ELSEWHERE = {"loop.background", "map.moved_per_window", "registration.planar"}


def test_every_parameter_has_a_case() -> None:
    assert set(CASES) | ELSEWHERE == set(PARAMETERS)


@lru_cache(maxsize=8)
def world_of(name: str, count: int) -> tuple[SyntheticSequence, tuple[Frame, ...]]:
    """The camera's trajectory and images, `count` frames."""
    sequence, frames = the_loop()
    middle = count // 2
    order = {
        "jump": [*range(middle), *range(300, 300 + middle)],
        "return": [*range(middle), *range(middle)[::-1]],
    }
    indices = order.get(name, list(range(count)))
    way = replace(sequence, world_from_camera=sequence.world_from_camera[indices])
    seen = [replace(frames[old], stamp_ns=way.stamp_ns(new)) for new, old in enumerate(indices)]
    if name == "blurred":
        for frame in range(2, count, 3):
            seen[frame] = replace(seen[frame], image=cv2.GaussianBlur(seen[frame].image, (0, 0), 3))
    return way, tuple(seen)


def outcome_of(case: Case, before: dict[str, Any], after: dict[str, Any]) -> Outcome:
    """A mapper made with `before`, changed to `after` before its first frame."""
    sequence, frames = world_of(case.world, case.frames)
    made = {name.replace(".", "__"): value for name, value in before.items()}
    run = start(sequence, Disturbance(pure_noise=True) if case.world == "noise" else None, **made)
    run.mapper.set_config(MapperConfig.from_flat({**QUIET, **after}))
    outcome = Outcome(run)
    reconstruct = run.network.reconstruct

    def counted(encoded: Sequence[Any]) -> Reconstruction:
        outcome.passes.append(len(encoded))
        return reconstruct(encoded)

    candidates = run.mapper._builder.loops.candidates

    def noted(*arguments: Any) -> list[int]:
        found = candidates(*arguments)
        outcome.retrieved.append(len(found))
        return found

    run.network.reconstruct = counted  # type: ignore[method-assign]
    run.mapper._builder.loops.candidates = noted  # type: ignore[method-assign]
    if case.world == "drift":
        place = sequence.world_from_camera[case.frames // 2][:3, 3]
        for index in range(case.frames):
            pose = sequence.world_from_camera[index].copy()
            if index > case.frames // 2:
                pose[:3, 3] = place + 1.03 * (pose[:3, 3] - place)
            run.mapper.add_odometry(sequence.stamp_ns(index), pose)
    run.feed(frames)
    return outcome


@lru_cache(maxsize=32)
def usual(world: str, frames: int, others: tuple[tuple[str, Any], ...]) -> Outcome:
    """The run without the case's value; several cases share it."""
    return outcome_of(Case(None, LESS, views, dict(others), world, frames), dict(others), dict(others))


@pytest.mark.parametrize("name", CASES)
def test_another_value_makes_another_map(name: str) -> None:
    case = CASES[name]
    assert case.value != PARAMETERS[name].default
    changed = {**case.others, name: case.value}
    dynamic = PARAMETERS[name].metadata["dynamic"]
    with_value = outcome_of(case, case.others if dynamic else changed, changed)
    without = usual(case.world, case.frames, tuple(case.others.items()))
    one, other = case.observe(with_value), case.observe(without)
    assert case.compare(one, other), (
        f"{one} with {name} {case.value}, {other} with {PARAMETERS[name].default}"
    )


@pytest.mark.parametrize("size", [8, 9, 11])
def test_small_windows_start_a_map(size: int) -> None:
    """Windows of hardly more than stride and overlap, as after running out of memory."""
    case = Case(size, LESS, views, world="return", frames=120)
    outcome = outcome_of(case, {"window.size": size}, {"window.size": size})
    status = outcome.run.mapper.status()
    assert status.windows >= 5
    assert status.dropped.get("overload", 0) == 0
    assert max(outcome.passes) <= size


def test_keyframes_that_moved_are_fused_a_few_at_a_time() -> None:
    """All of them move after the first 140 frames; one more window fuses 1 or 8 of them again."""
    left = []
    for most in (1, 8):
        sequence, frames = world_of("steady", 200)
        run = start(sequence, map__moved_per_window=most).feed(frames[:140], finish=False)
        run.mapper.map.put(run.mapper.map.held())
        windows = len(run.results)
        for frame in frames[140:]:
            if len(run.results) == windows:
                run.feed([frame], finish=False)
        left.append(len(run.mapper.map._moved))
    assert left[0] > left[1]

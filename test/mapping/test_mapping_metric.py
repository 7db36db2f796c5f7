"""When a map is in metres, that it says so, and that it is brought to metres once."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from fast3r_ros.benchmark.mapping import odometry_of
from fast3r_ros.benchmark.synthetic_run import start, the_loop
from fast3r_ros.geometry.similarity import fit_similarity
from fast3r_ros.mapping.config import MapConfig
from fast3r_ros.mapping.map import Map


def stretched(poses, after, factor):
    """Odometry whose way is `factor` times too long from pose number `after` on."""
    start_place = poses[after][1][:3, 3].copy()
    result = []
    for number, (stamp_ns, pose) in enumerate(poses):
        pose = pose.copy()
        if number > after:
            pose[:3, 3] = start_place + factor * (pose[:3, 3] - start_place)
        result.append((stamp_ns, pose))
    return result


def test_the_map_is_rescaled_once_and_says_when():
    sequence, frames = the_loop()
    run = start(sequence, scale__source="odometry", loop__enabled=False)
    for stamp_ns, odom_from_base in odometry_of(sequence, 0.01, 0.0, 0, 200):
        run.mapper.add_odometry(stamp_ns, odom_from_base)
    scales, metres = [], []
    for frame in frames[:200]:
        count = len(run.results)
        run.feed([frame], finish=False)
        if len(run.results) > count:
            scales.append([k.map_from_local.scale for k in run.mapper.map.keyframes.values()])
            metres.append(run.mapper.status().metres)
    first_metric = metres.index(True)
    assert 0 < first_metric < len(metres) - 3
    assert all(metres[first_metric:])
    for window, (before, after) in enumerate(pairwise(scales), start=1):
        settled = max(0, len(before) - 16)  # keyframes that left the window
        assert (before[:settled] == after[:settled]) == (window != first_metric or not settled), window
    assert scales[first_metric][0] / scales[first_metric - 1][0] > 2


def test_a_drift_of_the_scale_is_corrected_for_what_comes_next_only():
    """Odometry grows 3 % longer than the way in the map, which is the same as a map that shrinks by 3 %."""
    sequence, frames = the_loop()
    run = start(sequence, scale__source="odometry", loop__enabled=False)
    for pose in stretched(odometry_of(sequence, 0.01, 0.0, 0, len(frames)), 150, 1.03):
        run.mapper.add_odometry(*pose)
    run.feed(frames[:150], finish=False)
    assert run.mapper.status().metres
    settled = len(run.mapper.map.keyframes) - 20
    before = [k.map_from_local for k in run.mapper.map.keyframes.values()][:settled]
    run.feed(frames[150:])
    after = [k.map_from_local for k in run.mapper.map.keyframes.values()][:settled]
    assert all(old.scale == new.scale for old, new in zip(before, after, strict=True))
    estimated, true = run.positions()
    early, late = fit_similarity(estimated[:30], true[:30]), fit_similarity(estimated[-30:], true[-30:])
    assert early.scale == pytest.approx(1.0, abs=0.01)
    assert late.scale == pytest.approx(1 / 1.03, abs=0.01)


def test_a_fixed_scale_is_applied_once():
    sequence, frames = the_loop()
    one, two = (
        start(sequence, scale__source="fixed", scale__metres_per_unit=value).feed(frames[:80])
        for value in (1.0, 2.0)
    )
    assert two.mapper.status().metres
    sizes = [np.linalg.norm(run.positions()[0][-1] - run.positions()[0][0]) for run in (one, two)]
    assert sizes[1] / sizes[0] == pytest.approx(2.0, rel=1e-6)


def test_two_submaps_are_joined_in_the_scale_that_is_known():
    """Odometry comes only after the track was lost: the first submap is brought to the second one's scale."""
    sequence, frames = the_loop()
    blank = [replace(frame, image=np.full_like(frame.image, 128)) for frame in frames[80:180]]
    run = start(sequence, scale__source="odometry")
    run.feed([*frames[:80], *blank], finish=False)
    for stamp_ns, odom_from_base in odometry_of(sequence, 0.005, 0.0, 0, len(frames))[300:]:
        run.mapper.add_odometry(stamp_ns, odom_from_base)
    assert not run.mapper.status().metres
    again = replace(sequence, start_ns=sequence.stamp_ns(len(sequence)) + 100_000_000)
    run.network.add(again)
    run.sequences = [sequence, again]
    lap = [replace(frame, stamp_ns=again.stamp_ns(i)) for i, frame in enumerate(frames[:80])]
    run.feed(frames[300:500], finish=False)
    assert run.mapper.status().submaps == 2
    assert run.mapper.status().metres
    assert run.mapper.map.guessed == {0}
    run.feed([*frames[500:], *lap])
    status = run.mapper.status()
    assert (status.submaps, status.metres) == (1, True)
    assert run.world_from_map().scale == pytest.approx(1.0, abs=0.01)


def test_a_map_in_metres_does_not_claim_them_for_a_submap_of_unknown_scale():
    map_ = Map(MapConfig(), 0.01)
    assert not map_.known_scale(0)
    map_.metres = True
    map_.guessed.add(1)
    assert map_.known_scale(0)
    assert not map_.known_scale(1)
    assert Map.restored(MapConfig(), (), True, 0.01, map_.guessed).guessed == {1}

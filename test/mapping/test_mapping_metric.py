"""When a map becomes metric, that it reports so, and that this happens once."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from fast3r_ros.benchmark.synthetic_run import odometry_of, start, the_loop
from fast3r_ros.geometry.rigid import BODY_FROM_OPTICAL, inverse, rigid_matrix
from fast3r_ros.geometry.rotation import matrix_from_vector
from fast3r_ros.geometry.similarity import fit_similarity
from fast3r_ros.mapping.config import MapConfig
from fast3r_ros.mapping.map import Map


def stretched(poses, after, factor):
    """Odometry whose path is `factor` times too long from pose number `after` on."""
    start_place = poses[after][1][:3, 3].copy()
    result = []
    for number, (stamp_ns, pose) in enumerate(poses):
        pose = pose.copy()
        if number > after:
            pose[:3, 3] = start_place + factor * (pose[:3, 3] - start_place)
        result.append((stamp_ns, pose))
    return result


@pytest.mark.slow
def test_the_map_is_in_metres_early_and_its_scale_is_refined_without_a_jump():
    """Odometry starts with the third window; map -> odom shows a change to a navigating robot."""
    sequence, frames = the_loop()
    run = start(sequence, scale__source="odometry", loop__enabled=False)
    run.mapper.set_extrinsics(sequence.camera, BODY_FROM_OPTICAL)
    odometry = dict(odometry_of(sequence, 0.0, 0.0, 0, 400))
    metres, sigmas, scales, map_from_odom, odom_from_base = [], [], [], [], []
    for index, frame in enumerate(frames[:400]):
        if index > 45:
            run.mapper.add_odometry(frame.stamp_ns, odometry[frame.stamp_ns])
        count = len(run.results)
        run.feed([frame], finish=False)
        if len(run.results) > count:
            newest = run.mapper.trajectory()[-1]
            metres.append(run.mapper.status().metres)
            sigmas.append(run.mapper.status().scale_sigma)
            scales.append([k.map_from_local.scale for k in run.mapper.map.keyframes.values()])
            odom_from_base.append(odometry[newest.stamp_ns])
            map_from_odom.append(newest.map_from_base @ inverse(odom_from_base[-1]))
    first = metres.index(True)
    assert 1 < first <= 4
    assert all(metres[first:])
    assert 0.0033 < sigmas[first] < 0.05
    assert sigmas[-1] < 0.0033
    # the robot's displacement by a correction
    robot = [pose[:, 3] for pose in odom_from_base[first + 1 :]]
    moves = [(b - a) @ place for (a, b), place in zip(pairwise(map_from_odom[first:]), robot, strict=True)]
    assert np.linalg.norm(moves, axis=1).max() < 0.03
    changed = [abs(np.log(after[0] / before[0])) for before, after in pairwise(scales[first:])]
    assert sum(changed) > 0  # it was refined
    assert not any(changed[-8:])  # and is final
    assert run.world_from_map().scale == pytest.approx(1.0, abs=0.005)


def test_measurements_that_become_doubtful_do_not_spoil_a_scale_that_was_adopted():
    """Slipping wheels spread the measurements: the scale stays until they are accurate again."""
    sequence, frames = the_loop()
    run = start(sequence, seed=1, scale__source="odometry", loop__enabled=False)
    for pose in odometry_of(sequence, 0.01, 1 / 3, 1, 300)[:150]:
        run.mapper.add_odometry(*pose)
    for frame in frames[:150]:
        count = len(run.results)
        run.feed([frame], finish=False)
        if len(run.results) > count:
            assert run.world_from_map().scale == pytest.approx(1.0, abs=0.02)


def moving_mounts(count):
    """The pose of a camera on a panning and nodding head on the robot, for each image."""
    angles = np.linspace(0, 4 * np.pi, count)
    turns = np.stack([0 * angles, 0.2 * np.sin(3 * angles), 0.8 * np.sin(angles)], 1)
    head = rigid_matrix(matrix_from_vector(turns), [0.1, 0.0, 1.0])
    return head @ rigid_matrix(np.eye(3), [0.15, 0.0, 0.1]) @ BODY_FROM_OPTICAL


@pytest.mark.parametrize("source", ["odometry", "depth"])
def test_the_map_begins_where_the_base_was_though_the_camera_moves_on_it(source):
    sequence, frames = the_loop()
    mounts = moving_mounts(120)
    run = start(sequence, scale__source=source, loop__enabled=False)
    for index, frame in enumerate(frames[:120]):
        world_from_base = sequence.world_from_camera[index] @ inverse(mounts[index])
        if source == "odometry":
            run.mapper.add_odometry(frame.stamp_ns, world_from_base)
        run.feed([replace(frame, base_from_camera=mounts[index])], finish=False)
    run.feed([])
    assert run.world_from_map().scale == pytest.approx(1.0, abs=0.01)
    first = run.mapper.trajectory()[0].map_from_base
    assert np.linalg.norm(first[:3, 3]) < 0.05
    if source == "odometry":  # which knows the vertical
        assert run.world_from_map().rotation[2, 2] > np.cos(0.01)
        assert abs(np.arctan2(first[1, 0], first[0, 0])) < 0.02


def test_the_map_begins_at_a_given_pose():
    sequence, frames = the_loop()
    run = start(sequence, scale__source="depth", loop__enabled=False)
    mount = rigid_matrix(BODY_FROM_OPTICAL[:3, :3], [0.2, 0.0, 1.0])
    run.mapper.set_extrinsics(sequence.camera, mount)
    wanted = rigid_matrix(matrix_from_vector(np.array([0.0, 0.0, 0.7])), [3.0, -2.0, 0.0])
    run.mapper.set_first_pose(wanted)
    run.feed(frames[:100])
    assert run.mapper.status().metres
    first = run.mapper.trajectory()[0].map_from_base
    assert first[:3, 3] == pytest.approx(wanted[:3, 3], abs=0.05)
    assert np.arctan2(first[1, 0], first[0, 0]) == pytest.approx(0.7, abs=0.02)


@pytest.mark.slow
def test_a_drift_of_the_scale_is_corrected_for_later_windows_only():
    """Odometry becomes 3 % longer than the map's trajectory, equivalent to a map that shrinks by 3 %."""
    sequence, frames = the_loop()
    run = start(sequence, scale__source="odometry", loop__enabled=False)
    for pose in stretched(odometry_of(sequence, 0.01, 0.0, 0, len(frames)), 150, 1.03):
        run.mapper.add_odometry(*pose)
    run.feed(frames[:150], finish=False)
    assert run.mapper.status().metres
    settled = len(run.mapper.map.keyframes) - 20
    before = [k.map_from_local for k in run.mapper.map.keyframes.values()][:settled]
    run.feed(frames[150:450])
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


@pytest.mark.slow
def test_two_submaps_are_joined_in_the_known_scale():
    """Odometry starts after the track was lost: the first submap gets the second one's scale."""
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
    assert run.mapper.map.unscaled == {0}
    run.feed([*frames[500:], *lap])
    status = run.mapper.status()
    assert (status.submaps, status.metres) == (1, True)
    assert run.world_from_map().scale == pytest.approx(1.0, abs=0.01)


def test_a_map_in_metres_does_not_claim_them_for_a_submap_of_unknown_scale():
    map_ = Map(MapConfig(), 0.01)
    assert not map_.known_scale(0)
    map_.metres = True
    map_.unscaled.add(1)
    assert map_.known_scale(0)
    assert not map_.known_scale(1)
    assert Map.restored(MapConfig(), (), True, 0.01, map_.unscaled).unscaled == {1}

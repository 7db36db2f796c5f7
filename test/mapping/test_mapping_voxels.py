import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fast3r_ros.mapping import voxels
from fast3r_ros.mapping.voxels import VoxelCloud


def some_points(seed, count=300, spread=1.0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(0, spread, (count, 3)).astype(np.float32),
        rng.integers(0, 256, (count, 3)).astype(np.uint8),
        rng.uniform(1, 40, count).astype(np.float32),
    )


def assert_same(one, other):
    for name in ("points", "colors", "confidence"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=25))
def test_any_sequence_of_adding_and_removing_leaves_what_is_present(steps):
    cloud, present = VoxelCloud(0.2), []
    for version, (adding, seed) in enumerate(steps):
        if adding:
            present.append(seed)
            cloud.add(*some_points(seed), version)
        elif seed in present:
            present.remove(seed)
            cloud.remove(*some_points(seed), version)
    fresh = VoxelCloud(0.2)
    for seed in sorted(present):
        fresh.add(*some_points(seed), 0)
    assert len(cloud) == len(fresh)
    assert_same(cloud.cloud(), fresh.cloud())


def test_points_stay_in_their_voxel_and_near_the_weighted_mean():
    points, colors, confidence = some_points(1, 5000, 0.3)
    cloud = VoxelCloud(0.1)
    cloud.add(points, colors, confidence, 1)
    result = cloud.cloud()
    key = np.floor(points.astype(np.float64) / 0.1).astype(int)
    for point, trust in zip(result.points[::50], result.confidence[::50], strict=True):
        mine = (key == np.floor(point.astype(np.float64) / 0.1).astype(int)).all(axis=1)
        mean = np.average(points[mine], axis=0, weights=confidence[mine])
        assert np.abs(mean - point).max() < 0.1 / 256 + 1e-5
        assert trust == pytest.approx(confidence[mine].mean(), abs=1 / 16)


def test_removing_everything_frees_the_memory(monkeypatch):
    monkeypatch.setattr(voxels, "_COMPACT_AT", 100)
    cloud = VoxelCloud(0.05)
    for seed in range(20):
        cloud.add(*some_points(seed, 2000), seed)
    full = cloud.nbytes
    for seed in range(20):
        cloud.remove(*some_points(seed, 2000), 100 + seed)
    assert len(cloud) == 0
    assert cloud.nbytes < full / 4
    assert len(cloud.cloud().points) == 0


def test_changes_tell_a_reader_all_it_needs():
    cloud = VoxelCloud(0.2)
    cloud.add(*some_points(1), 1)
    cloud.add(*some_points(2), 2)
    seen = {tuple(np.floor(p / 0.2)): p for p in cloud.changes(0, 2).cloud.points}
    cloud.remove(*some_points(1), 3)
    cloud.add(*some_points(3), 4)
    update = cloud.changes(2, 4)
    assert not update.complete
    for point in update.removed:
        seen.pop(tuple(np.floor(point / 0.2)), None)
    seen.update({tuple(np.floor(p / 0.2)): p for p in update.cloud.points})
    assert {tuple(p) for p in cloud.cloud().points} == {tuple(p) for p in seen.values()}
    assert len(cloud.changes(4, 4).cloud.points) == 0


def test_a_reader_from_before_the_packing_starts_afresh(monkeypatch):
    monkeypatch.setattr(voxels, "_COMPACT_AT", 10)
    cloud = VoxelCloud(0.2)
    cloud.add(*some_points(1), 1)
    cloud.add(*some_points(2), 2)
    cloud.remove(*some_points(1), 3)
    update = cloud.changes(2, 3)
    assert update.complete
    assert_same(cloud.cloud(), cloud_of(2))


def cloud_of(seed):
    cloud = VoxelCloud(0.2)
    cloud.add(*some_points(seed), 1)
    return cloud.cloud()


def test_region_is_the_part_inside_the_box():
    cloud = VoxelCloud(0.2)
    cloud.add(*some_points(4), 1)
    part = cloud.region(np.array([-0.5, -0.5, 0.0]), np.array([0.5, 0.5, 9.0]))
    whole = cloud.cloud()
    inside = (np.abs(whole.points[:, :2]) <= 0.5).all(axis=1) & (whole.points[:, 2] >= 0)
    assert 0 < len(part.points) == inside.sum()


def test_far_away_points_and_none_at_all_do_no_harm():
    cloud = VoxelCloud(0.01)
    points, colors, confidence = some_points(5)
    points[:10] = 1e9
    cloud.add(points, colors, confidence, 1)
    cloud.add(points[:0], colors[:0], confidence[:0], 2)
    assert 0 < len(cloud) <= 290
    assert np.abs(cloud.cloud().points).max() < 100

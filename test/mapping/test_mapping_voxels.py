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


def seen_by(number, spread=1.0):
    """A keyframe's contribution to the cloud: points, and free space."""
    passed = np.random.default_rng(100 + number).normal(0, spread, (200, 3)).astype(np.float32)
    return *some_points(number, 300, spread), passed, number


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=25))
def test_any_sequence_of_adding_and_removing_leaves_what_is_present(steps):
    cloud, present = VoxelCloud(0.05), []
    for adding, seed in steps:
        if adding:
            present.append(seed)
            cloud.add(*seen_by(seed))
        elif seed in present:
            present.remove(seed)
            cloud.remove(*seen_by(seed))
    fresh = VoxelCloud(0.05)
    for seed in sorted(present):
        fresh.add(*seen_by(seed))
    assert len(cloud) == len(fresh) == len(cloud.cloud().points)
    assert_same(cloud.cloud(), fresh.cloud())


def test_points_stay_in_their_voxel_and_near_the_weighted_mean():
    points, colors, confidence = some_points(1, 5000, 0.3)
    cloud = VoxelCloud(0.1)
    cloud.add(points, colors, confidence)
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
        cloud.add(*some_points(seed, 2000))
    full = cloud.nbytes
    for seed in range(20):
        cloud.remove(*some_points(seed, 2000))
    assert len(cloud) == 0
    assert cloud.nbytes < full / 4
    assert len(cloud.cloud().points) == 0


def test_region_is_the_part_inside_the_box():
    cloud = VoxelCloud(0.2)
    cloud.add(*some_points(4))
    part = cloud.region(np.array([-0.5, -0.5, 0.0]), np.array([0.5, 0.5, 9.0]))
    whole = cloud.cloud()
    inside = (np.abs(whole.points[:, :2]) <= 0.5).all(axis=1) & (whole.points[:, 2] >= 0)
    assert 0 < len(part.points) == inside.sum()


def test_distant_points_and_empty_clouds_are_handled():
    cloud = VoxelCloud(0.01)
    points, colors, confidence = some_points(5)
    points[:10] = 1e9
    cloud.add(points, colors, confidence)
    cloud.add(points[:0], colors[:0], confidence[:0])
    assert 0 < len(cloud) <= 290
    assert np.abs(cloud.cloud().points).max() < 100


THERE = np.array([[0.5, 0.5, 0.5]], np.float32)
ELSEWHERE = np.array([[9.0, 9.0, 9.0]], np.float32)


def shown_after(hits, passes):
    """Whether a point shows that keyframes `hits` have and keyframes `passes` look through."""
    cloud = VoxelCloud(0.05)
    color, trust = np.zeros((1, 3), np.uint8), np.full(1, 5.0, np.float32)
    for number in sorted({*hits, *passes}):
        passed = THERE if number in passes else None
        cloud.add(THERE if number in hits else ELSEWHERE, color, trust, passed, number)
    shown = (cloud.cloud().points < 1).all(axis=1).any()
    assert len(cloud) == len(cloud.cloud().points)
    return bool(shown)


@pytest.mark.parametrize(
    ("hits", "passes", "shown"),
    [
        (range(10), (), True),
        (range(10), [11], True),  # one view may err
        (range(10), range(12, 18), False),  # it has gone
        (range(30), range(40, 50), False),  # it was there for a long time
        (range(30), range(20, 24), True),  # views of one moment err
        (range(20, 24), range(20), True),  # it was added
        ([10], [*range(8, 10), *range(11, 14)], False),  # an outlier
        (range(0, 40, 2), range(1, 40, 4), True),  # half of the views look past its edge
        (range(5), range(5), True),  # a keyframe with a point in a cell does not look through it
    ],
)
def test_points_that_later_views_look_through_are_hidden(hits, passes, shown):
    assert shown_after(hits, passes) == shown


def test_hidden_points_reappear_when_the_views_through_them_move_away():
    cloud = VoxelCloud(0.05)
    color, trust = np.zeros((1, 3), np.uint8), np.full(1, 5.0, np.float32)
    cloud.add(THERE, color, trust, None, 0)
    through = [(ELSEWHERE, color, trust, THERE, number) for number in range(1, 5)]
    for each in through:
        cloud.add(*each)
    assert len(cloud) == 1
    for each in through:
        cloud.remove(*each)
    assert len(cloud) == 1
    assert (cloud.cloud().points < 1).all()

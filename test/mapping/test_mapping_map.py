"""The map within its bounds, and its keyframes when the pose graph moves them."""

import numpy as np
import pytest

from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.config import LoopConfig, MapConfig
from fast3r_ros.mapping.data import Keyframe, KeyframePoints
from fast3r_ros.mapping.loops import LoopCloser
from fast3r_ros.mapping.map import Map, most_redundant

SHIFT = np.array([0.0, 3.0, 0.0])


def keyframe(identity, x, submap=0, points=200):
    rng = np.random.default_rng(identity)
    content = KeyframePoints(
        rng.normal([0, 0, 2], 0.5, (points, 3)).astype(np.float32),
        np.full(points, 5.0, np.float32),
        np.zeros((points, 3), np.uint8),
        np.arange(points, dtype=np.int32),
    )
    return Keyframe(
        identity, identity, "a", submap, Sim3(1.0, np.eye(3), np.array([x, 0.0, 0.0])), np.eye(6) * 1e-4, 1,
        np.eye(3), np.eye(3), np.zeros(8, np.float32), np.zeros((10, 20, 3), np.uint8), content, 2.0, np.nan,
    )  # fmt: skip


def filled(count, **config):
    map_ = Map(MapConfig(**config), 0.05)
    for i in range(count):
        map_.put([keyframe(i, 0.1 * i)])
        map_.fuse([i])
    return map_


def test_a_full_map_drops_redundant_keyframes_and_keeps_their_poses():
    map_ = filled(60, max_points=1500)
    protected = {58, 59}
    culled = set()
    for _ in range(20):
        culled |= map_.cull(protected)
    assert map_.points <= 1500
    assert culled
    assert not culled & protected
    assert len(map_.keyframes) == 60
    assert {k.id for k in map_.held()} == set(range(60)) - culled
    assert all(map_.keyframes[i].image is None for i in culled)


def test_a_full_map_is_not_searched_at_every_window(monkeypatch):
    looks = []

    def look(held):
        looks.append(len(held))
        return most_redundant(held)

    monkeypatch.setattr("fast3r_ros.mapping.map.most_redundant", look)
    map_ = filled(200, max_points=filled(200).points)
    culled = 0
    for i in range(200, 400):
        map_.put([keyframe(i, 0.1 * i)])
        map_.fuse([i])
        culled += len(map_.cull({i}))
    assert culled > 150
    assert len(looks) < culled / 10


def test_memory_of_the_map_stored_elsewhere_counts():
    map_ = filled(60, memory_mb=4.0)
    assert not map_.cull(set())
    assert map_.cull(set(), other_bytes=4 * 2**20)


@pytest.mark.slow
def test_the_poses_of_culled_keyframes_are_thinned_before_they_fill_the_memory():
    map_ = Map(MapConfig(memory_mb=4.0), 0.05)
    largest = 0
    for i in range(1500):
        map_.put([keyframe(i, 0.1 * i, points=50)])
        map_.fuse([i])
        map_.cull({i})
        largest = max(largest, map_.nbytes)
    assert largest <= 4 * 2**20
    kept = list(map_.keyframes)
    assert len(kept) < 1200
    assert kept[-1] == 1499
    assert min(kept) < 150  # thinned evenly, not from one end
    assert kept == sorted(kept)


def test_a_map_whose_culled_keyframes_lag_behind_is_rescaled_and_joined_as_a_whole():
    map_ = filled(6)
    map_.put([keyframe(i, 0.1 * i, submap=1) for i in range(6, 9)])
    assert map_.cull(set(range(3)) | set(range(4, 9)), other_bytes=10**12) == {3}
    shifted = Sim3(1.0, np.eye(3), SHIFT)
    map_.move({i: shifted @ map_.keyframes[i].map_from_local for i in range(6) if i != 3})
    map_.rescale(Sim3(2.0, np.eye(3), np.zeros(3)), 0.05, 0)
    map_.join(0, 1, shifted)
    map_.follow()
    assert np.allclose(map_.keyframes[3].map_from_local.translation, 2 * np.array([0.3, 3, 0]) + SHIFT)
    assert map_.keyframes[3].submap == 1


@pytest.fixture
def moved(monkeypatch):
    """A map of ten keyframes, some culled, after an optimisation that moved all but the first half."""
    monkeypatch.setattr(
        "fast3r_ros.mapping.map.most_redundant", lambda held: [k for k in held if k.id in order]
    )
    monkeypatch.setattr("fast3r_ros.mapping.map._CULLED_AT_ONCE", 1)
    map_ = filled(10)
    map_.put([keyframe(10, 1.0, submap=1)])
    for order in ([2], [5], [6], [8]):  # 5 follows 6, which then follows 7
        assert map_.cull(set(), other_bytes=10**12) == set(order)
    closer = LoopCloser(LoopConfig(background=False))
    seen = []

    def optimize(nodes, edges):
        seen.extend(nodes)
        return {
            i: pose if i < 5 else Sim3(1.0, np.eye(3), pose.translation + SHIFT) for i, pose in nodes.items()
        }

    monkeypatch.setattr("fast3r_ros.mapping.loops.optimize", optimize)
    map_.put([keyframe(9, 0.9)])
    before = {i: k.map_from_local.translation for i, k in map_.keyframes.items()}
    closer.optimize(map_)
    closer.shutdown()
    for i in (2, 5, 6, 8):
        assert np.array_equal(map_.keyframes[i].map_from_local.translation, before[i])  # not yet
    map_.follow()
    map_.follow()  # a second time changes nothing
    return seen, before, {i: k.map_from_local.translation for i, k in map_.keyframes.items()}


def test_culled_keyframes_are_not_optimised_but_follow_their_neighbour(moved):
    seen, before, after = moved
    assert sorted(seen) == [0, 1, 3, 4, 7, 9, 10]
    for i in (0, 1, 2, 3, 4):
        assert np.allclose(after[i], before[i])
    for i in (5, 6, 7, 8, 9, 10):
        assert np.allclose(after[i], before[i] + SHIFT)

"""Scenes, paths and sequences: seeded, in free space, smooth, and closed where they say so."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fast3r_ros.synthetic.rooms import SyntheticScene, corridor_scene, is_free, ring_scene, room_scene
from fast3r_ros.synthetic.sequence import demo_sequence, loop_sequence
from fast3r_ros.synthetic.trajectories import Motion, look, look_around, scattered, walk


def turn_degrees(poses: np.ndarray) -> np.ndarray:
    relative = np.einsum("nji,njk->nik", poses[:-1, :3, :3], poses[1:, :3, :3])
    return np.degrees(np.arccos(np.clip((np.trace(relative, axis1=1, axis2=2) - 1) / 2, -1, 1)))


def painted_scene(seed: int) -> SyntheticScene:
    return room_scene(seed, painted=True)


@pytest.mark.parametrize("make", [room_scene, painted_scene, corridor_scene, ring_scene])
def test_scenes_are_a_function_of_the_seed(make) -> None:
    first, again, other = make(4), make(4), make(5)
    for field in dataclasses.fields(first):
        assert np.array_equal(getattr(first, field.name), getattr(again, field.name)), field.name
    assert first.center.shape != other.center.shape or not np.allclose(first.center, other.center)
    np.testing.assert_allclose(np.cross(first.axes[:, 0], first.axes[:, 1]), first.axes[:, 2], atol=1e-12)
    assert (first.half > 0).all()


def test_painting_changes_colours_only_and_floors_look_alike() -> None:
    plain, painted = room_scene(6), painted_scene(6)
    for name in ("center", "axes", "half", "obstacles"):
        assert np.array_equal(getattr(plain, name), getattr(painted, name)), name
    floors = np.array([painted_scene(seed).look[0, 5:8] for seed in range(5)])
    assert (floors[:, 0] > floors[:, 1]).all()
    assert (floors[:, 1] > floors[:, 2]).all(), "floors are brown"
    assert not np.allclose(painted_scene(1).look[2:6, 5:8], painted_scene(2).look[2:6, 5:8])


def test_cameras_are_upright_and_look_in_the_given_direction() -> None:
    pose = look(np.array([[1.0, 2, 3]]), np.array([np.pi / 2]))[0]
    np.testing.assert_allclose(pose[:3, 2], [0, 1, 0], atol=1e-12)  # forward
    np.testing.assert_allclose(pose[:3, 0], [1, 0, 0], atol=1e-12)  # right
    np.testing.assert_allclose(pose[:3, 1], [0, 0, -1], atol=1e-12)  # down
    tilted = look(np.zeros((1, 3)), np.array([0.3]), 0.2, 0.1)[0]
    np.testing.assert_allclose(tilted[:3, :3] @ tilted[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(tilted[:3, :3]) == pytest.approx(1)
    assert tilted[2, 2] == pytest.approx(np.sin(0.2))  # positive pitch looks up


@pytest.mark.parametrize("seed", range(12))
def test_random_views_stay_in_free_space(seed: int) -> None:
    scene, rng = room_scene(seed), np.random.default_rng(seed)
    motion = Motion()
    path = walk(scene, rng, 12, motion)
    assert is_free(scene, path[:, :2, 3], margin=0.1).all()
    assert np.linalg.norm(np.diff(path[:, :3, 3], axis=0), axis=1).max() < 1.5 * motion.step[1]
    assert turn_degrees(path).max() < np.degrees(motion.turn[1]) + 3
    assert is_free(scene, scattered(scene, rng, 8, 0.8, 0.5)[:, :2, 3], margin=0.1).all()
    around = look_around(scene, rng, 9, np.pi)
    assert turn_degrees(around).sum() == pytest.approx(180, abs=1e-6)


def test_loop_sequence_walks_sixty_metres_through_rooms_and_closes() -> None:
    loop = loop_sequence(frames=600)
    positions = loop.world_from_camera[:, :3, 3]
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    assert 54 < steps.sum() < 66
    assert steps.max() < 2 * steps.mean()
    assert np.linalg.norm(positions[0] - positions[-1]) < 0.1
    assert turn_degrees(loop.world_from_camera[[0, -1]])[0] < 15
    assert turn_degrees(loop.world_from_camera).max() < 10
    rooms = loop.scene.rooms
    inside = ((positions[:, None, :2] > rooms[:, :2]) & (positions[:, None, :2] < rooms[:, 2:])).all(-1)
    assert inside.any(0).all(), "every room is visited"
    assert inside.any(1).mean() > 0.95, "between rooms there are only door sills"
    without_furniture = dataclasses.replace(loop.scene, obstacles=np.zeros((0, 5)))
    free = is_free(without_furniture, positions[:, :2], 0.2)
    assert is_free(loop.scene, positions[free, :2], 0.2).all(), "no furniture on the way"
    for index in (0, 150, 400):
        frame = loop[index]
        assert frame.depth is not None
        assert frame.depth.min() > 0.15
        assert frame.image.shape == (160, 224, 3)


def test_demo_sequence_is_short_reproducible_and_true() -> None:
    sequence = demo_sequence(with_depth=True)
    assert len(sequence) == 120
    first, again = sequence[7], demo_sequence(with_depth=True)[7]
    assert np.array_equal(first.image, again.image)
    assert first.image.shape == (240, 320, 3)
    assert first.image.dtype == np.uint8
    assert first.intrinsics is not None
    assert first.intrinsics[0, 2] == 160
    assert np.array_equal(first.depth, again.depth)
    stamps = [sequence.stamp_ns(index) for index in range(len(sequence))]
    assert set(np.diff(stamps)) == {100_000_000}
    assert first.stamp_ns == stamps[7]
    moved = np.linalg.norm(np.diff(sequence.world_from_camera[:, :3, 3], axis=0), axis=1)
    assert 0.02 < moved.min() <= moved.max() < 0.05
    assert turn_degrees(sequence.world_from_camera).max() < 4
    assert is_free(sequence.scene, sequence.world_from_camera[:, :2, 3], 0.2).all()
    with pytest.raises(IndexError, match="120"):
        sequence[120]


def test_sequence_iterates_over_all_frames() -> None:
    sequence = demo_sequence(seconds=0.5, width=32, height=24)
    frames = list(sequence)
    assert [frame.stamp_ns for frame in frames] == [sequence.stamp_ns(index) for index in range(5)]
    assert frames[0].depth is None

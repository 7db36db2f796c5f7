"""The browser's data for each point, and the times of first sight while a map grows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fast3r_ros.geometry.rigid import rigid_matrix
from fast3r_ros.io.cameras import CameraRecord
from fast3r_ros.mapping.data import Cloud
from fast3r_ros.viewer.point_chunks import (
    STEPS,
    cell_size,
    chunk_numbers,
    confidence_levels,
    marked,
    origin_near,
    thinned,
)
from fast3r_ros.viewer.timeline import Dating, Timeline

coordinates = st.floats(-1e4, 1e4, width=32)


def read_back(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levels and slots, by the formula of page.js."""
    bits = points.view(np.uint32) & 255
    return bits[:, 0] | ((bits[:, 1] & 15) << 8), (bits[:, 1] >> 4) | (bits[:, 2] << 4)


@given(arrays.arrays(np.float32, (5, 3), elements=coordinates), st.integers(0, 2**32 - 1))
def test_marks_are_read_back_and_hardly_move_a_point(points, seed):
    levels, slots = np.random.default_rng(seed).integers(0, STEPS, (2, 5)).astype(np.uint16)
    sent = marked(points, levels, slots)
    np.testing.assert_array_equal(read_back(sent), (levels, slots))
    np.testing.assert_allclose(sent, points, rtol=2**-15, atol=2e-30)
    assert (np.abs(sent) > np.finfo(np.float32).tiny).all(), "a graphics card makes denormals zero"


def test_a_map_far_from_the_origin_keeps_its_precision():
    near = np.random.default_rng(0).uniform(-20, 20, (1000, 3)).astype(np.float32)
    far = near + np.array([400_100, 5e6, 300], np.float32)  # metres of a map projection
    cell = cell_size(far)
    origin = origin_near(far, cell)
    sent = marked(far - origin, *np.full((2, 1000), STEPS - 1, np.uint16))
    np.testing.assert_allclose(sent + origin.astype(np.float64), far, atol=0.02)
    np.testing.assert_array_equal(origin_near(near, cell), 0)
    grown = np.concatenate([far, far[:500] + np.array([10, 10, 0], np.float32)])
    np.testing.assert_array_equal(origin_near(grown, cell), origin)


def test_levels_rise_with_confidence_and_distinguish_close_ones():
    confidence = np.concatenate([[1.0], 1 + np.geomspace(1e-3, 1e3, 2000)]).astype(np.float32)
    levels = confidence_levels(confidence).astype(int)
    assert (np.diff(levels) >= 1).all()
    assert levels[-1] < STEPS


def test_a_map_that_changes_in_one_place_changes_in_few_chunks():
    points = np.random.default_rng(0).uniform(0, 8, (100_000, 3)).astype(np.float32)
    cell = cell_size(points)
    before = chunk_numbers(points, cell)
    corner = np.random.default_rng(1).uniform(0, 1, (100, 3)).astype(np.float32)
    after = chunk_numbers(np.concatenate([points, corner]), cell)
    np.testing.assert_array_equal(after[:-100], before)
    assert len(np.unique(after[-100:])) <= 8
    assert len(np.unique(before)) <= 512


def test_a_thinned_map_that_grows_keeps_the_points_that_it_had():
    points = np.random.default_rng(0).uniform(0, 8, (300_000, 3)).astype(np.float32)
    cloud = Cloud(points, np.zeros((300_000, 3), np.uint8), np.ones(300_000, np.float32))
    few = thinned(cloud, 100_000)
    assert 90_000 < len(few.points) < 110_000
    part = Cloud(*(each[:250_000] for each in (points, cloud.colors, cloud.confidence)))
    kept = {tuple(point) for point in few.points}
    assert {tuple(point) for point in thinned(part, 100_000).points} <= kept


def camera(second: int, x: float) -> CameraRecord:
    """A camera at x that looks along x."""
    pose = rigid_matrix(np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]), [x, 0, 0])
    matrix = np.array([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]])
    return CameraRecord(f"{second}", second * 10**9, "camera", 64, 48, matrix, pose)


def wall(x: float) -> np.ndarray:
    y, z = (each.ravel() for each in np.meshgrid(*2 * [np.linspace(-0.5, 0.5, 60)]))
    return np.stack([np.full(y.shape, x), y, z], 1).astype(np.float32)


def test_known_places_keep_their_time_and_new_ones_get_the_newest_camera_s():
    dating, cameras = Dating(), [camera(0, 0.0), camera(1, 3.0)]
    first = np.concatenate([wall(2.0), wall(5.0)])  # the second is hidden until the camera has passed
    slots = dating.slots(first, cameras, 0.05)
    assert set(slots[:3600]) == {0}
    assert set(slots[3600:]) == {10}, "slots of 0.1 s"
    grown = np.concatenate([first, wall(5.5)])
    slots = dating.slots(grown, [*cameras, camera(7, 3.5)], 0.05)
    assert [set(part) for part in np.split(slots, (3600, 7200))] == [{0}, {10}, {70}]
    assert dating.timeline == Timeline(0, 7.0, 0.1)


def test_another_map_is_dated_again():
    dating = Dating()
    dating.slots(wall(2.0), [camera(0, 0.0)], 0.05)
    slots = dating.slots(wall(40.0), [camera(100, 38.0), camera(101, 38.5)], 0.05)
    assert set(slots) == {0}
    assert dating.timeline.start_ns == 100 * 10**9


def test_hours_fit_into_the_slots():
    timeline = Timeline.of(5, 5 + 3 * 3600 * 10**9)
    assert timeline.slot_at(3 * 3600.0) == STEPS - 1
    stamps = np.array([5, 5 + 3 * 3600 * 10**9])
    assert timeline.slots(stamps)[1] < STEPS
    middle = timeline.slot_at(3600.0)
    assert timeline.stamp_at(3600.0) >= 5 + 3600 * 10**9
    assert timeline.slots(np.array([timeline.stamp_at(3600.0)]))[0] == middle

"""The times when points were first seen, for the time slider."""

from __future__ import annotations

import numpy as np

from fast3r_ros.geometry.rigid import rigid_matrix
from fast3r_ros.io.cameras import CameraRecord
from fast3r_ros.viewer.timeline import first_seen

MATRIX = np.array([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]])
MAP_FROM_OPTICAL = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])


def camera(second: int, x: float) -> CameraRecord:
    """A camera at x that looks along x."""
    pose = rigid_matrix(MAP_FROM_OPTICAL, [x, 0, 0])
    return CameraRecord(f"{second}", second * 10**9, "camera", 64, 48, MATRIX, pose)


def wall(x: float) -> np.ndarray:
    """A square of one metre across the x axis."""
    across = np.linspace(-0.5, 0.5, 60)
    y, z = (values.ravel() for values in np.meshgrid(across, across))
    return np.stack([np.full(y.shape, x), y, z], 1).astype(np.float32)


def test_points_behind_a_wall_are_seen_once_the_camera_has_passed_it():
    hiding, hidden, aside = wall(2.0), wall(5.0), np.array([[2.0, 30.0, 0.0]], np.float32)
    points = np.concatenate([hiding, hidden, aside])
    seconds = first_seen(points, [camera(0, 0.0), camera(1, 0.5), camera(2, 3.0)]) // 10**9
    assert (seconds[: len(hiding)] == 0).all()
    assert (seconds[len(hiding) : -1] == 2).all()
    assert seconds[-1] == 2, "what none has seen counts as seen by the last"


def test_a_large_cloud_is_dated_by_a_sample():
    points = np.concatenate([np.repeat(wall(2.0), 40, 0), np.repeat(wall(5.0), 40, 0)])
    assert len(points) > 200_000
    seconds = first_seen(points, [camera(0, 0.0), camera(1, 3.0)]) // 10**9
    assert seconds.shape == (len(points),)
    np.testing.assert_allclose(np.bincount(seconds), len(points) / 2, rtol=0.001)

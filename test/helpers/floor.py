"""A map of a floor in four colours, and cameras above it."""

from __future__ import annotations

import numpy as np

from fast3r_ros.io.cameras import CameraRecord
from fast3r_ros.mapping.data import Cloud

POINTS = 40_000
COLOURS = np.array([[220, 40, 40], [40, 200, 60], [40, 60, 220], [230, 200, 40]], np.uint8)


def coloured_floor(count: int = POINTS) -> Cloud:
    """A floor of four coloured quarters; confidence rises along x."""
    generator = np.random.default_rng(0)
    points = generator.uniform(-2, 2, (count, 3)).astype(np.float32) * [1, 1, 0.01]
    points = points[np.argsort(points[:, 0])]
    quarter = (points[:, 0] > 0) * 2 + (points[:, 1] > 0)
    confidence = (1 + points[:, 0] + 2).astype(np.float32)
    return Cloud(points.astype(np.float32), COLOURS[quarter.astype(int)], confidence)


def camera(index: int) -> CameraRecord:
    """Looks along x and down on the floor; goes from x = -2 on, half a metre with each index."""
    pose = np.eye(4)
    pose[:3, :3] = np.array([[0, -0.6, 0.8], [-1, 0, 0], [0, -0.8, -0.6]])
    pose[:3, 3] = [-2 + 0.5 * index, 0, 0.6]
    matrix = np.array([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]])
    return CameraRecord(f"{index:06d}", index * 10**9, "camera", 64, 48, matrix, pose)

"""Rigid transforms as (4, 4) float64 matrices named `a_from_b`: they map b coordinates to a coordinates.  The
one place where axis conventions are converted (REP-103, REP-105).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fast3r_ros.geometry.rotation import matrix_from_vector, vector_from_matrix

Array = NDArray[np.float64]


def rigid_matrix(rotation: ArrayLike, translation: ArrayLike) -> Array:
    """Rotations (..., 3, 3) and translations (..., 3) -> matrices (..., 4, 4)."""
    rotations = np.asarray(rotation, dtype=np.float64)
    matrix = np.zeros((*rotations.shape[:-2], 4, 4))
    matrix[..., :3, :3] = rotations
    matrix[..., :3, 3] = translation
    matrix[..., 3, 3] = 1.0
    return matrix


def inverse(a_from_b: ArrayLike) -> Array:
    """`a_from_b` (..., 4, 4) -> `b_from_a`, by transposition: exact for rigid transforms only."""
    matrix = np.asarray(a_from_b, dtype=np.float64)
    rotation = np.swapaxes(matrix[..., :3, :3], -1, -2)
    return rigid_matrix(rotation, -(rotation @ matrix[..., :3, 3:])[..., 0])


def transform_points(a_from_b: ArrayLike, points: NDArray[np.floating]) -> NDArray[np.floating]:
    """Map points (..., 3) of frame b to frame a, in the precision of the points."""
    matrix = np.asarray(a_from_b, dtype=points.dtype)
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def interpolate(before: Array, after: Array, share: float) -> Array:
    """The pose at `share` (0 to 1) between two (4, 4) poses: linear translation, rotation about one axis."""
    turn = vector_from_matrix(before[:3, :3].T @ after[:3, :3])
    rotation = before[:3, :3] @ matrix_from_vector(share * turn)
    return rigid_matrix(rotation, (1.0 - share) * before[:3, 3] + share * after[:3, 3])


BODY_FROM_OPTICAL: Array = np.array(
    [
        [0.0, 0.0, 1.0, 0.0],
        [-1.0, 0.0, 0.0, 0.0],
        [0.0, -1.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
OPTICAL_FROM_BODY: Array = BODY_FROM_OPTICAL.T.copy()
OPENGL_FROM_OPTICAL: Array = np.diag([1.0, -1.0, -1.0, 1.0])  # x right, y up, z back, as in OpenGL cameras


for _axes in (BODY_FROM_OPTICAL, OPTICAL_FROM_BODY, OPENGL_FROM_OPTICAL):
    _axes.setflags(write=False)


def body_pose_from_optical(world_from_optical: ArrayLike) -> Array:
    """Pose(s) (..., 4, 4) of an optical frame -> of the body frame at the same place."""
    return np.asarray(world_from_optical, dtype=np.float64) @ OPTICAL_FROM_BODY

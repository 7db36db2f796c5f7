"""Rotations of 3D space between their representations, based on `scipy.spatial.transform.Rotation`.

Quaternions are (x, y, z, w) as in ROS messages; rotation vectors are axis times angle in radians.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]


def quaternion_from_matrix(rotation: ArrayLike) -> Array:
    """Rotation matrices (..., 3, 3) -> unit quaternions (..., 4), x y z w, with w >= 0."""
    matrices = np.asarray(rotation, dtype=np.float64)
    quaternions = Rotation.from_matrix(matrices.reshape(-1, 3, 3)).as_quat(canonical=True)
    return quaternions.reshape(*matrices.shape[:-2], 4)


def matrix_from_quaternion(quaternion: ArrayLike) -> Array:
    """Quaternions (..., 4), x y z w, of any positive norm -> rotation matrices (..., 3, 3).

    Raises ValueError for a quaternion of norm zero.
    """
    quaternions = np.asarray(quaternion, dtype=np.float64)
    matrices = Rotation.from_quat(quaternions.reshape(-1, 4)).as_matrix()
    return matrices.reshape(*quaternions.shape[:-1], 3, 3)


def matrix_from_vector(vector: ArrayLike) -> Array:
    """Rotation vectors (..., 3) in radians -> rotation matrices (..., 3, 3): the exponential map of SO(3)."""
    vectors = np.asarray(vector, dtype=np.float64)
    matrices = Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix()
    return matrices.reshape(*vectors.shape[:-1], 3, 3)


def vector_from_matrix(rotation: ArrayLike) -> Array:
    """Rotation matrices (..., 3, 3) -> rotation vectors (..., 3) in radians, of norm at most pi."""
    matrices = np.asarray(rotation, dtype=np.float64)
    vectors = Rotation.from_matrix(matrices.reshape(-1, 3, 3)).as_rotvec()
    return vectors.reshape(*matrices.shape[:-2], 3)


def angle_between(rotation: ArrayLike, other: ArrayLike) -> Array:
    """Angle in radians, (...,), of the rotation that separates two (..., 3, 3) rotation matrices.

    Exact also for small angles, unlike the arc cosine of the trace.
    """
    first, second = np.asarray(rotation, dtype=np.float64), np.asarray(other, dtype=np.float64)
    return np.linalg.norm(vector_from_matrix(np.swapaxes(first, -1, -2) @ second), axis=-1)


def cross_matrix(vector: ArrayLike) -> Array:
    """(3, 3) matrix whose product with a vector is the cross product vector (3,) x that vector."""
    x, y, z = np.asarray(vector, dtype=np.float64)
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])

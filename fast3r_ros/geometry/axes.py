"""The one place where axis conventions are converted (REP-103, REP-105).

Optical frames: x right, y down, z forward.  Body, base and map frames: x forward, y left, z up.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

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


def optical_pose_from_body(world_from_body: ArrayLike) -> Array:
    """Pose(s) (..., 4, 4) of a body frame -> of the optical frame at the same place."""
    return np.asarray(world_from_body, dtype=np.float64) @ BODY_FROM_OPTICAL

"""Similarity transforms of 3D space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sim3:
    """`a_from_b`: maps b coordinates to a coordinates, x_a = scale * rotation @ x_b + translation.

    scale: positive number.  rotation: (3, 3) float64.  translation: (3,) float64, in units of a.
    """

    scale: float
    rotation: Array
    translation: Array

    @staticmethod
    def identity() -> Sim3:
        """The identity transform."""
        return Sim3(1.0, np.eye(3), np.zeros(3))

    @staticmethod
    def from_rigid(a_from_b: Array) -> Sim3:
        """A (4, 4) rigid transform as a similarity of scale one."""
        return Sim3(1.0, a_from_b[:3, :3].copy(), a_from_b[:3, 3].copy())

    def __matmul__(self, other: Sim3) -> Sim3:
        """`a_from_b @ b_from_c` is `a_from_c`."""
        return Sim3(
            self.scale * other.scale,
            self.rotation @ other.rotation,
            self.scale * self.rotation @ other.translation + self.translation,
        )

    def inverse(self) -> Sim3:
        """`a_from_b` -> `b_from_a`."""
        rotation = self.rotation.T
        return Sim3(1.0 / self.scale, rotation, -(rotation @ self.translation) / self.scale)

    def apply(self, points: NDArray[np.floating]) -> NDArray[np.floating]:
        """Map points (..., 3) of frame b to frame a, in the precision of the points."""
        linear = (self.scale * self.rotation).T.astype(points.dtype)
        return points @ linear + self.translation.astype(points.dtype)

    def move_camera(self, b_from_camera: Array) -> Array:
        """Move a camera pose: (4, 4) rigid `b_from_camera` -> rigid `a_from_camera`, without the scale."""
        moved = np.eye(4)
        moved[:3, :3] = self.rotation @ b_from_camera[:3, :3]
        moved[:3, 3] = self.apply(b_from_camera[:3, 3])
        return moved

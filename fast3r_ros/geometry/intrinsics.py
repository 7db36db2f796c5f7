"""Pinhole intrinsics through changes of the pixel grid.

A pixel transform `b_from_a` is a (3, 3) float64 matrix that maps homogeneous pixel coordinates of image a to
those of image b.  Pixel centres are at integer + 0.5 in both: (0, 0) is the image's top left corner and a
resize is a pure scale.  The official Fast3R code counts pixel centres at integers instead, with the
principal point at (W/2, H/2); `shift_pixel_centres` converts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def intrinsics_matrix(focal: float | tuple[float, float], principal_point: tuple[float, float]) -> Array:
    """A (3, 3) pinhole matrix from focal length(s) and principal point, both in pixels."""
    focal_x, focal_y = focal if isinstance(focal, tuple) else (focal, focal)
    return np.array([[focal_x, 0.0, principal_point[0]], [0.0, focal_y, principal_point[1]], [0.0, 0.0, 1.0]])


def centred_intrinsics(focal: float, height: int, width: int) -> Array:
    """The (3, 3) pinhole matrix with one focal length (pixels) and the principal point in the centre."""
    return intrinsics_matrix(focal, (width / 2, height / 2))


def transform_intrinsics(b_from_a: ArrayLike, intrinsics: ArrayLike) -> Array:
    """Intrinsics (3, 3) for image a -> for image b; the pixel transform may scale and shift, not rotate."""
    moved = np.asarray(b_from_a, dtype=np.float64) @ np.asarray(intrinsics, dtype=np.float64)
    return moved / moved[2, 2]


def shift_pixel_centres(intrinsics: ArrayLike, offset: float) -> Array:
    """Move the principal point by `offset` pixels: +0.5 from centres at integers to ours, -0.5 back."""
    moved_from_image = np.array([[1.0, 0.0, offset], [0.0, 1.0, offset], [0.0, 0.0, 1.0]])
    return transform_intrinsics(moved_from_image, intrinsics)


def pixel_rays(intrinsics: ArrayLike, height: int, width: int) -> Array:
    """Ray directions (H, W, 3) in the camera frame with z = 1, through pixel centres at integer + 0.5."""
    matrix = np.asarray(intrinsics, dtype=np.float64)
    columns = (np.arange(width) + 0.5 - matrix[0, 2]) / matrix[0, 0]
    rows = (np.arange(height) + 0.5 - matrix[1, 2]) / matrix[1, 1]
    x, y = np.meshgrid(columns, rows)
    return np.stack([x, y, np.ones_like(x)], axis=-1)

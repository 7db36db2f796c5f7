"""Which of a view's points are worth keeping."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from fast3r_ros.mapping.config import PointsConfig
from fast3r_ros.mapping.data import Float32

_SAMPLE = 8192  # pixels that quantiles are taken of


def valid_points(points_camera: Float32, confidence: Float32, config: PointsConfig) -> NDArray[np.bool_]:
    """The points that are finite, in front of the camera, confident, not at a depth edge and not far away.

    points_camera: (h, w, 3) in the view's own camera frame, any scale.  confidence: (h, w).  Returns (h, w).
    The far limit also removes the sky, which networks place at a large depth or give a low confidence.
    """
    depth = np.ascontiguousarray(points_camera[..., 2])
    usable = np.isfinite(points_camera).all(axis=-1) & np.isfinite(confidence) & (depth > 0)
    if not usable.any():
        return usable
    sample = usable.ravel().nonzero()[0][:: max(1, usable.size // _SAMPLE)]
    threshold = max(config.min_confidence, float(np.quantile(confidence.ravel()[sample], config.drop_share)))
    far = config.max_depth_ratio * float(np.median(depth.ravel()[sample]))
    return usable & (confidence >= threshold) & (depth < far) & ~depth_edges(depth, usable, config.edge_ratio)


def depth_edges(depth: Float32, usable: NDArray[np.bool_], ratio: float) -> NDArray[np.bool_]:
    """Where the 3 x 3 neighbourhood spans more than `ratio` times the pixel's depth; unusable pixels don't
    count.
    """
    kernel = np.ones((3, 3), np.uint8)
    nearest = cv2.erode(np.where(usable, depth, np.float32(np.finfo(np.float32).max)), kernel)
    farthest = cv2.dilate(np.where(usable, depth, np.float32(0)), kernel)
    return np.asarray(usable & (farthest - nearest > ratio * depth))


@lru_cache(maxsize=16)
def grid_pixels(height: int, width: int, most: int) -> NDArray[np.int32]:
    """Flat pixel numbers of the densest regular grid with at most `most` pixels; one array for all
    keyframes.
    """
    stride = 1
    while -(-height // stride) * -(-width // stride) > most:
        stride += 1
    rows, columns = (np.arange(min(stride // 2, (n - 1) % stride), n, stride) for n in (height, width))
    pixels = (rows[:, None] * width + columns).ravel().astype(np.int32)
    pixels.setflags(write=False)
    return pixels

"""Which of a view's points are worth keeping."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from fast3r_ros.mapping.config import PointsConfig
from fast3r_ros.mapping.data import Float32


def valid_points(points_camera: Float32, confidence: Float32, config: PointsConfig) -> NDArray[np.bool_]:
    """The points that are finite, in front of the camera, confident, not at a depth edge and not far away.

    points_camera: (h, w, 3) in the view's own camera frame, any scale.  confidence: (h, w).  Returns (h, w).
    The far limit also removes the sky, which networks place at a large depth or give a low confidence.
    """
    depth = np.ascontiguousarray(points_camera[..., 2])
    usable = np.isfinite(points_camera).all(axis=-1) & np.isfinite(confidence) & (depth > 0)
    if not usable.any():
        return usable
    threshold = max(config.min_confidence, float(np.quantile(confidence[usable], config.drop_share)))
    far = config.max_depth_ratio * float(np.median(depth[usable]))
    return usable & (confidence >= threshold) & (depth < far) & ~depth_edges(depth, usable, config.edge_ratio)


def depth_edges(depth: Float32, usable: NDArray[np.bool_], ratio: float) -> NDArray[np.bool_]:
    """Where the 3 x 3 neighbourhood spans more than `ratio` times the pixel's depth; unusable pixels don't
    count.
    """
    kernel = np.ones((3, 3), np.uint8)
    nearest = cv2.erode(np.where(usable, depth, np.float32(np.finfo(np.float32).max)), kernel)
    farthest = cv2.dilate(np.where(usable, depth, np.float32(0)), kernel)
    return np.asarray(usable & (farthest - nearest > ratio * depth))


def grid_stride(height: int, width: int, most: int) -> int:
    """The smallest pixel stride with which a (height, width) image has at most `most` grid points."""
    stride = 1
    while len(range(stride // 2, height, stride)) * len(range(stride // 2, width, stride)) > most:
        stride += 1
    return stride

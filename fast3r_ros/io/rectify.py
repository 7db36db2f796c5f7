"""Takes the lens distortion that a CameraInfo describes out of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.data import Float32, Float64, UInt8

FISHEYE_MODELS = ("equidistant", "fisheye")
PINHOLE_MODELS = ("plumb_bob", "rational_polynomial", "thin_prism")


class Rectifier:
    """One camera's calibration as in sensor_msgs/CameraInfo, ready to undistort images of its size.

    matrix: (3, 3) `k` of the raw image, in pixels with OpenCV's centres (integers, as ROS has them).
    distortion: `d`, for `model`, `distortion_model`.  Raises UserError for values that are no calibration.
    """

    def __init__(self, matrix: Float64, distortion: Sequence[float], model: str, width: int, height: int):
        matrix = np.asarray(matrix, np.float64).reshape(3, 3)
        coefficients = np.asarray(distortion, np.float64)
        if not (np.isfinite(matrix).all() and np.isfinite(coefficients).all()):
            raise UserError("the camera info holds values that are not numbers; calibrate the camera")
        if matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
            raise UserError(f"the camera info has no focal length (k = {matrix.ravel().tolist()})")
        self._size = (width, height)
        self._maps: tuple[Any, Any] | None = None
        rectified: Any
        if not np.any(coefficients):
            rectified = matrix
        elif model in FISHEYE_MODELS:
            coefficients = coefficients[:4]
            rectified = cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(
                matrix, coefficients, self._size, np.eye(3), balance=0.0
            )
            self._maps = cv2.fisheye.initUndistortRectifyMap(
                matrix, coefficients, np.eye(3), rectified, self._size, cv2.CV_16SC2
            )
        elif model in PINHOLE_MODELS:
            rectified, _ = cv2.getOptimalNewCameraMatrix(matrix, coefficients, self._size, 0.0)
            self._maps = cv2.initUndistortRectifyMap(
                matrix, coefficients, None, rectified, self._size, cv2.CV_16SC2
            )
        else:
            known = ", ".join((*PINHOLE_MODELS, *FISHEYE_MODELS))
            raise UserError(f"unknown distortion model {model!r}; known are {known}")
        self.intrinsics = np.array(rectified, np.float64)
        self.intrinsics[:2, 2] += 0.5  # ours have pixel centres at integer + 0.5

    def __call__(self, image: UInt8) -> UInt8:
        """The undistorted image, (H, W, 3) uint8; `intrinsics` are those of its pixels.

        Raises UserError when the image has another size than the calibration.
        """
        self._check_size(image)
        if self._maps is None:
            return image
        return cv2.remap(image, *self._maps, cv2.INTER_LINEAR)  # type: ignore[return-value]

    def depth(self, depth: Float32) -> Float32:
        """The depth image (H, W) of the undistorted image; no depth is invented between two pixels.

        Raises UserError as for an image.
        """
        self._check_size(depth)
        if self._maps is None:
            return depth
        # the nearest pixel by the fixed-point maps would be the one to the upper left
        columns, rows = cv2.convertMaps(*self._maps, cv2.CV_32FC1)
        return cv2.remap(depth, columns, rows, cv2.INTER_NEAREST)  # type: ignore[return-value]

    def _check_size(self, image: NDArray[Any]) -> None:
        if (image.shape[1], image.shape[0]) != self._size:
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise UserError(f"the image has {size} pixels, its camera info {self._size[0]}x{self._size[1]}")

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
MIN_FOCAL, MAX_FOCAL = 0.01, 1000.0  # of the image's size: a lens of 178° and one of 3 minutes of arc
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
        rectified: Any = matrix
        self._maps: tuple[Any, Any] | None = None
        if np.any(coefficients):
            try:
                rectified, self._maps = _undistortion(matrix, coefficients, model, self._size)
            except cv2.error as error:
                text = (
                    f"the camera info describes no lens (d = {coefficients.tolist()}); calibrate the camera"
                )
                raise UserError(text) from error
        self.intrinsics = np.array(rectified, np.float64)
        share = self.intrinsics[[0, 1], [0, 1]] / self._size
        if not (
            np.isfinite(self.intrinsics).all() and (share > MIN_FOCAL).all() and (share < MAX_FOCAL).all()
        ):
            text = f"the camera info gives the intrinsics {self.intrinsics.ravel().tolist()}"
            raise UserError(f"{text} for {width}x{height} pixels; calibrate the camera")
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


def _undistortion(
    matrix: Float64, coefficients: Float64, model: str, size: tuple[int, int]
) -> tuple[Any, tuple[Any, Any]]:
    """(3, 3) matrix of the undistorted image, and OpenCV's maps to it.  Raises UserError and cv2.error."""
    if model in FISHEYE_MODELS:
        four = coefficients[:4]
        rectified: Any = cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(
            matrix, four, size, np.eye(3), balance=0.0
        )
        return rectified, cv2.fisheye.initUndistortRectifyMap(
            matrix, four, np.eye(3), rectified, size, cv2.CV_16SC2
        )
    if model in PINHOLE_MODELS:
        rectified, _ = cv2.getOptimalNewCameraMatrix(matrix, coefficients, size, 0.0)
        return rectified, cv2.initUndistortRectifyMap(
            matrix, coefficients, None, rectified, size, cv2.CV_16SC2
        )
    known = ", ".join((*PINHOLE_MODELS, *FISHEYE_MODELS))
    raise UserError(f"unknown distortion model {model!r}; known are {known}")

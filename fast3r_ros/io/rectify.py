"""Removes the lens distortion described by a CameraInfo from images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.data import Float32, Float64, UInt8

FISHEYE_MODELS = ("equidistant", "fisheye")
MIN_FOCAL, MAX_FOCAL = 0.01, 1000.0  # of the image's size: a lens of 178° and one of 3 minutes of arc
MIN_CENTRE, MAX_CENTRE = -1.0, 2.0  # range of the principal point, in image sizes
COEFFICIENTS = 14  # maximum number in OpenCV's models
LOOK = 32  # side in pixels of the small image on which a calibration is tested
LEAST_SEEN = 0.5  # minimum share of the undistorted image that the image fills
SAME_ASPECT = 0.01  # relative difference of the aspect ratio up to which an image was resized, not cropped
PINHOLE_MODELS = ("plumb_bob", "rational_polynomial", "thin_prism")


class Rectifier:
    """One camera's calibration as in sensor_msgs/CameraInfo, ready to undistort images of its size.

    The calibration is tested on a small image at once.  The tables for all pixels are made for the first
    image, so that a zooming lens costs nothing between images, and unused sizes cost nothing.

    matrix: (3, 3) `k` of the raw image, in pixels with OpenCV's centres (integers, as in ROS).
    distortion: `d`, for `model`, `distortion_model`.  Raises UserError for an invalid calibration.
    """

    def __init__(self, matrix: Float64, distortion: Sequence[float], model: str, width: int, height: int):
        matrix = np.asarray(matrix, np.float64).reshape(3, 3)
        coefficients = np.asarray(distortion, np.float64)
        if not (np.isfinite(matrix).all() and np.isfinite(coefficients).all()):
            raise UserError("the camera info holds values that are not numbers; calibrate the camera")
        if matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
            raise UserError(f"the camera info has no focal length (k = {matrix.ravel().tolist()})")
        if matrix[1, 0] != 0.0 or matrix[2].tolist() != [0.0, 0.0, 1.0]:
            raise UserError(
                f"k of the camera info is {matrix.ravel().tolist()}; it must be fx 0 cx 0 fy cy 0 0 1"
            )
        if len(coefficients) > COEFFICIENTS:
            raise UserError(f"d of the camera info has {len(coefficients)} values, {COEFFICIENTS} at most")
        self._size = (width, height)
        self._given = (matrix, coefficients, model)
        self._scaled: Rectifier | None = None
        self._lens: _Lens | None = None
        self._maps: tuple[Any, Any] | None = None
        rectified: Any = matrix
        if np.any(coefficients):
            try:
                self._lens = _Lens.of(matrix, coefficients, model, self._size)
                rectified, seen = self._lens.rectified, self._lens.share_seen(self._size)
            except cv2.error as error:
                raise UserError(_no_lens(coefficients)) from error
            if seen < LEAST_SEEN:
                raise UserError(_no_lens(coefficients))
        self.intrinsics = np.array(rectified, np.float64)
        share, centre = self.intrinsics[[0, 1], [0, 1]] / self._size, self.intrinsics[:2, 2] / self._size
        if not (
            np.isfinite(self.intrinsics).all()
            and (share > MIN_FOCAL).all()
            and (share < MAX_FOCAL).all()
            and (centre > MIN_CENTRE).all()
            and (centre < MAX_CENTRE).all()
        ):
            text = f"the camera info gives the intrinsics {self.intrinsics.ravel().tolist()}"
            raise UserError(f"{text} for {width}x{height} pixels; calibrate the camera")
        self.intrinsics[:2, 2] += 0.5  # pixel centres at integer + 0.5 from here on

    def for_size(self, width: int, height: int) -> Rectifier:
        """The same lens for images that were resized after calibration, cached for the next image.

        Raises UserError for another aspect ratio: the image was cropped at an unknown place.
        """
        if (width, height) == self._size:
            return self
        if abs(width / height / (self._size[0] / self._size[1]) - 1) > SAME_ASPECT:
            size = f"the image has {width}x{height} pixels"
            raise UserError(f"{size}, its camera info {self._size[0]}x{self._size[1]}, another aspect ratio")
        if self._scaled is None or self._scaled._size != (width, height):
            matrix, coefficients, model = self._given
            scaled = scaled_intrinsics(matrix, width / self._size[0], height / self._size[1])
            self._scaled = Rectifier(scaled, list(coefficients), model, width, height)
        return self._scaled

    def __call__(self, image: UInt8) -> UInt8:
        """The undistorted image, (H, W, 3) uint8; `intrinsics` are those of its pixels.

        Raises UserError when the image has another size than the calibration.
        """
        self._check_size(image)
        if self._lens is None:
            return image
        return cv2.remap(image, *self._tables(), cv2.INTER_LINEAR)  # type: ignore[return-value]

    def depth(self, depth: Float32) -> Float32:
        """The depth image (H, W) of the undistorted image, without interpolation between pixels.

        Raises UserError like `__call__`.
        """
        self._check_size(depth)
        if self._lens is None:
            return depth
        # the fixed-point maps would always take the pixel to the upper left
        columns, rows = cv2.convertMaps(*self._tables(), cv2.CV_32FC1)
        return cv2.remap(depth, columns, rows, cv2.INTER_NEAREST)  # type: ignore[return-value]

    def _tables(self) -> tuple[Any, Any]:
        """OpenCV's maps from undistorted pixels to the image's, made at their first use."""
        if self._maps is None:
            assert self._lens is not None
            self._maps = self._lens.maps(self._lens.rectified, self._size, cv2.CV_16SC2)
        return self._maps

    def _check_size(self, image: NDArray[Any]) -> None:
        if (image.shape[1], image.shape[0]) != self._size:
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise UserError(f"the image has {size} pixels, its camera info {self._size[0]}x{self._size[1]}")


def rectifier_of_info(info: Any, rectified: bool = False) -> Rectifier:
    """The calibration of a CameraInfo message of ROS 1 or 2, for the images that it belongs to.

    Binning and region of interest are applied to the calibration, which is that of the full sensor.
    rectified: the images are rectified, so the matrix is `p` and there is no distortion.  An empty model name
    means `plumb_bob`, as in ROS.  Raises UserError for an invalid calibration, also for zeros.
    """
    matrix = np.asarray(info.P if hasattr(info, "P") else info.p, np.float64).reshape(3, 4)[:, :3]
    if not rectified or not matrix.any():
        matrix = np.asarray(info.K if hasattr(info, "K") else info.k, np.float64).reshape(3, 3)
    distortion = [] if rectified else list(info.D if hasattr(info, "D") else info.d)
    width, height = int(info.width), int(info.height)
    if width <= 0 or height <= 0:
        raise UserError(f"the camera info is for images of {width}x{height} pixels; calibrate the camera")
    region = info.roi
    if 0 < region.width <= width and 0 < region.height <= height:
        matrix = matrix.copy()
        matrix[0, 2] -= region.x_offset * matrix[2, 2]
        matrix[1, 2] -= region.y_offset * matrix[2, 2]
        width, height = int(region.width), int(region.height)
    across, down = max(int(info.binning_x), 1), max(int(info.binning_y), 1)
    if across > 1 or down > 1:
        matrix = scaled_intrinsics(matrix, 1 / across, 1 / down)
        width, height = width // across, height // down
    return Rectifier(matrix, distortion, info.distortion_model or "plumb_bob", width, height)


def scaled_intrinsics(matrix: Float64, across: float, down: float) -> Float64:
    """A (3, 3) matrix, pixel centres at integers as OpenCV's, for an image resized by these factors."""
    scaled = np.array(matrix, np.float64)
    scaled[0] *= across
    scaled[1] *= down
    # resizing preserves the outer edges, not the pixel centres
    scaled[0, 2] += (across - 1) / 2 * matrix[2, 2]
    scaled[1, 2] += (down - 1) / 2 * matrix[2, 2]
    return scaled


def _no_lens(coefficients: Float64) -> str:
    return f"the camera info describes no lens (d = {coefficients.tolist()}); calibrate the camera"


@dataclass(frozen=True)
class _Lens:
    """A camera with distortion: its matrix (3, 3), that of the undistorted image, and the coefficients."""

    matrix: Float64
    rectified: Float64
    coefficients: Float64
    fisheye: bool

    @staticmethod
    def of(matrix: Float64, coefficients: Float64, model: str, size: tuple[int, int]) -> _Lens:
        """Raises UserError for an unknown model and cv2.error for invalid values."""
        if model in FISHEYE_MODELS:
            four = coefficients[:4]
            rectified: Any = cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(
                matrix, four, size, np.eye(3), balance=0.0
            )
            return _Lens(matrix, rectified, four, True)
        if model in PINHOLE_MODELS:
            rectified, _ = cv2.getOptimalNewCameraMatrix(matrix, coefficients, size, 0.0)
            return _Lens(matrix, rectified, coefficients, False)
        known = ", ".join((*PINHOLE_MODELS, *FISHEYE_MODELS))
        raise UserError(f"unknown distortion model {model!r}; known are {known}")

    def maps(self, rectified: Float64, size: tuple[int, int], kind: int) -> tuple[Any, Any]:
        """OpenCV's maps from an image with the matrix `rectified` to the distorted image."""
        make = cv2.fisheye.initUndistortRectifyMap if self.fisheye else cv2.initUndistortRectifyMap
        return make(self.matrix, self.coefficients, np.eye(3), rectified, size, kind)

    def share_seen(self, size: tuple[int, int]) -> float:
        """Share of the undistorted image that lies inside the distorted image of that size."""
        small = np.diag([LOOK / size[0], LOOK / size[1], 1.0]) @ self.rectified
        columns, rows = self.maps(small, (LOOK, LOOK), cv2.CV_32FC1)
        inside = (columns >= -1) & (columns <= size[0]) & (rows >= -1) & (rows <= size[1])  # false for NaN
        return float(inside.mean())

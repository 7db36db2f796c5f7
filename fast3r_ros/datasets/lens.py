"""Cameras with lens distortion, by COLMAP's and nerfstudio's names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fast3r_ros.datasets.posed import PosedFrame
from fast3r_ros.errors import UserError
from fast3r_ros.geometry.intrinsics import shift_pixel_centres
from fast3r_ros.mapping.data import Float64

# COLMAP's camera models: number of focal lengths, names of the distortion parameters that follow the
# principal point, fisheye or not.  Its pixel centres are at integer + 0.5, like ours.
MODELS: dict[str, tuple[int, tuple[str, ...], bool]] = {
    "SIMPLE_PINHOLE": (1, (), False),
    "PINHOLE": (2, (), False),
    "SIMPLE_RADIAL": (1, ("k1",), False),
    "RADIAL": (1, ("k1", "k2"), False),
    "OPENCV": (2, ("k1", "k2", "p1", "p2"), False),
    "FULL_OPENCV": (2, ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"), False),
    "SIMPLE_RADIAL_FISHEYE": (1, ("k1",), True),
    "RADIAL_FISHEYE": (1, ("k1", "k2"), True),
    "OPENCV_FISHEYE": (2, ("k1", "k2", "k3", "k4"), True),
}


@dataclass(frozen=True)
class Lens:
    """A camera's size (pixels), pinhole matrix (3, 3) and OpenCV distortion, none for a pinhole.

    fisheye: whether `distortion` is (k1 … k4) of OpenCV's fisheye model instead of (k1, k2, p1, p2, k3 …).
    """

    width: int
    height: int
    intrinsics: Float64
    distortion: tuple[float, ...] = ()
    fisheye: bool = False


def lens_of(model: str, width: int, height: int, parameters: Sequence[float], where: object) -> Lens:
    """A lens from a COLMAP model's parameters; raises UserError, naming `where`, for an unknown model."""
    if model not in MODELS:
        raise UserError(f"{where}: the camera model {model} is not supported; known are {', '.join(MODELS)}")
    focals, names, fisheye = MODELS[model]
    if len(parameters) != focals + 2 + len(names) or not np.isfinite(parameters).all() or parameters[0] <= 0:
        raise UserError(f"{where}: a camera {model} cannot have the parameters {list(parameters)}")
    x, y = parameters[focals : focals + 2]
    matrix = np.array([[parameters[0], 0.0, x], [0.0, parameters[focals - 1], y], [0.0, 0.0, 1.0]])
    return Lens(
        width, height, matrix, *coefficients(dict(zip(names, parameters[focals + 2 :], strict=True)), fisheye)
    )


def coefficients(named: dict[str, float], fisheye: bool) -> tuple[tuple[float, ...], bool]:
    """Named distortion parameters in OpenCV's order, () for none, and whether the model is fisheye."""
    order = ("k1", "k2", "k3", "k4") if fisheye else ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
    values = tuple(float(named.get(name, 0.0)) for name in order)
    return (values, fisheye) if any(values) or fisheye else ((), False)


def without_distortion(frame: PosedFrame, lens: Lens) -> PosedFrame:
    """The frame as seen by a pinhole camera with the lens's matrix; unchanged for a pinhole lens.

    The image is resampled; depth uses the nearest pixel, 0 outside of the original.
    """
    if not lens.distortion:
        return frame
    read_depth = frame.read_depth
    return replace(
        frame,
        read_image=_resampled(frame.read_image, lens, cv2.INTER_AREA),
        read_depth=None if read_depth is None else _resampled(read_depth, lens, cv2.INTER_NEAREST),
    )


def _resampled(read: Callable[[], Any], lens: Lens, interpolation: int) -> Callable[[], Any]:
    def resampled() -> NDArray[Any]:
        picture = read()
        key = (lens.intrinsics.tobytes(), lens.distortion, lens.fisheye, lens.width, lens.height)
        x, y = _pixel_map(*key, picture.shape[0], picture.shape[1])
        smooth = cv2.INTER_LINEAR if interpolation == cv2.INTER_AREA else interpolation
        return cv2.remap(picture, x, y, smooth)

    return resampled


@lru_cache(maxsize=4)
def _pixel_map(
    matrix: bytes,
    distortion: tuple[float, ...],
    fisheye: bool,
    width: int,
    height: int,
    rows: int,
    columns: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The position of each pixel of the pinhole image in the distorted one; both have (rows, columns)."""
    scaling = np.diag([columns / width, rows / height, 1.0])
    intrinsics = shift_pixel_centres(scaling @ np.frombuffer(matrix).reshape(3, 3), -0.5)  # OpenCV's centres
    function = cv2.fisheye.initUndistortRectifyMap if fisheye else cv2.initUndistortRectifyMap
    x, y = function(intrinsics, np.array(distortion), np.eye(3), intrinsics, (columns, rows), cv2.CV_32FC1)
    return np.asarray(x, np.float32), np.asarray(y, np.float32)

"""Images of a view's results, at network size or resampled to the camera image."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fast3r_ros.mapping.data import Float32, Float64, UInt8


def at_input_size(
    values: NDArray[Any], network_from_image: Float64, size: tuple[int, int], outside: float
) -> NDArray[Any]:
    """Values (h, w) at network size, resampled to the camera image (height, width), nearest neighbour.

    network_from_image: (3, 3), an axis-aligned scale and shift.  size: (width, height).  outside: value for
    pixels outside of the network's image.
    """
    width, height = size
    columns, seen_columns = _source(
        width, network_from_image[0, 0], network_from_image[0, 2], values.shape[1]
    )
    rows, seen_rows = _source(height, network_from_image[1, 1], network_from_image[1, 2], values.shape[0])
    resampled = values[rows[:, None], columns[None, :]]
    resampled[~seen_rows, :] = outside
    resampled[:, ~seen_columns] = outside
    return resampled


def _source(count: int, scale: float, shift: float, limit: int) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """For each of `count` pixels its pixel among `limit`, and whether there is one."""
    places = np.floor((np.arange(count) + 0.5) * scale + shift).astype(np.intp)
    return np.clip(places, 0, limit - 1), (places >= 0) & (places < limit)


def confidence_color(confidence: Float32, warmest: float) -> UInt8:
    """Confidence (h, w) as RGB (h, w, 3): logarithmic, dark at 1, red from `warmest` on, black where 0."""
    share = np.log(np.maximum(confidence, 1.0)) / np.log(warmest)
    grey = (np.clip(share, 0.0, 1.0) * 255).astype(np.uint8)
    rgb = cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    rgb[confidence == 0.0] = 0
    return rgb

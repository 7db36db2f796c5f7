"""A cloud as sent to the browser: in spatial chunks, each point with its confidence level and time slot.

The browser hides and colours points by itself (`page.js`).  The values for that are in the lowest 8 bits of
each coordinate, 24 bits per point, so that no other data is sent.  This moves a point by at most 2^-15 of its
distance from an origin near the map.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fast3r_ros.mapping.data import Cloud, Float32

STEPS = 4096  # confidence levels, and time slots
_LOGIT = 9.0  # levels are even steps of ln(confidence - 1) from -_LOGIT to _LOGIT
_SIDE = 8  # chunks along an axis before their numbers repeat: the browser never has more than 8^3
_SMALLEST = np.float32(1e-30)  # smaller coordinates could lose their bits: GPUs flush denormals


def confidence_levels(confidence: Float32) -> NDArray[np.uint16]:
    """Levels (N,) of confidences >= 1, in even steps of the network's output before 1 + exp(x)."""
    raw = np.log(np.maximum(confidence.astype(np.float64) - 1, np.exp(-_LOGIT)))
    share = np.clip((raw + _LOGIT) / (2 * _LOGIT), 0, 1)
    return np.round(share * (STEPS - 1)).astype(np.uint16)


def marked(points: Float32, levels: NDArray[np.uint16], slots: NDArray[np.uint16]) -> Float32:
    """The points (N, 3) with their levels and slots in the lowest bits."""
    sign = np.where(points < 0, np.float32(-1), np.float32(1))
    away = np.where(np.abs(points) < _SMALLEST, sign * _SMALLEST, points).astype(np.float32)
    bits = away.view(np.uint32) & np.uint32(0xFFFFFF00)
    level, slot = levels.astype(np.uint32), slots.astype(np.uint32)
    bits[:, 0] |= level & 255
    bits[:, 1] |= (level >> 8) | ((slot & 15) << 4)
    bits[:, 2] |= slot >> 4
    return bits.view(np.float32)


def cell_size(points: Float32) -> float:
    """Side of a chunk: a power of two between a sixteenth and an eighth of the map's longest side."""
    if not len(points):
        return 1.0
    low, high = np.percentile(points[:: max(1, len(points) // 50_000)], (2, 98), axis=0)
    return float(2.0 ** np.floor(np.log2(max(float((high - low).max()), 1e-6) / _SIDE)))


def origin_near(points: Float32, cell: float) -> Float32:
    """(3,) origin of a map's points: 0, or a place near the points when they are far from 0.

    It is a multiple of 64 cells, so that it rarely changes while a map grows.
    """
    if not len(points):
        return np.zeros(3, np.float32)
    step = 64 * cell
    middle = np.median(points[:: max(1, len(points) // 50_000)], axis=0)
    return (np.round(middle.astype(np.float64) / step) * step).astype(np.float32)


def chunk_numbers(points: Float32, cell: float) -> NDArray[np.int64]:
    """The chunk (N,) of each point, from the point alone, so unchanged parts of a map keep their chunks."""
    place = np.mod(np.floor(points / np.float32(cell)), _SIDE).astype(np.int64)
    return place @ np.array([1, _SIDE, _SIDE**2])


def places(points: Float32, cell: float) -> NDArray[np.int64]:
    """A number (N,) for each point, equal for all points in the same cube of side `cell`."""
    steps = np.floor(points / np.float32(cell)).astype(np.int64)
    return (steps * np.array([1, 1 << 21, 1 << 42])).sum(1)


def thinned(cloud: Cloud, most: int) -> Cloud:
    """About `most` points of a cloud at most, at the same places in every call."""
    step = -(-len(cloud.points) // most)
    if step <= 1:
        return cloud
    mixed = places(cloud.points, cell_size(cloud.points) / 256).astype(np.uint64)
    with np.errstate(over="ignore"):
        mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)
    kept = (mixed >> np.uint64(40)) % np.uint64(step) == 0
    return Cloud(cloud.points[kept], cloud.colors[kept], cloud.confidence[kept])

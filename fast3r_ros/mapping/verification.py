"""Geometric verification of retrieved keyframes in a window.

A network also places a keyframe of a different scene somewhere in the window, perhaps confidently; fitted to
its own points in the map, it agrees with itself.  A correct keyframe's points lie on the surfaces that the
other views of the window see, and theirs on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fast3r_ros.mapping.data import Float64
from fast3r_ros.mapping.placement import RegisteredWindow
from fast3r_ros.mapping.transfer import to_host

_PIXELS = 1200  # pixels per view, on a regular grid
_LEAST_SURE = 0.2  # share of a view's least confident pixels that is ignored
_SAME_SURFACE = 0.08  # maximum relative depth difference of one surface
_LEAST_SHARED = 0.15  # minimum share of one view's points visible in the other for a comparison
_OF_USUAL = 0.6  # minimum agreement, relative to that of the other views
_LEAST, _ENOUGH = 0.3, 0.55  # bounds of the minimum agreement


@dataclass(frozen=True)
class _View:
    """One view on a grid: (h, w) depth in window units, NaN where not confident, with its camera.

    points: (N, 3) of the confident pixels in `window`.  matrix: (3, 3) from its camera to grid positions.
    """

    depth: Float64
    points: Float64
    pose: Float64
    matrix: Float64

    def sees(self, points: Float64) -> tuple[int, int]:
        """Number of points (N, 3) in `window` on its confident pixels, and number on its surfaces."""
        local = (points - self.pose[:3, 3]) @ self.pose[:3, :3]
        local = local[local[:, 2] > 1e-6]
        column, row, _ = np.floor(local @ self.matrix.T / local[:, 2:]).T
        height, width = self.depth.shape
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        expected = local[inside, 2]
        found = self.depth[row[inside].astype(np.int64), column[inside].astype(np.int64)]
        both = np.isfinite(found)
        same = np.abs(found[both] - expected[both]) < _SAME_SURFACE * found[both]
        return int(both.sum()), int(same.sum())


def verified(window: RegisteredWindow, retrieved: Sequence[int], others: Sequence[int]) -> list[int]:
    """The retrieved views, by their numbers in the window, that agree with the others.

    The usual agreement of views depends on the network: a retrieved view must not be much worse than the
    other views of the window.
    """
    views = _views(window, [*retrieved, *others])
    mine, rest = [v for v in retrieved if v in views], [v for v in others if v in views]
    usual = [max(agreement(views[a], views[b]) for b in rest if b != a) for a in rest if len(rest) > 1]
    least = float(np.clip(_OF_USUAL * np.median(usual), _LEAST, _ENOUGH)) if usual else _ENOUGH
    return [v for v in mine if any(agreement(views[v], views[other]) >= least for other in rest)]


def agreement(one: _View, other: _View) -> float:
    """Share of the common part of two views that lies on one surface; 0 for views that share too little."""
    (seen, same), (back, same_back) = other.sees(one.points), one.sees(other.points)
    shared = max(seen / max(len(one.points), 1), back / max(len(other.points), 1))
    return (same + same_back) / (seen + back) if shared >= _LEAST_SHARED else 0.0


def _views(window: RegisteredWindow, numbers: Sequence[int]) -> dict[int, _View]:
    """The views that could be placed, by number; one copy from the device for all."""
    placed = [number for number in numbers if window.poses.ok[number]]
    grids, tensors = [], []
    for number in placed:
        points = window.reconstruction.points_local[number]
        height, width = points.shape[:2]
        stride = max(1, round(float(np.sqrt(height * width / _PIXELS))))
        grids.append((stride, stride // 2))
        chosen = slice(stride // 2, None, stride)
        tensors.append(window.cameras.kept(number, points)[chosen, chosen])
        tensors.append(window.reconstruction.confidence_local[number][chosen, chosen])
    arrays = to_host(*(tensor.contiguous() for tensor in tensors)) if tensors else []
    return {
        number: _view(window, number, grid, points.astype(np.float64), confidence)
        for number, grid, points, confidence in zip(placed, grids, arrays[::2], arrays[1::2], strict=True)
    }


def _view(
    window: RegisteredWindow,
    number: int,
    grid: tuple[int, int],
    points: Float64,
    confidence: NDArray[np.float32],
) -> _View:
    pose, scale = window.poses.window_from_camera[number], float(window.poses.scale[number])
    sure = np.isfinite(points).all(2) & (points[..., 2] > 0)
    if sure.any():
        sure &= confidence > np.quantile(confidence[sure], _LEAST_SURE)
    stride, first = grid
    # grid position n is pixel n * stride + first, whose centre is half a pixel further
    places = np.array([[1 / stride, 0, 0.5 - (first + 0.5) / stride], [0, 1 / stride, 0], [0, 0, 1]])
    places[1, 2] = places[0, 2]
    return _View(
        np.where(sure, scale * points[..., 2], np.nan),
        scale * points[sure] @ pose[:3, :3].T + pose[:3, 3],
        pose,
        places @ window.cameras.intrinsics[number],
    )

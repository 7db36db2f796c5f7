"""The fused cloud: one surface from the depths of many views, the free space in front of it, and both in
voxels that follow their keyframes.

A view's depth is averaged, along its own rays, with its neighbours' measurements of the same surface.  Points
that the neighbours look through, or do not see where they should, are removed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.data import Cloud, Float32, Float64, Keyframe, KeyframePoints, UInt8
from fast3r_ros.mapping.voxels import VoxelCloud

_SAME = 0.3  # relative depth differences used to measure their spread
_GATE_SPREADS = 3.0  # standard deviations; smaller differences belong to the same surface
_GATE = (0.02, 0.12)  # bounds of the relative difference within one surface
_CONTRADICTIONS = 2  # a point is removed if this many more views look through it than confirm it
_UNSEEN = 3  # a point is removed if this many views see something else and none confirms it
_RAYS = 3500  # maximum number of free-space rays per view: from every n-th row and column of the grid
_STEPS = 512  # maximum number of steps per ray, bounds time and memory for tiny voxels
_HOLES = 2  # maximum number of pixels without a point in a ray's 3 x 3 neighbourhood
_MARGIN = 0.05  # a ray ends before the surface by this share of its depth


@dataclass(frozen=True)
class DepthView:
    """A view on its regular grid of pixels.

    points: (n, 3) float32 in its camera frame, in its own unit.  confidence: (n,), 0 without a point.
    pixels: (n,) flat pixel numbers.  width: pixels per row.  intrinsics: (3, 3).  map_from_local: its pose.
    """

    points: Float32
    confidence: Float32
    pixels: NDArray[np.int32]
    width: int
    intrinsics: Float64
    map_from_local: Sim3

    @cached_property
    def grid(self) -> tuple[int, int, int] | None:
        """(rows, columns, stride) of the grid; None if the pixels do not form a full grid."""
        pixels = self.pixels
        if not len(pixels):
            return None
        columns = int((pixels // self.width == pixels[0] // self.width).sum())
        rows = len(pixels) // columns
        stride = int(pixels[1] - pixels[0]) if columns > 1 else 1
        if columns == 1 and rows > 1:
            stride = int(pixels[1] - pixels[0]) // self.width
        steps = stride * (self.width * np.arange(rows)[:, None] + np.arange(columns))
        whole = rows * columns == len(pixels) and np.array_equal(pixels - pixels[0], steps.ravel())
        return (rows, columns, stride) if whole else None


@dataclass(frozen=True)
class PlacedPoints:
    """The valid points of a view: (m, 3) float32 in `map`, and their confidence (m,)."""

    points: Float32
    confidence: Float32

    @staticmethod
    def of(view: DepthView) -> PlacedPoints:
        """The view's points, without pixels that have none."""
        there = np.flatnonzero(view.confidence > 0)
        points = view.points.take(there, axis=0)
        return PlacedPoints(view.map_from_local.apply(points), view.confidence[there])


def depth_corrections(view: DepthView, neighbours: Sequence[PlacedPoints]) -> Float32:
    """Factors (n,) that move a view's points along its rays to the surface shared with its neighbours.

    The surface is the mean of its own depth and the neighbours', weighted by confidence.  NaN without a
    point, or if the neighbours contradict it: more views, and at least two, look through it than confirm it,
    or three see something else and none confirms it.
    """
    count, views = len(view.pixels), len(neighbours)
    there = view.confidence > 0
    none = np.where(there, np.float32(1), np.float32(np.nan))
    if not views or not there.any() or view.grid is None:
        return none
    place, weight, ratio, number = _seen(view, neighbours, there)
    apart = np.abs(ratio)
    near = apart[apart < _SAME]
    gate = np.clip(_GATE_SPREADS * 1.4826 * float(np.median(near)) if near.size else 0.0, *_GATE)
    cell, agreeing = number * count + place, apart <= gate
    same, different = np.flatnonzero(agreeing), np.flatnonzero(~agreeing)
    confirming, met = cell[same], place[same]
    points = np.bincount(confirming, minlength=views * count)
    # of a view that has more points in one pixel their mean counts
    share = weight[same] / points[confirming]
    weights = np.bincount(met, share, count)
    offsets = np.bincount(met, share * ratio[same], count)

    def views_with(cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of views (n,) with a point in one of the cells."""
        has = np.zeros(views * count, bool)
        has[cells] = True
        return np.count_nonzero(has.reshape(views, count), axis=0)

    agree = views_with(confirming)
    different = different[points[cell[different]] == 0]  # unless the same view also confirms it
    other, through = views_with(cell[different]), views_with(cell[different[ratio[different] > gate]])
    wrong = ((through > agree) & (through >= _CONTRADICTIONS)) | ((other >= _UNSEEN) & (agree == 0))
    factor = 1 + offsets / np.maximum(weights + view.confidence, 1e-6)
    return np.where(wrong, np.float32(np.nan), none * factor).astype(np.float32)


def _seen(
    view: DepthView, neighbours: Sequence[PlacedPoints], there: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], Float32, Float32, NDArray[np.int64]]:
    """The neighbours' points in the view's grid.

    Returns (grid position, weight, relative depth difference, number of the neighbour), each (m,).
    """
    assert view.grid is not None
    rows, columns, stride = view.grid
    pose = view.map_from_local
    camera_from_map = pose.rotation.T.astype(np.float32)
    origin = camera_from_map @ pose.translation.astype(np.float32)
    points = np.concatenate([each.points for each in neighbours])
    x, y, depth = camera_from_map @ points.T - origin[:, None]
    front = depth > 1e-6
    inverse = 1 / np.where(front, depth, np.float32(1))
    camera, first = view.intrinsics, int(view.pixels[0])
    # of the grid; the middle of pixel 0 is at 0.5
    focal_x, focal_y = np.float32(camera[0, 0] / stride), np.float32(camera[1, 1] / stride)
    centre_x = np.float32((camera[0, 2] - first % view.width - 0.5) / stride)
    centre_y = np.float32((camera[1, 2] - first // view.width - 0.5) / stride)
    column, row = focal_x * x * inverse + centre_x, focal_y * y * inverse + centre_y
    inside = front & (column > -0.5) & (column < columns - 0.5) & (row > -0.5) & (row < rows - 0.5)
    kept = np.flatnonzero(inside)
    place = np.rint(row[kept]).astype(np.int64) * columns + np.rint(column[kept]).astype(np.int64)
    own = np.where(there, view.points[:, 2] * np.float32(pose.scale), np.float32(np.nan))
    number = np.repeat(np.arange(len(neighbours)), [len(each.points) for each in neighbours])
    weight = np.concatenate([each.confidence for each in neighbours])
    return place, weight[kept], depth[kept] / own[place] - 1, number[kept]


def free_samples(view: DepthView, step: float) -> Float32:
    """Points (m, 3) in `map`, `step` apart, on the rays between the camera and the visible surface.

    Empty if its pixels do not form a full grid.  A ray ends two steps and a twentieth of its depth before the
    nearest point of its neighbourhood, or after 512 steps.  It is omitted if three pixels of the
    neighbourhood have no point, so that thin objects are not carved away.
    """
    nothing = np.zeros((0, 3), np.float32)
    if view.grid is None:
        return nothing
    rows, columns, _ = view.grid
    there = (view.confidence > 0).reshape(rows, columns)
    depth = np.where(there, view.points[:, 2].reshape(rows, columns), np.float32(np.inf))
    nearest = np.asarray(cv2.erode(depth, np.ones((3, 3), np.uint8)))
    holes = np.asarray(cv2.boxFilter((~there).astype(np.float32), -1, (3, 3), normalize=False))
    apart = int(np.ceil(np.sqrt(rows * columns / _RAYS)))
    chosen = (slice(apart // 2, None, apart),) * 2
    whole = (there & (holes <= _HOLES))[chosen].ravel()
    ends = view.points.reshape(rows, columns, 3)[chosen].reshape(-1, 3)[whole]
    share = (nearest[chosen].ravel()[whole]) / ends[:, 2]
    pose = view.map_from_local
    if not len(ends):
        return nothing
    length = np.linalg.norm(ends, axis=1) * np.float32(pose.scale)
    steps = np.clip((1 - _MARGIN) * share * length / step - 2, 0, _STEPS).astype(np.int64)
    ray = np.repeat(np.arange(len(ends)), steps)
    ahead = np.arange(len(ray)) - np.repeat(np.cumsum(steps) - steps, steps) + 1
    along = (ahead * np.float32(step) / length[ray])[:, None]
    return pose.apply(ends[ray] * along)


_NEAR = 16  # keyframes before and after one that are candidates for its neighbours
_NEIGHBOURS, _PROVISIONAL_NEIGHBOURS = 12, 6  # number of neighbours whose depth is averaged with a keyframe's
_SAME_WAY = 0.5  # minimum cosine between the viewing directions of neighbours


@dataclass(frozen=True)
class _Fused:
    """A keyframe as added to the cloud: exactly this must be removed when it moves.

    carves: its rays mark free space.
    """

    keyframe: Keyframe
    carves: bool

    def holds(self, keyframe: Keyframe, carves: bool) -> bool:
        """Whether the cloud already contains the keyframe in this state."""
        mine = self.keyframe
        same = mine.map_from_local is keyframe.map_from_local and mine.points is keyframe.points
        return same and mine.submap == keyframe.submap and self.carves == carves

    def content(self, ray_step: float) -> tuple[Float32, UInt8, Float32, Float32 | None, int]:
        """Its contribution to the cloud, see `VoxelCloud.add`."""
        view, points = _view(self.keyframe), self.keyframe.points
        assert points is not None
        placed = PlacedPoints.of(view)
        passed = free_samples(view, ray_step) if self.carves else None
        return (
            placed.points,
            points.colors[points.confidence > 0],
            placed.confidence,
            passed,
            self.keyframe.id,
        )


class FusedCloud:
    """The keyframes' contributions to the voxels, and provisional surfaces of keyframes in the window.

    Each submap has its own voxels, because its pose relative to the others is unknown.
    """

    def __init__(self, voxel_size: float) -> None:
        self.voxel_size = voxel_size  # edge, in map units
        self._voxels: dict[int, VoxelCloud] = {}  # by submap
        self._fused: dict[int, _Fused] = {}
        # for keyframes in the window: their own points, and those on the common surface
        self._provisional: dict[int, tuple[KeyframePoints, KeyframePoints]] = {}

    def refined(
        self, keyframes: Mapping[int, Keyframe], final: Collection[int], provisional: Iterable[int]
    ) -> list[Keyframe]:
        """The final keyframes with their points moved along their rays to the surface shared with neighbours.

        For provisional keyframes these points are stored for `fuse`.
        """
        changed: dict[int, Keyframe] = {}
        placed: dict[int, PlacedPoints] = {}
        for identity in (*final, *provisional):
            keyframe = keyframes[identity]
            if keyframe.points is None:
                continue
            most = _NEIGHBOURS if identity in final else _PROVISIONAL_NEIGHBOURS
            neighbours = _neighbours(keyframe, keyframes, most)
            for other in neighbours:
                if other not in placed:
                    placed[other] = PlacedPoints.of(_view(changed.get(other, keyframes[other])))
            points = _corrected(keyframe, [placed[other] for other in neighbours])
            if identity in final:
                changed[identity] = replace(keyframe, points=points)
                self._provisional.pop(identity, None)
                placed.pop(identity, None)
            else:
                self._provisional[identity] = keyframe.points, points
        return list(changed.values())

    def fuse(self, keyframe: Keyframe, final: bool) -> None:
        """Replace a keyframe's contribution to the clouds by its present one, in its submap's cloud.

        A keyframe without points is removed.  final: its rays mark free space.
        """
        new, old = self.shown(keyframe), self._fused.get(keyframe.id)
        if old is not None and old.holds(new, final):
            return
        if old is not None:
            submap = old.keyframe.submap
            voxels = self._voxels[submap]
            voxels.remove(*old.content(voxels.ray_step))
            del self._fused[keyframe.id]
            if not len(voxels) and not any(each.keyframe.submap == submap for each in self._fused.values()):
                del self._voxels[submap]
        if new.points is not None:
            if new.submap not in self._voxels:
                self._voxels[new.submap] = VoxelCloud(self.voxel_size)
            voxels = self._voxels[new.submap]
            fused = self._fused[keyframe.id] = _Fused(new, final)
            voxels.add(*fused.content(voxels.ray_step))

    def shown(self, keyframe: Keyframe) -> Keyframe:
        """A keyframe with its points for the cloud."""
        own, surface = self._provisional.get(keyframe.id, (None, None))
        if own is None or keyframe.points is not own:
            self._provisional.pop(keyframe.id, None)
            return keyframe
        return replace(keyframe, points=surface)

    def cloud(self, submap: int) -> Cloud:
        """The whole cloud of one submap in `map`."""
        return self._voxels.get(submap, VoxelCloud(self.voxel_size)).cloud()

    def __len__(self) -> int:
        """Number of points of all submaps."""
        return sum(map(len, self._voxels.values()))

    @property
    def nbytes(self) -> int:
        """Memory of the voxels and of provisional surfaces in bytes."""
        voxels = sum(each.nbytes for each in self._voxels.values())
        return voxels + sum(surface.nbytes for _, surface in self._provisional.values())


def _neighbours(keyframe: Keyframe, keyframes: Mapping[int, Keyframe], most: int) -> list[int]:
    """Keyframes with points shortly before and after one, with a similar viewing direction, nearest first."""
    direction, found = keyframe.map_from_local.rotation[:, 2], []
    for apart in range(1, _NEAR + 1):
        for identity in (keyframe.id - apart, keyframe.id + apart):
            other = keyframes.get(identity)
            if other is None or other.points is None or other.submap != keyframe.submap:
                continue
            if float(other.map_from_local.rotation[:, 2] @ direction) > _SAME_WAY:
                found.append(identity)
    return found[:most]


def _view(keyframe: Keyframe) -> DepthView:
    points, image = keyframe.points, keyframe.image
    assert points is not None
    assert image is not None
    width, place = image.shape[1], keyframe.map_from_local
    return DepthView(points.points, points.confidence, points.pixels, width, keyframe.intrinsics, place)


def _corrected(keyframe: Keyframe, neighbours: Sequence[PlacedPoints]) -> KeyframePoints:
    """The keyframe's points on the surface shared with its neighbours; contradicted ones get confidence 0."""
    points = keyframe.points
    assert points is not None
    factor = depth_corrections(_view(keyframe), neighbours)
    confidence = np.where(np.isfinite(factor), points.confidence, np.float32(0))
    return replace(points, points=points.points * factor[:, None], confidence=confidence)

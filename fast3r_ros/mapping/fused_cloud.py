"""The fused cloud of a map: its keyframes' points on common surfaces, in moving voxels."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fast3r_ros.mapping.data import Cloud, Float32, UInt8
from fast3r_ros.mapping.surfaces import DepthView, PlacedPoints, depth_corrections, free_samples
from fast3r_ros.mapping.voxels import VoxelCloud

if TYPE_CHECKING:
    from fast3r_ros.mapping.map import Keyframe, KeyframePoints

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

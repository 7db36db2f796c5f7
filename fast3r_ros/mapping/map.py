"""The map: keyframes with their points in their own camera frame, and the fused clouds that follow them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from itertools import chain, islice

import numpy as np
from scipy.spatial import cKDTree

from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.config import MapConfig
from fast3r_ros.mapping.data import (
    BARE_KEYFRAME_BYTES,
    Cloud,
    Float64,
    Keyframe,
    KeyframePoints,
)
from fast3r_ros.mapping.fused_cloud import FusedCloud

__all__ = ["Keyframe", "KeyframePoints", "Map"]

_CULLED_AT_ONCE = 16  # keyframes per window, so that a window's cost stays bounded
_SPARE_SHARE = 8  # every n-th keyframe is chosen for culling at once
_FULL = 0.97  # share of the memory bound at which culling starts
_CLOUD_GROWTH = 1.6  # rows grow by half, their table may double
_TRAJECTORY_SHARE = 0.1  # share of the memory for culled keyframes; above it every second one is removed


class Map:
    """Keyframes by id and the fused cloud of each submap; `version` counts the changes."""

    def __init__(self, config: MapConfig, voxel_size: float) -> None:
        self.config = config
        self.keyframes: dict[int, Keyframe] = {}
        self.metres = False
        self.unscaled: set[int] = set()  # submaps of a metric map whose own scale is unknown
        self.version = 0
        self._cloud = FusedCloud(voxel_size)
        self._moved: dict[int, None] = {}  # ids to fuse again, in order of moving
        self._held: dict[int, None] = {}  # ids of keyframes with points
        self._spare: deque[int] = deque()  # ids to cull next
        # culled keyframe -> its guide, and the guide's pose when the culled one's pose was correct
        self._guides: dict[int, tuple[int, Sim3]] = {}
        self._bytes = 0

    @staticmethod
    def restored(
        config: MapConfig,
        keyframes: Iterable[Keyframe],
        metres: bool,
        voxel_size: float,
        unscaled: Iterable[int] = (),
    ) -> Map:
        """The map made of a saved map's keyframes."""
        result = Map(config, voxel_size)
        result.metres, result.unscaled = metres, set(unscaled)
        result.put(keyframes)
        for identity in result.keyframes.keys() - result._held.keys():
            result._find_guide(identity)
        result.fuse_moved()
        return result

    def put(self, keyframes: Iterable[Keyframe]) -> None:
        """Add keyframes or replace those of the same id; `fuse` updates the cloud."""
        for keyframe in keyframes:
            previous = self.keyframes.get(keyframe.id)
            self._bytes += keyframe.nbytes - (0 if previous is None else previous.nbytes)
            self.keyframes[keyframe.id] = keyframe
            self._moved[keyframe.id] = None
            if keyframe.points is not None:
                self._held[keyframe.id] = None
            else:
                self._held.pop(keyframe.id, None)
        self.version += 1

    def refine(self, final: Collection[int], provisional: Collection[int]) -> None:
        """Move the points of keyframes along their rays to the surface shared with their neighbours.

        final: keyframes that have left the window; they keep these points.  provisional: for the others only
        the cloud gets them.
        """
        for keyframe in self._cloud.refined(self.keyframes, final, provisional):
            self.put([keyframe])

    def fuse(self, ids: Iterable[int], final: bool = True) -> None:
        """Update the cloud for these keyframes.

        final: their rays mark free space.
        """
        for identity in ids:
            self._moved.pop(identity, None)
            self._cloud.fuse(self.keyframes[identity], final)

    def shown(self) -> list[Keyframe]:
        """All keyframes with their points in the cloud, which differ for keyframes still in the window."""
        return [self._cloud.shown(keyframe) for keyframe in self.keyframes.values()]

    def fuse_moved(self, most: int | None = None, later: Collection[int] = ()) -> None:
        """Fuse at most `most` of the moved keyframes (all if None), in the order of moving.

        later: keyframes still in the window, which are fused when they leave it.
        """
        waiting = [identity for identity in self._moved if identity not in later]
        self.fuse(waiting if most is None else waiting[:most])

    def move(self, poses: dict[int, Sim3]) -> None:
        """Replace `map_from_local` of keyframes, after a loop closure for example."""
        self.put([replace(self.keyframes[i], map_from_local=pose) for i, pose in poses.items()])

    def join(self, submap: int, other: int, other_from_submap: Sim3) -> None:
        """Move a submap's keyframes to their poses in another submap, and make them part of it."""
        self.follow()
        mine = [k for k in self.keyframes.values() if k.submap == submap]
        self.put([replace(_transformed(k, other_from_submap), submap=other) for k in mine])
        self.unscaled.discard(submap)
        self._have_followed()

    def known_scale(self, submap: int) -> bool:
        """Whether a submap is in metres."""
        return self.metres and submap not in self.unscaled

    def rescale_submap(self, submap: int, factor: float, about: Float64 | None = None) -> Sim3:
        """Convert one submap with an unknown or uncertain scale to metres; returns the change.

        about: (3,) the fixed point, None: the first keyframe's camera.
        """
        self.follow()
        self.unscaled.discard(submap)
        mine = [k.id for k in self.keyframes.values() if k.submap == submap]
        change = self.rescale_part(mine, factor, about)
        self._have_followed()
        return change

    def rescale_part(self, ids: Sequence[int], factor: float, about: Float64 | None = None) -> Sim3:
        """Scale some keyframes about a point (3,) or the first camera; returns the change."""
        origin = self.keyframes[ids[0]].map_from_local.translation if about is None else about
        change = Sim3(factor, np.eye(3), (1.0 - factor) * origin)
        self.put([_transformed(self.keyframes[i], change) for i in ids])
        return change

    def rescale(self, new_from_old: Sim3, voxel_size: float, submap: int) -> None:
        """Convert the whole map to metres by one similarity, measured on one submap, and fuse again."""
        self.follow()
        self.metres = True
        self.unscaled = {k.submap for k in self.keyframes.values()} - {submap}
        self.keyframes = {i: _transformed(k, new_from_old) for i, k in self.keyframes.items()}
        self._have_followed()
        self._cloud = FusedCloud(voxel_size)
        self.version += 1
        self.fuse(list(self.keyframes))

    def follow(self) -> None:
        """Update the poses of culled keyframes, which stay unchanged in between.

        Each moves with the keyframe next to it when it was culled, which may be culled, too.  This is not
        done per window, because its cost grows with the length of the trajectory.
        """
        done: set[int] = set()
        for identity in list(self._guides):
            chain = []
            while identity in self._guides and identity not in done:
                done.add(identity)
                chain.append(identity)
                identity = self._guides[identity][0]
            for i in reversed(chain):
                guide, before = self._guides[i]
                now = self.keyframes[guide].map_from_local
                if now is not before:
                    pose = now @ before.inverse() @ self.keyframes[i].map_from_local
                    self.keyframes[i] = replace(self.keyframes[i], map_from_local=pose)
                    self._guides[i] = guide, now

    def _have_followed(self) -> None:
        """Record that culled keyframes were moved together with their guides."""
        self._guides = {i: (g, self.keyframes[g].map_from_local) for i, (g, _) in self._guides.items()}

    def _find_guide(self, identity: int) -> None:
        """Let a culled keyframe follow the nearest one of its submap with points, preferably a later one."""
        held, submap = list(self._held), self.keyframes[identity].submap
        place = bisect_left(held, identity)
        for guide in chain(islice(held, place, None), reversed(held[:place])):
            if self.keyframes[guide].submap == submap:
                self._guides[identity] = guide, self.keyframes[guide].map_from_local
                return
        self._guides.pop(identity, None)

    def held(self) -> list[Keyframe]:
        """The keyframes with points, oldest first."""
        return [self.keyframes[i] for i in self._held]

    def cull(self, protected: set[int], other_bytes: int = 0) -> set[int]:
        """Cull the most redundant keyframes while over the bounds, a few at a time; returns their ids.

        A culled keyframe keeps its pose, but loses points, image and descriptor, and leaves the cloud.  A
        keyframe is redundant if another one is near and has a similar viewing direction.  other_bytes: memory
        of the map that is stored elsewhere.
        """
        culled: set[int] = set()
        self._thin_trajectory()
        if not self._over_bounds(other_bytes):
            return culled
        self._find_spare(protected)
        while self._spare and len(culled) < _CULLED_AT_ONCE and self._over_bounds(other_bytes):
            identity = self._spare.popleft()
            if identity in protected or identity not in self._held:
                continue
            keyframe = self.keyframes[identity]
            bare = replace(keyframe, points=None, image=None, descriptor=keyframe.descriptor[:0])
            self.put([bare])
            self.fuse([identity])
            self._find_guide(identity)
            culled.add(identity)
        return culled

    def _find_spare(self, protected: set[int]) -> None:
        """Choose the next keyframes to cull, for many windows at once: it compares all of them."""
        if not self._spare:
            held = [k for k in self.held() if k.id not in protected]
            most = max(_CULLED_AT_ONCE, len(held) // _SPARE_SHARE)
            self._spare.extend(k.id for k in most_redundant(held)[:most])

    def _thin_trajectory(self) -> None:
        """Remove every second culled keyframe except the first, when their poses take too much memory."""
        if (len(self.keyframes) - len(self._held)) * BARE_KEYFRAME_BYTES < _TRAJECTORY_SHARE * self._limit:
            return
        self.follow()
        bare = [i for i in self.keyframes if i not in self._held]
        for identity in bare[1::2]:
            self._bytes -= self.keyframes.pop(identity).nbytes
            self._moved.pop(identity, None)
            self._guides.pop(identity, None)
        for identity in bare[::2]:
            self._find_guide(identity)

    @property
    def _limit(self) -> float:
        """Maximum size of the map in bytes."""
        return self.config.memory_mb * 2**20

    def _over_bounds(self, other_bytes: int) -> bool:
        """Whether points or memory exceed their bounds, with room for the next window and growing arrays."""
        memory = self._bytes + other_bytes + _CLOUD_GROWTH * self._cloud.nbytes
        return len(self._cloud) > self.config.max_points or memory > _FULL * self._limit

    def cloud(self, submap: int | None = None) -> Cloud:
        """The fused cloud of one submap in `map`; None: of the main one."""
        return self._cloud.cloud(self.main if submap is None else submap)

    @property
    def voxel_size(self) -> float:
        """Edge of a voxel in map units."""
        return self._cloud.voxel_size

    @property
    def submaps(self) -> int:
        """Number of unconnected parts."""
        return len(self.parts)

    @property
    def parts(self) -> dict[int, int]:
        """Submap -> number of its keyframes, the main one first: preferably in metres, then the largest."""
        sizes = Counter(k.submap for k in self.keyframes.values())
        return {i: sizes[i] for i in sorted(sizes, key=lambda i: (not self.known_scale(i), -sizes[i], i))}

    @property
    def main(self) -> int:
        """The main submap; the pose and scale of the others relative to it are unknown."""
        return next(iter(self.parts), 0)

    def part(self, submap: int | None = None) -> dict[int, Keyframe]:
        """The keyframes of one submap by id; None: of the main one."""
        wanted = self.main if submap is None else submap
        return {i: keyframe for i, keyframe in self.keyframes.items() if keyframe.submap == wanted}

    @property
    def points(self) -> int:
        """Number of points of the fused clouds."""
        return len(self._cloud)

    @property
    def nbytes(self) -> int:
        """Memory of keyframes and cloud in bytes."""
        return self._bytes + self._cloud.nbytes


def most_redundant(keyframes: Sequence[Keyframe]) -> list[Keyframe]:
    """Keyframes in the order of redundancy: those with the nearest neighbour first.

    Of two mutual nearest neighbours, the second comes last.
    """
    if len(keyframes) < 2:
        return list(keyframes)
    depth = np.array([k.depth * k.map_from_local.scale for k in keyframes])
    place = np.stack([k.map_from_local.translation for k in keyframes]) / float(np.median(depth))
    direction = np.stack([k.map_from_local.rotation[:, 2] for k in keyframes])
    distance, neighbour = cKDTree(np.concatenate([place, direction], axis=1)).query(
        np.concatenate([place, direction], axis=1), k=2
    )
    spared: list[int] = []
    kept: set[int] = set()
    for n in np.argsort(distance[:, 1], kind="stable"):
        if int(n) not in kept:
            spared.append(int(n))
            kept.add(int(neighbour[n, 1]))
    return [keyframes[n] for n in spared + [n for n in range(len(keyframes)) if n not in set(spared)]]


def _transformed(keyframe: Keyframe, new_from_old: Sim3) -> Keyframe:
    linear = np.zeros((6, 6))
    linear[:3, :3], linear[3:, 3:] = new_from_old.scale * new_from_old.rotation, new_from_old.rotation
    return replace(
        keyframe,
        map_from_local=new_from_old @ keyframe.map_from_local,
        covariance=linear @ keyframe.covariance @ linear.T,
    )

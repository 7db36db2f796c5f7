"""The map under construction: keyframes, window, loops and submaps; only accepted windows change it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from fast3r_ros.errors import UserError
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import Float64, Keyframe
from fast3r_ros.mapping.edges import EdgeStore, window_edges
from fast3r_ros.mapping.expectation import COMPARED, expected_poses, odometry_edges
from fast3r_ros.mapping.gravity import extrinsics, level_origin
from fast3r_ros.mapping.inbox import OdometryBuffer
from fast3r_ros.mapping.loops import LoopCloser
from fast3r_ros.mapping.map import Map
from fast3r_ros.mapping.map_update import MapUpdate, map_update
from fast3r_ros.mapping.storage import SavedMap, read_map, write_map
from fast3r_ros.mapping.tracking import SubmapStart, Track, submap_start
from fast3r_ros.mapping.window import SlidingWindow, WindowView

_UNIT_VOXEL = 0.01  # default voxel size, as a share of the first window's median depth


class MapBuilder:
    """The state that an accepted window changes.

    submap: number of the current one.  next_id: of the next keyframe.
    """

    def __init__(
        self, config: MapperConfig, odometry: OdometryBuffer, base_from_camera: Mapping[str, Float64]
    ) -> None:
        self._config = config
        self._odometry = odometry
        self._base_from_camera = base_from_camera
        self.map = Map(config.map, config.map.voxel_size or _UNIT_VOXEL)
        self.window = SlidingWindow(config.window)
        self.loops = LoopCloser(config.loop)
        self.submap = self._submaps = self.next_id = 0
        self._left: list[int] = []  # keyframes of discontinued windows, until they are final

    def set_config(self, config: MapperConfig) -> None:
        """From the next window on."""
        self._config = config
        self.loops.config = config.loop
        self.window.config = config.window  # becomes smaller when memory runs out
        self.map.config = config.map

    def close(self) -> None:
        """End the thread of the pose graph."""
        self.loops.shutdown()

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return self.map.nbytes + self.loops.nbytes

    @property
    def metres(self) -> bool:
        """Whether the scale of the current submap is known."""
        return self.map.known_scale(self.submap)

    def newest_keyframes(self, count: int = COMPARED) -> list[Keyframe]:
        """The newest keyframes of the current submap, in time order."""
        mine = (k for k in reversed(self.map.keyframes.values()) if k.submap == self.submap)
        return sorted(islice(mine, count), key=lambda keyframe: keyframe.stamp_ns)

    def start(
        self, first: WindowView, new: Sequence[WindowView], map_from_first_base: Float64 | None
    ) -> SubmapStart:
        """The start of a submap: the last pose of the track, moved by odometry if known, or the map's origin.

        first: the first new view.  map_from_first_base: see `Mapper.set_first_pose`.
        """
        mount = extrinsics(self._base_from_camera, first)
        origin = level_origin(map_from_first_base, self._odometry.at(first.stamp_ns), mount)
        start = submap_start(self.map.keyframes, origin)
        if self.window.ids:
            return start
        newest = self.newest_keyframes() if self.metres else []
        return replace(start, expected=expected_poses(newest, new, self._odometry, self._base_from_camera))

    def candidates(self, new: Sequence[WindowView], near: set[int] | None) -> list[int]:
        """Ids of keyframes that may show what the new views show; near: look among these only."""
        window = self._config.window
        room = window.size - len(new) - (window.overlap if self.window.ids else 0)
        descriptors = np.stack([view.encoded.descriptor for view in new])
        if near is not None:
            return self.loops.index.search(descriptors, room, self.map.keyframes.keys() - near, -1.0)
        live = [self.map.keyframes[i] for i in self.window.ids]
        return self.loops.candidates(descriptors, live, self.submap, self.map, room)

    def add(self, tracked: Track, retrieved: set[int]) -> tuple[MapUpdate, bool]:
        """Put a window into the map: new keyframes, better poses of live ones, and their points.

        retrieved: ids of the keyframes that were put into the window for a loop.  Also returns whether a loop
        contradicts the map.
        """
        if tracked.relocalized:
            self.leave_track()
            assert tracked.loop_keyframe is not None
            self.submap = self.map.keyframes[tracked.loop_keyframe].submap
        elif not self.window.ids and self.map.keyframes and not tracked.bridged:
            self._submaps += 1
            self.submap = self._submaps
            if self.map.metres:
                self.map.unscaled.add(self.submap)
        update = map_update(
            tracked, self.map.keyframes, self.window.ids, self.next_id, self.submap, self._config
        )
        self.next_id += len(update.views)
        before = self.newest_keyframes(1) if tracked.bridged else []
        self.map.put(update.keyframes)
        fresh = [view.keyframe_id for view in update.views if view.keyframe_id is not None]
        for identity in fresh:
            self.loops.index.add(identity, self.map.keyframes[identity].descriptor)
        for keyframe in before:
            self.loops.bridge(keyframe, self.map.keyframes[fresh[0]])
        disagrees = self._measure(tracked, update, retrieved, fresh)
        final = [*self._take_left(), *self.window.keep(list(update.views))]
        self.map.refine(final=final, provisional=fresh)
        self.map.fuse(final)
        self.map.fuse(fresh, final=False)
        self.map.fuse_moved(self._config.map.moved_per_window, later=self.window.ids)
        self.loops.forget(self.map.cull(set(self.window.ids), self.loops.nbytes))
        return update, disagrees

    def _measure(self, tracked: Track, update: MapUpdate, retrieved: set[int], fresh: Sequence[int]) -> bool:
        """Add the measurements of the window and odometry, and optimise the live and fresh keyframes.

        Returns whether a loop contradicts the map.
        """
        keyframes = self.map.keyframes
        depths = {identity: keyframes[identity].depth for identity in update.window_from_local}
        edges = window_edges(update.window_from_local, depths, retrieved, tracked.known.errors)
        disagrees = self.loops.add(edges, keyframes)
        if self.metres:
            newest = self.newest_keyframes(COMPARED + len(fresh))
            known = self._odometry, self._base_from_camera, tracked.known.errors
            for edge in odometry_edges(newest, len(fresh), *known):
                self.loops.edges.measure(edge)
        if not self._config.registration.planar:  # the pose graph does not include the plane
            self.loops.smooth(self.map, [*self.window.ids, *fresh])
        return disagrees

    def close_loop(self, tracked: Track, disagrees: bool) -> bool:
        """Join submaps that the window connects; start an optimisation if a loop disagrees."""
        if tracked.loop is None or tracked.loop_keyframe is None:
            return False
        submap = self.map.keyframes[tracked.loop_keyframe].submap
        if submap != self.submap:
            self._join(
                submap, tracked.loop.map_from_window @ tracked.window.registration.map_from_window.inverse()
            )
        if disagrees:
            self.loops.optimize(self.map)
        self.loops.closed += not tracked.relocalized
        return not tracked.relocalized

    def _join(self, other: int, other_from_mine: Sim3) -> None:
        """Join the current submap with another one; the one with a known scale keeps its frame."""
        if self.metres and not self.map.known_scale(other):
            self.map.join(other, self.submap, other_from_mine.inverse())
        else:
            self.map.join(self.submap, other, other_from_mine)
            self.submap = other
        self.loops.discard()

    def leave_track(self) -> None:
        """Leave the window: its views' poses are final, and their points with the next accepted window."""
        lost = self.window.clear()
        if lost:
            self.loops.lose(lost)
            self._left += lost

    def _take_left(self) -> list[int]:
        """The keyframes of left windows that are still in the map and not final."""
        left, self._left = [i for i in self._left if i in self.map.keyframes], []
        return left

    def finish(self) -> None:
        """All work that was put off: every keyframe is final."""
        left = self._take_left()
        self.map.refine(final=left, provisional=self.window.ids)
        self.map.fuse([*left, *self.window.ids])
        self.map.fuse_moved()
        self.map.follow()

    def loop_pairs(self) -> list[tuple[int, int]]:
        """Ids of the keyframes that loop closures connect, both in the map's main submap."""
        held = self.map.part()
        return [(e.i, e.j) for e in self.loops.edges if e.robust and e.i in held and e.j in held]

    def save(self, directory: Path) -> None:
        """Save the map into a directory.  Raises UserError when that fails."""
        self.loops.apply(self.map)
        self.map.follow()
        keyframes = tuple(self.map.shown())
        edges = tuple(self.loops.edges)
        metric = self.map.metres, self.map.voxel_size, tuple(self.map.unscaled)
        write_map(directory, SavedMap(keyframes, edges, *metric))

    @classmethod
    def loaded(
        cls,
        directory: Path,
        config: MapperConfig,
        odometry: OdometryBuffer,
        base_from_camera: Mapping[str, Float64],
    ) -> MapBuilder:
        """A saved map, for windows to come.  Raises UserError when the directory holds no usable map."""
        saved = read_map(directory)
        builder = cls(config, odometry, base_from_camera)
        metric = saved.metres, saved.voxel_size, saved.unscaled
        try:
            builder.map = Map.restored(config.map, saved.keyframes, *metric)
        except MemoryError as error:
            raise UserError(f"the map in {directory} does not fit into memory") from error
        builder.loops.edges = EdgeStore(saved.edges)
        for keyframe in saved.keyframes:
            if keyframe.points is not None:
                builder.loops.index.add(keyframe.id, keyframe.descriptor)
        builder.next_id = max((k.id for k in saved.keyframes), default=-1) + 1
        builder.submap = builder._submaps = max((k.submap for k in saved.keyframes), default=0)
        return builder

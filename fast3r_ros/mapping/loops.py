"""Loop closure: places are recognised by pooled tokens, verified by geometry, and aligned in the map."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, zip_longest

import numpy as np
from numpy.typing import NDArray

from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.config import LoopConfig
from fast3r_ros.mapping.data import Float32, Float64, Keyframe
from fast3r_ros.mapping.edges import EdgeStore, disagreement
from fast3r_ros.mapping.map import Map
from fast3r_ros.mapping.placement import RegisteredWindow
from fast3r_ros.mapping.pose_graph import Edge, optimize
from fast3r_ros.mapping.view_maps import to_host

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


_log = logging.getLogger(__name__)
# sigma of odometry between two keyframes: (rotation in radians, translation / depth, log scale)
_BRIDGE_SIGMA = (0.02, 0.05, 0.02)
_NEARBY = 0.7  # distance in scene depths plus angle between view directions in radians
_BRIDGE_ENDS, _BRIDGE_WINDOWS = 2, 6  # keyframes used to find a lost track, and number of windows to try
_WORTH_IT = 1.0  # disagreement in standard deviations that triggers an optimisation


class PlaceIndex:
    """Descriptors of all keyframes, searched by cosine similarity."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._rows: Float32 = np.zeros((64, 0), np.float32)

    def add(self, identity: int, descriptor: Float32) -> None:
        """Add a keyframe's descriptor, (D,) of unit norm."""
        count = len(self._ids)
        if self._rows.shape[1] != len(descriptor):
            self._rows = np.zeros((64, len(descriptor)), np.float32)
        if count == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self._rows[count] = descriptor
        self._ids.append(identity)

    def remove(self, identities: set[int]) -> None:
        """Forget keyframes."""
        keep = [n for n, identity in enumerate(self._ids) if identity not in identities]
        self._rows[: len(keep)] = self._rows[keep]
        self._ids = [self._ids[n] for n in keep]

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return self._rows.nbytes

    def similarity(self, one: Float32, other: Float32) -> Float32:
        """Cosines (M, N) of descriptors (M, D) and (N, D), each relative to the mean of all known ones.

        Pooled tokens of any two images are similar; the difference from the mean distinguishes places.
        """
        if one.shape[1] != other.shape[1] or not self._ids:
            return np.full((len(one), len(other)), -1.0, np.float32)
        mean = self._rows[: len(self._ids)].mean(axis=0) if len(self._ids) > 1 else np.zeros_like(other[0])
        left, right = one @ mean, other @ mean
        square = float(mean @ mean)
        lengths = np.sqrt(
            np.maximum(1 - 2 * left + square, 1e-9)[:, None] * np.maximum(1 - 2 * right + square, 1e-9)
        )
        return np.asarray((one @ other.T - left[:, None] - right + square) / lengths)

    def search(self, descriptors: Float32, count: int, excluded: set[int], least: float) -> list[int]:
        """At most `count` keyframes with similarity >= `least` to any descriptor (V, D), best first."""
        if not self._ids:
            return []
        similarity = self.similarity(self._rows[: len(self._ids)], descriptors).max(axis=1)
        order = np.argsort(-similarity)[: count + len(excluded)]
        found = [self._ids[n] for n in order if similarity[n] >= least]
        return [identity for identity in found if identity not in excluded][:count]


class LoopCloser:
    """Finds candidates, collects the pose graph's edges, and optimises it in the background."""

    def __init__(self, config: LoopConfig) -> None:
        self.config = config
        self.index = PlaceIndex()
        self.edges = EdgeStore()
        self.closed = 0
        self._rest = 0  # windows until the next search for candidates
        self._lost: list[int] = []
        self._bridges = 0  # windows left to search for the lost track
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pose_graph")
        self._running: Future[dict[int, Sim3]] | None = None
        self._before: dict[int, Sim3] = {}

    def candidates(
        self, descriptors: Float32, live: Sequence[Keyframe], submap: int, map_: Map, most: int
    ) -> list[int]:
        """Keyframes that may show the same places as the new views (V, D), best first.

        By appearance: more similar to a view than the median keyframe of the present window.  By position:
        keyframes of the same submap that look at the same scene from nearby, for scenes of many similar
        places.  After a lost track also the last keyframes before it, for the first windows.  The newest
        `min_separation` keyframes of the same submap are no candidates: they are the recent trajectory.
        """
        self._rest -= 1
        if not self.config.enabled or most <= 0 or (live and self._rest > 0):
            return []
        most = min(most, self.config.candidates)
        excluded = {k.id for k in live}
        if live:
            own = (k.id for k in reversed(map_.keyframes.values()) if k.submap == submap)
            excluded.update(islice(own, self.config.min_separation + len(live)))
        least = self.config.min_similarity
        if live:
            similar = self.index.similarity(np.stack([k.descriptor for k in live]), descriptors).max(axis=1)
            least = max(least, float(np.median(similar)))
        alike = self.index.search(descriptors, most, excluded, least)
        near = _nearby(live, [k for k in map_.held() if k.submap == submap and k.id not in excluded], most)
        by_turns = [i for pair in zip_longest(alike, near) for i in pair if i is not None]
        found = list(dict.fromkeys([*self._bridge(map_, submap if live else None), *by_turns]))[:most]
        self._rest = self.config.interval if found else 0
        return found

    def lose(self, keyframes: Sequence[int]) -> None:
        """Report that the track was lost at these keyframes; the next windows may find it again."""
        self._lost, self._bridges = list(keyframes[-_BRIDGE_ENDS:]), _BRIDGE_WINDOWS

    def _bridge(self, map_: Map, submap: int | None) -> list[int]:
        """The last keyframes before the track was lost, until the later ones are joined with them."""
        self._bridges -= 1
        if self._bridges < 0:
            return []
        known = [map_.keyframes[i] for i in self._lost if i in map_.keyframes]
        return [k.id for k in known if k.image is not None and k.submap != submap]

    @property
    def nbytes(self) -> int:
        """Memory of descriptors and edges in bytes."""
        return self.index.nbytes + self.edges.nbytes

    def forget(self, culled: set[int]) -> None:
        """Remove keyframes from the graph and the index; in the map they follow their neighbours."""
        self.index.remove(culled)
        for identity in sorted(culled):
            self.edges.remove(identity)

    def add(self, edges: Sequence[Edge], keyframes: Mapping[int, Keyframe]) -> bool:
        """Add a window's measurements; returns whether its loops contradict the map."""
        for edge in edges:
            self.edges.measure(edge)
        return any(
            disagreement(edge, keyframes[edge.i].map_from_local.inverse() @ keyframes[edge.j].map_from_local)
            > _WORTH_IT
            for edge in edges
            if edge.robust
        )

    def bridge(self, before: Keyframe, after: Keyframe) -> None:
        """Link two keyframes that are connected only by odometry."""
        measured = before.map_from_local.inverse() @ after.map_from_local
        self.edges.add(Edge(before.id, after.id, measured, before.depth, _BRIDGE_SIGMA, robust=False))

    def smooth(self, map_: Map, live: Sequence[int]) -> None:
        """Optimise the poses of the keyframes in the window over all their windows; the rest stays."""
        edges = self.edges.around(live)
        ends = {end for edge in edges for end in (edge.i, edge.j)}
        nodes = {i: map_.keyframes[i].map_from_local for i in ends}
        after = optimize(nodes, edges, ends - set(live))
        map_.move({i: after[i] for i in live if i in after})

    def optimize(self, map_: Map) -> None:
        """Start optimising all keyframes that have points; `apply` moves the map.

        Does nothing while one is running.
        """
        if self._running is not None:
            return
        edges = list(self.edges)
        self._before = {k.id: k.map_from_local for k in map_.held()}
        self._running = self._pool.submit(optimize, self._before, edges)
        if not self.config.background:
            self.apply(map_)

    def apply(self, map_: Map, wait: bool = True) -> bool:
        """Move the keyframes if an optimisation has finished (or wait for it); returns whether they moved.

        Newer keyframes move with the newest one that took part; for culled ones see `Map.follow`.
        """
        if self._running is None or not (wait or self._running.done()):
            return False
        running, before = self._running, self._before
        self._running = None
        try:
            after = running.result()
        except (RuntimeError, ValueError) as error:  # a singular system: the map stays unchanged
            _log.warning("the pose graph could not be optimised, the map is unchanged: %s", error)
            return False
        changes = {i: after[i] @ before[i].inverse() for i in before}
        held = {k.id: k for k in map_.held()}
        guides = _guides(before, held)
        map_.move(
            {
                # exactly the optimised pose, unless it was re-estimated meanwhile
                i: after[i] if k.map_from_local is before.get(i) else changes[guides[i]] @ k.map_from_local
                for i, k in held.items()
                if i in guides
            }
        )
        return True

    def discard(self) -> None:
        """Discard a running optimisation, because the map was rescaled meanwhile."""
        if self._running is not None:
            self._running.cancel()
            self._running = None

    def shutdown(self) -> None:
        """End the background thread."""
        self.discard()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _nearby(live: Sequence[Keyframe], others: Sequence[Keyframe], most: int) -> list[int]:
    """Keyframes that look at the newest live one's scene from nearby, nearest first."""
    if not live or not others:
        return []
    newest = live[-1].map_from_local
    depth = max(live[-1].depth * newest.scale, 1e-9)
    places = np.stack([k.map_from_local.translation for k in others])
    axes = np.stack([k.map_from_local.rotation[:, 2] for k in others])
    turn = np.arccos(np.clip(axes @ newest.rotation[:, 2], -1.0, 1.0))
    away = np.linalg.norm(places - newest.translation, axis=1) / depth + turn
    return [others[n].id for n in np.argsort(away, kind="stable")[:most] if away[n] < _NEARBY]


def _guides(optimised: Iterable[int], keyframes: Mapping[int, Keyframe]) -> dict[int, int]:
    """Keyframe -> the one it moves with: itself, or the next of its submap that took part."""
    parts: dict[int, list[int]] = {}
    for i in sorted(optimised):
        if i in keyframes:
            parts.setdefault(keyframes[i].submap, []).append(i)
    newest = max((i for part in parts.values() for i in part), default=-1)
    guides = {}
    for i, keyframe in keyframes.items():
        part = parts.get(keyframe.submap, [newest] if i > newest >= 0 else [])
        if part:
            guides[i] = part[min(bisect_left(part, i), len(part) - 1)]
    return guides

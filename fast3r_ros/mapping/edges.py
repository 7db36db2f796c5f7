"""The edges of the pose graph; their number stays proportional to the keyframes that have points."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from math import hypot

import numpy as np

from fast3r_ros.geometry.rotation import matrix_from_vector, vector_from_matrix
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.pose_graph import Edge
from fast3r_ros.mapping.view_errors import ViewErrors, baselines

_BYTES = 1000  # of an edge with its table entries
_REATTACHED = 3  # minimum number of a removed keyframe's links that its neighbour takes over
_CONTRADICTION = 5.0  # standard deviations
_MOST_LOOPS = 4  # maximum number of loops at one keyframe

_Table = dict[int, dict[int, Edge]]


class EdgeStore:
    """Measured similarities between keyframes: at most one link (certain) and one loop (robust) per pair.

    A keyframe can be removed.  Its edges are then composed with the edge to its best neighbour, as far as
    needed: what was connected through it stays connected, and the number of edges stays proportional to the
    number of keyframes.
    """

    def __init__(self, edges: Iterable[Edge] = ()) -> None:
        self._links: _Table = {}
        self._loops: _Table = {}
        for edge in edges:
            self.add(edge)

    def __iter__(self) -> Iterator[Edge]:
        """Every edge once."""
        for table in (self._links, self._loops):
            for i, row in table.items():
                yield from (edge for j, edge in row.items() if i < j)

    def __len__(self) -> int:
        """The number of edges."""
        return sum(len(row) for table in (self._links, self._loops) for row in table.values()) // 2

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return _BYTES * len(self)

    def add(self, edge: Edge) -> None:
        """Add an edge; of two edges of one kind between the same keyframes the more certain one stays."""
        table = self._loops if edge.robust else self._links
        known = table.get(edge.i, {}).get(edge.j)
        if edge.i != edge.j and (known is None or sum(edge.sigma) < sum(known.sigma)):
            table.setdefault(edge.i, {})[edge.j] = edge
            table.setdefault(edge.j, {})[edge.i] = edge

    def measure(self, edge: Edge) -> None:
        """Add a measurement; measurements of one pair are averaged unless they contradict each other."""
        known = (self._loops if edge.robust else self._links).get(edge.i, {}).get(edge.j)
        if known is not None:
            edge = _mean(known if known.i == edge.i else reverse(known), edge)
        self.add(edge)

    def around(self, identities: Collection[int]) -> list[Edge]:
        """Every edge at one of these keyframes, once."""
        found = {}
        for table in (self._links, self._loops):
            for i in identities:
                for edge in table.get(i, {}).values():
                    found[id(edge)] = edge
        return list(found.values())

    def accept(self, moved: Collection[int], map_from_local: Mapping[int, Sim3]) -> None:
        """Set the edges between the moved keyframes and the others to the present poses.

        A corrected scale is known better than the edges across it, which would undo the correction.
        """
        inside = set(moved)
        for table in (self._links, self._loops):
            for i in inside:
                for j, edge in list(table.get(i, {}).items()):
                    if j not in inside and j in map_from_local:
                        relation = map_from_local[edge.i].inverse() @ map_from_local[edge.j]
                        table[i][j] = table[j][i] = replace(edge, i_from_j=relation)

    def remove(self, identity: int) -> None:
        """Remove a keyframe: its best linked neighbour takes over its links and loops."""
        links, loops = (_taken_out(table, identity) for table in (self._links, self._loops))
        links.sort(key=lambda edge: sum(edge.sigma))
        if not links:
            return
        heir = links[0].j
        heir_from_gone = reverse(links[0])
        for count, edge in enumerate(links[1:]):
            if count < _REATTACHED or not self._linked(heir, edge.j):
                self.add(compose(heir_from_gone, edge))
        for edge in loops:
            if edge.j != heir and len(self._loops.get(heir, {})) < _MOST_LOOPS:
                self.add(compose(heir_from_gone, edge))

    def _linked(self, one: int, other: int) -> bool:
        """Whether two keyframes are linked directly or through a common neighbour."""
        near, far = self._links.get(one, {}), self._links.get(other, {})
        return other in near or not near.keys().isdisjoint(far)


def disagreement(edge: Edge, i_from_j: Sim3) -> float:
    """Distance of another `i_from_j` in standard deviations, of its worst component."""
    error = edge.i_from_j.inverse() @ i_from_j
    turn = float(np.linalg.norm(vector_from_matrix(error.rotation)))
    shift = float(np.linalg.norm(i_from_j.translation - edge.i_from_j.translation)) / edge.depth
    rotation, translation, scale = edge.sigma
    return max(turn / rotation, shift / translation, abs(float(np.log(error.scale))) / scale)


def window_edges(
    window_from_local: Mapping[int, Sim3],
    depths: Mapping[int, float],
    retrieved: Collection[int],
    errors: ViewErrors,
) -> list[Edge]:
    """A window's measurements, as edges from its best keyframe, the first, to all others.

    depths: of the keyframes, in their own units.  retrieved: keyframes added to close a loop; edges between
    one of them and another keyframe are robust.  errors: the network's typical errors.
    """
    if not window_from_local:
        return []
    first, *others = window_from_local
    first_from_window = window_from_local[first].inverse()
    places = window_from_local.values()
    away = baselines(
        np.stack([place.rotation for place in places]),
        np.stack([place.translation for place in places]),
        np.array([place.scale * depths[identity] for identity, place in window_from_local.items()]),
    )
    variance = dict(zip(window_from_local, map(errors.variance, away.tolist()), strict=True))
    edges = []
    for other in others:
        if first in retrieved and other in retrieved:
            continue
        rotation, translation, scale = np.sqrt(variance[first] + variance[other]).tolist()
        measured = first_from_window @ window_from_local[other]
        robust = (first in retrieved) != (other in retrieved)
        edges.append(Edge(first, other, measured, depths[first], (rotation, translation, scale), robust))
    return edges


def _mean(one: Edge, other: Edge) -> Edge:
    """The mean of two measurements of one pair; the more certain one if they contradict each other."""
    if disagreement(one, other.i_from_j) > _CONTRADICTION * float(np.sqrt(2.0)):
        return min(one, other, key=lambda edge: sum(edge.sigma))
    shares = [(a / b) ** 2 / (1 + (a / b) ** 2) for a, b in zip(one.sigma, other.sigma, strict=True)]
    before, after = one.i_from_j, other.i_from_j
    turn = vector_from_matrix(before.rotation.T @ after.rotation)
    mean = Sim3(
        before.scale ** (1 - shares[2]) * after.scale ** shares[2],
        before.rotation @ matrix_from_vector(shares[0] * turn),
        (1 - shares[1]) * before.translation + shares[1] * after.translation,
    )
    rotation, translation, scale = (
        1 / hypot(1 / a, 1 / b) for a, b in zip(one.sigma, other.sigma, strict=True)
    )
    return Edge(one.i, one.j, mean, one.depth, (rotation, translation, scale), one.robust)


def compose(first: Edge, second: Edge) -> Edge:
    """`i_from_j` and `j_from_k` as `i_from_k`; the errors add, with the first's lever."""
    rotation, translation, scale = first.sigma
    size = first.i_from_j.scale
    lever = size * float(np.linalg.norm(second.i_from_j.translation)) / first.depth
    own = second.sigma[1] * size * second.depth / first.depth
    sigma = (
        hypot(rotation, second.sigma[0]),
        hypot(translation, own, rotation * lever, scale * lever),
        hypot(scale, second.sigma[2]),
    )
    robust = first.robust or second.robust
    return Edge(first.i, second.j, first.i_from_j @ second.i_from_j, first.depth, sigma, robust)


def reverse(edge: Edge) -> Edge:
    """`i_from_j` as `j_from_i`."""
    rotation, translation, scale = edge.sigma
    lever = float(np.linalg.norm(edge.i_from_j.translation)) / edge.depth
    sigma = (rotation, hypot(translation, rotation * lever, scale * lever), scale)
    return Edge(edge.j, edge.i, edge.i_from_j.inverse(), edge.depth / edge.i_from_j.scale, sigma, edge.robust)


def _taken_out(table: _Table, identity: int) -> list[Edge]:
    """Remove a keyframe's edges from a table; returns them as seen from it."""
    edges = []
    for other, edge in table.pop(identity, {}).items():
        row = table[other]
        del row[identity]
        if not row:
            del table[other]
        edges.append(edge if edge.i == identity else reverse(edge))
    return edges

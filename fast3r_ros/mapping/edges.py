"""The edges of the pose graph, which stay as few as the keyframes that still have points."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import hypot

import numpy as np

from fast3r_ros.mapping.pose_graph import Edge

_BYTES = 1000  # of an edge with its place in the tables
_REATTACHED = 3  # links of a keyframe that is taken out which its neighbour takes over, at least
_MOST_LOOPS = 4  # loops that end at one keyframe

_Table = dict[int, dict[int, Edge]]


class EdgeStore:
    """Measured similarities between keyframes: at most one link (certain) and one loop (robust) per pair.

    A keyframe can be taken out.  Its edges are then composed with the one to its best neighbour, as far as
    they are needed: what hung together through it still does, and the number of edges stays in proportion to
    the number of keyframes.
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
        """Remember an edge; of two of one kind between the same keyframes the more certain one stays."""
        table = self._loops if edge.robust else self._links
        known = table.get(edge.i, {}).get(edge.j)
        if edge.i != edge.j and (known is None or sum(edge.sigma) < sum(known.sigma)):
            table.setdefault(edge.i, {})[edge.j] = edge
            table.setdefault(edge.j, {})[edge.i] = edge

    def remove(self, identity: int) -> None:
        """Take a keyframe out: its links and loops are handed to the neighbour it is linked to best."""
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


def compose(first: Edge, second: Edge) -> Edge:
    """`i_from_j` and `j_from_k` as `i_from_k`; the errors add, those of the first by the lever, too."""
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

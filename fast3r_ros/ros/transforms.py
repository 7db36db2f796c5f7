"""Lookup of transforms: tf2_ros if installed, otherwise a small buffer with the same results."""

from __future__ import annotations

import bisect
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from geometry_msgs.msg import TransformStamped

from fast3r_ros.geometry.rigid import interpolate, inverse
from fast3r_ros.mapping.data import Float64
from fast3r_ros.ros.pose_messages import (
    NS,
    matrix_from_transform,
    ns_from_stamp,
    stamp_from_ns,
)
from fast3r_ros.ros.upstream import TF2_ROS

KEEP_NS = 10 * NS  # like tf2
FORGET_SECONDS = 2.0  # of silence, after which another node's parent of a frame is ignored


class TransformMissing(LookupError):
    """There is no such transform at that time; the message names the missing part."""


class TransformLate(TransformMissing):
    """The frames are connected, but not at that time; the transform may still arrive."""


class TransformLookup(Protocol):
    """Stores transforms of /tf and /tf_static and answers lookups, from any thread."""

    def insert(self, transform: TransformStamped, static: bool) -> None:
        """Add one transform.  Raises BadPose when it is not rigid."""
        ...

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> Float64:
        """(4, 4) `target_from_source` at a time, None: the newest with a complete chain.

        Raises TransformMissing, and TransformLate if waiting may help.
        """
        ...

    def clear(self) -> None:
        """Remove everything that is not static (the clock went back)."""
        ...


def transform_lookup() -> TransformLookup:
    """The tf2 buffer if tf2_ros is installed, otherwise ours."""
    return Tf2Lookup() if TF2_ROS is not None else OwnLookup()


class Tf2Lookup:
    """TransformLookup by tf2_ros.Buffer."""

    def __init__(self) -> None:
        self._buffer: Any = TF2_ROS.Buffer()  # type: ignore[union-attr]

    def insert(self, transform: TransformStamped, static: bool) -> None:
        """See TransformLookup."""
        matrix_from_transform(transform.transform)
        set_transform = self._buffer.set_transform_static if static else self._buffer.set_transform
        set_transform(transform, "fast3r_mapping")

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> Float64:
        """See TransformLookup."""
        from rclpy.time import Time

        time = Time.from_msg(stamp_from_ns(stamp_ns or 0))
        try:
            found = self._buffer.lookup_transform(target, source, time)
        except TF2_ROS.TransformException as error:  # type: ignore[union-attr]
            late = isinstance(error, TF2_ROS.ExtrapolationException)  # type: ignore[union-attr]
            raise (TransformLate if late else TransformMissing)(str(error)) from error
        return matrix_from_transform(found.transform)

    def clear(self) -> None:
        """See TransformLookup.  Without it, tf2 would reject transforms ten seconds older than its newest."""
        self._buffer.clear()


@dataclass
class _Edge:
    """parent_from_child over time; a static edge has one entry, valid always."""

    parent: str
    static: bool
    stamps: list[int] = field(default_factory=list)
    matrices: list[Float64] = field(default_factory=list)

    def insert(self, stamp_ns: int, matrix: Float64) -> None:
        """Like tf2: entries ten seconds older than the newest are dropped; a stamp's first one stays."""
        if self.static:
            self.stamps, self.matrices = [stamp_ns], [matrix]
            return
        if self.stamps:
            limit = self.stamps[-1] - KEEP_NS
            old = bisect.bisect_left(self.stamps, limit)
            del self.stamps[:old], self.matrices[:old]
            if stamp_ns < limit:
                return
        place = bisect.bisect_left(self.stamps, stamp_ns)
        if place == len(self.stamps) or self.stamps[place] != stamp_ns:
            self.stamps.insert(place, stamp_ns)
            self.matrices.insert(place, matrix)

    def at(self, stamp_ns: int | None, child: str) -> Float64:
        if self.static or stamp_ns is None:
            return self.matrices[-1]
        if not self.stamps[0] <= stamp_ns <= self.stamps[-1]:
            late = stamp_ns > self.stamps[-1]
            gap = (stamp_ns - self.stamps[-1] if late else self.stamps[0] - stamp_ns) / NS
            word = "newest" if late else "oldest"
            kind = TransformLate if late else TransformMissing
            raise kind(f"the {word} transform {self.parent} -> {child} is {gap:.3f} s off")
        place = bisect.bisect_left(self.stamps, stamp_ns)
        if self.stamps[place] == stamp_ns:
            return self.matrices[place]
        before, after = self.stamps[place - 1], self.stamps[place]
        return interpolate(
            self.matrices[place - 1], self.matrices[place], (stamp_ns - before) / (after - before)
        )


class OwnLookup:
    """TransformLookup without tf2: the same frames, interpolation and time limit."""

    def __init__(self) -> None:
        self._edges: dict[str, _Edge] = {}
        self._lock = threading.Lock()

    def insert(self, transform: TransformStamped, static: bool) -> None:
        """See TransformLookup."""
        matrix = matrix_from_transform(transform.transform)
        child, parent = transform.child_frame_id, transform.header.frame_id
        with self._lock:
            edge = self._edges.get(child)
            if edge is None or edge.parent != parent or edge.static != static:
                edge = self._edges[child] = _Edge(parent, static)
            edge.insert(ns_from_stamp(transform.header.stamp), matrix)

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> Float64:
        """See TransformLookup."""
        with self._lock:
            targets = self._chain(target)
            sources = self._chain(source)
            common = next((frame for frame in sources if frame in targets), None)
            if common is None:
                raise TransformMissing(f"{target} and {source} are not connected on /tf")
            targets, sources = targets[: targets.index(common)], sources[: sources.index(common)]
            if stamp_ns is None:
                stamp_ns = self._newest_common([*targets, *sources])
            common_from_target = self._compose(targets, stamp_ns)
            common_from_source = self._compose(sources, stamp_ns)
        return inverse(common_from_target) @ common_from_source

    def _newest_common(self, children: list[str]) -> int | None:
        """The newest time covered by every edge above `children`; None when all are static."""
        edges = [self._edges[child] for child in children]
        return min((edge.stamps[-1] for edge in edges if not edge.static), default=None)

    def _chain(self, frame: str) -> list[str]:
        """The frame and its ancestors, the root last; a loop of parents ends it."""
        chain = [frame]
        while (edge := self._edges.get(chain[-1])) is not None and edge.parent not in chain:
            chain.append(edge.parent)
        return chain

    def _compose(self, children: list[str], stamp_ns: int | None) -> Float64:
        """The product of the edges above `children`: the last one's parent from the first child."""
        result = np.eye(4)
        for child in children:
            result = self._edges[child].at(stamp_ns, child) @ result
        return result

    def clear(self) -> None:
        """See TransformLookup."""
        with self._lock:
            self._edges = {child: edge for child, edge in self._edges.items() if edge.static}


@dataclass(frozen=True)
class _Parent:
    """A frame's parent by another node.  heard: monotonic seconds; stamp_ns: of the last transform."""

    frame: str
    static: bool
    heard: float
    stamp_ns: int

    def holds(self, now: float, stamp_ns: int | None) -> bool:
        """Whether this is still the parent; with a stamp: whether it was at that time."""
        if self.static or now - self.heard < FORGET_SECONDS:
            return True
        return stamp_ns is not None and self.stamp_ns - KEEP_NS <= stamp_ns <= self.stamp_ns


class OwnFrames:
    """Distinguishes our broadcasts from others', and stores the tree of the others.

    A frame may have only one parent (REP-105).  Our subscription to /tf also receives our own broadcasts;
    `sent` records them, `is_own` recognises them; the rest is `heard`.  A parent that is not static is
    removed after two seconds without a transform.  now: monotonic seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._sent: dict[str, deque[tuple[int, str]]] = {}
        self._parents: dict[str, _Parent] = {}
        self._lock = threading.Lock()

    def sent(self, transform: TransformStamped) -> None:
        """Record a transform that is about to be broadcast."""
        with self._lock:
            history = self._sent.setdefault(transform.child_frame_id, deque(maxlen=500))
            history.append(_stamp_and_parent(transform))

    def is_own(self, transform: TransformStamped) -> bool:
        """Whether we broadcast this child at this stamp below this parent."""
        with self._lock:
            return _stamp_and_parent(transform) in self._sent.get(transform.child_frame_id, ())

    def heard(self, transform: TransformStamped, static: bool) -> None:
        """Record a frame's parent by another node."""
        stamp_ns, parent = _stamp_and_parent(transform)
        child = transform.child_frame_id
        if child and parent and child != parent:  # tf2 accepts no others
            with self._lock:
                self._parents[child] = _Parent(parent, static, self._now(), stamp_ns)

    def other_parent(self, child: str, stamp_ns: int | None = None) -> str | None:
        """A frame's parent by another node, now or at a stamp; None if there is none."""
        with self._lock:
            return self._parent(child, stamp_ns)

    def chain(self, frame: str, stamp_ns: int | None = None) -> list[str]:
        """The frame and its ancestors in the others' tree, the root last; a loop of parents ends it."""
        chain = [frame]
        with self._lock:
            while (parent := self._parent(chain[-1], stamp_ns)) is not None and parent not in chain:
                chain.append(parent)
        return chain

    def _parent(self, child: str, stamp_ns: int | None) -> str | None:
        known = self._parents.get(child)
        return known.frame if known is not None and known.holds(self._now(), stamp_ns) else None


def _stamp_and_parent(transform: TransformStamped) -> tuple[int, str]:
    return ns_from_stamp(transform.header.stamp), transform.header.frame_id

"""A listener's transforms by tf2's rules, independent of the product's lookup."""

from __future__ import annotations

import bisect
from collections.abc import Iterable

import numpy as np
from geometry_msgs.msg import TransformStamped
from scipy.spatial.transform import Rotation, Slerp
from tf2_msgs.msg import TFMessage

CACHE_NS = 10_000_000_000


class Unknown(LookupError):
    """No such transform at that stamp."""


class Tree:
    """Transforms (static before moving, or as `take` gets them) in the order in which they arrived.

    Of two for one child at one stamp the first stays; what comes more than ten seconds after newer ones is
    ignored; a static transform replaces moving ones of its child, and the other way round.
    """

    def __init__(self, moving: Iterable[TFMessage] = (), static: Iterable[TFMessage] = ()) -> None:
        self._static: dict[str, tuple[str, np.ndarray]] = {}
        self._moving: dict[str, list[tuple[int, str, np.ndarray]]] = {}
        for messages, is_static in ((static, True), (moving, False)):
            for message in messages:
                self.take(message, is_static)

    def take(self, message: TFMessage, static: bool) -> None:
        """Take in a message."""
        for each in message.transforms:
            if static:
                self._static[each.child_frame_id] = each.header.frame_id, matrix_of(each)
                self._moving.pop(each.child_frame_id, None)
            else:
                self._static.pop(each.child_frame_id, None)
                self._insert(each)

    def _insert(self, each: TransformStamped) -> None:
        stamp = each.header.stamp.sec * 1_000_000_000 + each.header.stamp.nanosec
        known = self._moving.setdefault(each.child_frame_id, [])
        place = bisect.bisect_left([entry[0] for entry in known], stamp)
        if known and stamp < known[-1][0] - CACHE_NS:
            return
        if place < len(known) and known[place][0] == stamp:
            return
        known.insert(place, (stamp, each.header.frame_id, matrix_of(each)))

    def parent(self, child: str, stamp: int) -> tuple[str, np.ndarray] | None:
        """The parent at a stamp and (4, 4) parent_from_child, interpolated; None for a root."""
        if child not in self._moving:
            return self._static.get(child)
        known = self._moving[child]
        place = bisect.bisect_left([entry[0] for entry in known], stamp)
        if place < len(known) and known[place][0] == stamp:
            return known[place][1:]
        if place in (0, len(known)):
            raise Unknown(f"{child} has no parent at {stamp}: {known[0][0]} … {known[-1][0]}")
        (t0, parent, before), (t1, other, after) = known[place - 1], known[place]
        if parent != other:
            return parent, before
        share = (stamp - t0) / (t1 - t0)
        between = np.eye(4)
        rotations = Rotation.from_matrix(np.stack([before[:3, :3], after[:3, :3]]))
        between[:3, :3] = Slerp([0, 1], rotations)(share).as_matrix()
        between[:3, 3] = (1 - share) * before[:3, 3] + share * after[:3, 3]
        return parent, between

    def to_root(self, frame: str, stamp: int) -> tuple[str, np.ndarray]:
        """The root of a frame's tree at a stamp and (4, 4) root_from_frame."""
        root, root_from_frame = frame, np.eye(4)
        for _ in range(50):
            found = self.parent(root, stamp)
            if found is None:
                return root, root_from_frame
            root, root_from_frame = found[0], found[1] @ root_from_frame
        raise Unknown(f"the parents of {frame} form a circle")

    def lookup(self, target: str, source: str, stamp: int) -> np.ndarray:
        """(4, 4) target_from_source at a stamp.  Raises Unknown."""
        if source not in self._moving and source not in self._static:
            raise Unknown(f"{source} is unknown")
        root, root_from_target = self.to_root(target, stamp)
        other, root_from_source = self.to_root(source, stamp)
        if root != other:
            raise Unknown(f"{target} is below {root}, {source} below {other}")
        return np.linalg.inv(root_from_target) @ root_from_source

    def parents(self, child: str) -> set[str]:
        """All parents that a frame ever had."""
        names = {entry[1] for entry in self._moving.get(child, [])}
        return names | ({self._static[child][0]} if child in self._static else set())


def matrix_of(each: TransformStamped) -> np.ndarray:
    """(4, 4) parent_from_child."""
    p, q = each.transform.translation, each.transform.rotation
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix()
    matrix[:3, 3] = p.x, p.y, p.z
    return matrix

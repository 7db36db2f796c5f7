"""The fused cloud: a voxel hash whose content can be taken out again exactly.

Every voxel holds integer sums (confidence-weighted position inside the voxel and colour), so removing what
was added restores the sums bit for bit, in any order.  That is what lets the cloud follow keyframes that
move.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fast3r_ros.mapping.data import Cloud, Float32, UInt8

Int64 = NDArray[np.int64]

_HALF_RANGE = 1 << 20  # voxel indices per axis: 21 bits
_SUBDIVISION = 256  # position inside a voxel
_CONFIDENCE_STEPS = 16  # steps per unit of confidence
_MAX_CONFIDENCE = 255.0
_HASH = np.uint64(0x9E3779B97F4A7C15)
_COMPACT_AT = 20000  # empty voxels that are kept before the table is packed
# columns of the sums
_WEIGHT, _POSITION, _COLOR, _COUNT = 0, slice(1, 4), slice(4, 7), 7


@dataclass(frozen=True)
class CloudUpdate:
    """What changed since a version.

    complete: the receiver must forget what it has (the history does not reach back far enough).  cloud: the
    new or changed points.  removed: (M, 3) float32 centres of voxels that are now empty.
    """

    version: int
    complete: bool
    cloud: Cloud
    removed: Float32


class VoxelCloud:
    """A voxel hash over numpy arrays: rows of sums, found through an open-addressing table."""

    def __init__(self, voxel_size: float) -> None:
        self.voxel_size = voxel_size
        self._packed_at = 0  # version of the last packing, which forgets emptied voxels
        self._allocate(np.zeros(0, np.int64), np.zeros((0, 8), np.int64), np.zeros(0, np.int64))

    def _allocate(self, keys: Int64, sums: Int64, versions: Int64, room: int = 0) -> None:
        """Fresh arrays holding the given rows, with room for at least `room` more."""
        self._rows = len(keys)
        capacity = max(4096, int(1.5 * self._rows), self._rows + room)
        self._keys = np.zeros(capacity, np.int64)
        self._sums = np.zeros((capacity, 8), np.int64)
        self._versions = np.zeros(capacity, np.int64)
        self._keys[: self._rows], self._sums[: self._rows], self._versions[: self._rows] = (
            keys,
            sums,
            versions,
        )
        self._build_table()

    def _build_table(self) -> None:
        bits = int(2 * len(self._keys) - 1).bit_length()
        self._shift = np.uint64(64 - bits)
        self._table = np.full(1 << bits, -1, np.int64)
        self._empty = int((self._sums[: self._rows, _COUNT] == 0).sum())
        rows, self._rows = self._rows, 0
        self._find_or_insert(self._keys[:rows].copy())

    def _find_or_insert(self, keys: Int64) -> Int64:
        """Rows of distinct keys; unknown keys get new rows at the end, in the order of the keys."""
        rows = np.full(len(keys), -1, np.int64)
        slots = ((keys.view(np.uint64) * _HASH) >> self._shift).astype(np.int64)
        pending = np.arange(len(keys))
        new: list[NDArray[np.int64]] = []
        while pending.size:
            found = self._table[slots[pending]]
            vacant = pending[found == -1]
            # several keys may want the same vacant slot: all write their mark, one stays
            self._table[slots[vacant]] = -2 - vacant
            won = vacant[self._table[slots[vacant]] == -2 - vacant]
            new.append(won)
            taken = pending[found >= 0]
            row = found[found >= 0]
            same = self._keys[row] == keys[taken]
            rows[taken[same]] = row[same]
            # marks of this batch also occupy slots
            marked = pending[found < -1]
            rest = np.concatenate([taken[~same], marked])
            slots[rest] = (slots[rest] + 1) & (len(self._table) - 1)
            lost = vacant[self._table[slots[vacant]] != -2 - vacant]
            pending = np.concatenate([rest, lost])
        inserted = np.sort(np.concatenate(new)) if new else np.zeros(0, np.int64)
        rows[inserted] = self._rows + np.arange(len(inserted))
        self._table[slots[inserted]] = rows[inserted]
        self._keys[rows[inserted]] = keys[inserted]
        self._rows += len(inserted)
        return rows

    def add(self, points: Float32, colors: UInt8, confidence: Float32, version: int) -> None:
        """Fuse points (N, 3) with colours (N, 3) and confidence (N,); version marks the voxels as changed."""
        keys, sums = _contributions(points, colors, confidence, self.voxel_size)
        if self._rows + len(keys) > len(self._keys):
            used = slice(0, self._rows)
            self._allocate(self._keys[used], self._sums[used], self._versions[used], len(keys))
        before = self._rows
        rows = self._find_or_insert(keys)
        self._empty -= int((self._sums[rows[rows < before], _COUNT] == 0).sum())
        self._sums[rows] += sums
        self._versions[rows] = version

    def remove(self, points: Float32, colors: UInt8, confidence: Float32, version: int) -> None:
        """Take out exactly what `add` put in with the same arguments."""
        keys, sums = _contributions(points, colors, confidence, self.voxel_size)
        rows = self._find_or_insert(keys)
        self._sums[rows] -= sums
        self._versions[rows] = version
        self._empty += int((self._sums[rows, _COUNT] == 0).sum())
        if self._empty > max(_COMPACT_AT, self._rows // 4):
            keep = self._sums[: self._rows, _COUNT] > 0
            kept = np.flatnonzero(keep)
            self._packed_at = version
            self._allocate(self._keys[kept], self._sums[kept], self._versions[kept])

    def __len__(self) -> int:
        """Number of points of the cloud."""
        return self._rows - self._empty

    @property
    def nbytes(self) -> int:
        """Memory of the arrays in bytes."""
        return self._keys.nbytes + self._sums.nbytes + self._versions.nbytes + self._table.nbytes

    def cloud(self) -> Cloud:
        """One point per voxel, sorted by voxel so that equal content gives equal arrays."""
        rows = np.flatnonzero(self._sums[: self._rows, _COUNT] > 0)
        return self._points(rows[np.argsort(self._keys[rows])])

    def region(self, lower: NDArray[np.floating], upper: NDArray[np.floating]) -> Cloud:
        """The points inside the axis-aligned box from lower (3,) to upper (3,)."""
        cloud = self.cloud()
        inside = ((cloud.points >= lower) & (cloud.points <= upper)).all(axis=-1)
        return Cloud(cloud.points[inside], cloud.colors[inside], cloud.confidence[inside])

    def changes(self, since: int, version: int) -> CloudUpdate:
        """What changed after version `since`, up to the present `version`."""
        complete = since < self._packed_at
        newer = np.arange(self._rows) if complete else np.flatnonzero(self._versions[: self._rows] > since)
        present = self._sums[newer, _COUNT] > 0
        removed = np.zeros((0, 3), np.float32) if complete else self._centres(newer[~present])
        return CloudUpdate(version, complete, self._points(newer[present]), removed)

    def forget_history(self, version: int) -> None:
        """Make every reader of an older version start afresh."""
        self._packed_at = version

    def _points(self, rows: Int64) -> Cloud:
        sums = self._sums[rows]
        weight = np.maximum(sums[:, [_WEIGHT]], 1)
        inside = (sums[:, _POSITION] / weight + 0.5) / _SUBDIVISION
        points = (_unpack(self._keys[rows]) + inside) * self.voxel_size
        colors = np.rint(sums[:, _COLOR] / weight).astype(np.uint8)
        confidence = sums[:, _WEIGHT] / np.maximum(sums[:, _COUNT], 1) / _CONFIDENCE_STEPS
        return Cloud(points.astype(np.float32), colors, confidence.astype(np.float32))

    def _centres(self, rows: Int64) -> Float32:
        return ((_unpack(self._keys[rows]) + 0.5) * self.voxel_size).astype(np.float32)


def _contributions(
    points: Float32, colors: UInt8, confidence: Float32, voxel_size: float
) -> tuple[Int64, Int64]:
    """(distinct voxel keys (K,), integer sums (K, 8)) of a set of points; points out of range are left
    out.
    """
    scaled = points.astype(np.float64) / voxel_size
    index = np.floor(scaled)
    inside = (np.abs(index) < _HALF_RANGE - 1).all(axis=-1)
    index, scaled = index[inside], scaled[inside]
    within = np.clip((scaled - index) * _SUBDIVISION, 0, _SUBDIVISION - 1).astype(np.int64)
    whole = index.astype(np.int64) + _HALF_RANGE
    keys = (whole[:, 0] << 42) | (whole[:, 1] << 21) | whole[:, 2]
    weight = np.rint(np.clip(confidence[inside], 1.0, _MAX_CONFIDENCE) * _CONFIDENCE_STEPS).astype(np.int64)
    terms = np.empty((len(keys), 8), np.int64)
    terms[:, _WEIGHT] = weight
    terms[:, _POSITION] = weight[:, None] * within
    terms[:, _COLOR] = weight[:, None] * colors[inside]
    terms[:, _COUNT] = 1
    if not len(keys):
        return keys, terms
    order = np.argsort(keys, kind="stable")
    keys, terms = keys[order], terms[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[starts], np.add.reduceat(terms, starts, axis=0)


def _unpack(keys: Int64) -> Int64:
    """Voxel keys (N,) -> voxel indices (N, 3)."""
    mask = (1 << 21) - 1
    return np.stack([keys >> 42, (keys >> 21) & mask, keys & mask], axis=-1) - _HALF_RANGE

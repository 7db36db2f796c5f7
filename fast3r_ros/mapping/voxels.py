"""The fused cloud: a voxel hash with exact removal.

Every voxel holds integer sums (confidence-weighted position inside the voxel and colour), so that removing a
contribution restores the sums bit for bit, in any order.  The cloud can therefore follow keyframes that move.
Cells of 8 x 8 x 8 voxels hold other sums: which keyframes have points there, and which look through.  If
more, or later, keyframes look through than have points, the points are hidden.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fast3r_ros.mapping.data import Cloud, Float32, UInt8

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

_HALF_RANGE = 1 << 20  # voxel indices per axis: 21 bits
_AXIS_BITS = 21
_SUBDIVISION = 256  # steps of the position inside a voxel
_CONFIDENCE_STEPS = 16  # steps per unit of confidence
_MAX_CONFIDENCE = 255.0
_HASH = np.uint64(0x9E3779B97F4A7C15)
_COMPACT_AT = 20000  # number of empty rows before a table is packed
_CELL_BITS = 3  # a cell is 8 voxels wide
# columns of a voxel's sums
_WEIGHT, _POSITION, _COLOR, _COUNT = 0, slice(1, 4), slice(4, 7), 7
# columns of a cell's sums: keyframes with points in it and those that look through, with the sums of their
# numbers and of the squares of these; number of its voxels with points
_HITS, _PASSES, _OCCUPIED = slice(0, 3), slice(3, 6), 6
_FEWEST_PASSES = 2  # minimum number of keyframes that look through a cell with hidden points
_LATER_SHARE = 3  # later views hide the points of up to this many times more keyframes
_OUTVOTED = 3  # this many times more views hide the points of any keyframes that are not newer
_TO_THE_END = 1.8  # standard deviations from the mean to the end of a uniform distribution


class SumTable:
    """A hash over numpy arrays: rows of integer sums by key, found through an open-addressing table."""

    def __init__(self, columns: int) -> None:
        self.rows = 0
        self._allocate(np.zeros(0, np.int64), np.zeros((0, columns), np.int64))

    def _allocate(self, keys: Int64, sums: Int64, room: int = 0) -> None:
        """New arrays with the given rows and room for at least `room` more."""
        self.rows = len(keys)
        capacity = max(4096, int(1.5 * (self.rows + room)))
        self._keys = np.zeros(capacity, np.int64)
        self._sums = np.zeros((capacity, sums.shape[1]), np.int64)
        self._keys[: self.rows], self._sums[: self.rows] = keys, sums
        bits = int(2 * capacity - 1).bit_length()
        self._shift = np.uint64(64 - bits)
        self._table = np.full(1 << bits, -1, np.int64)
        rows, self.rows = self.rows, 0
        self._find_or_insert(self._keys[:rows].copy())

    @property
    def keys(self) -> Int64:
        """(rows,)."""
        return self._keys[: self.rows]

    @property
    def sums(self) -> Int64:
        """(rows, columns), to be changed in place."""
        return self._sums[: self.rows]

    @property
    def nbytes(self) -> int:
        """Memory of the arrays in bytes."""
        return self._keys.nbytes + self._sums.nbytes + self._table.nbytes

    def rows_of(self, keys: Int64) -> Int64:
        """Rows of distinct keys (K,); unknown ones get new rows of zeros at the end."""
        if self.rows + len(keys) > len(self._keys):
            self._allocate(self.keys.copy(), self.sums.copy(), len(keys))
        return self._find_or_insert(keys)

    def pack(self, kept: Bool) -> None:
        """Remove the rows that are not in `kept` (rows,)."""
        self._allocate(self.keys[kept], self.sums[kept])

    def _find_or_insert(self, keys: Int64) -> Int64:
        """Rows of distinct keys; unknown keys get new rows at the end, in the order of the keys."""
        slots = ((keys.view(np.uint64) * _HASH) >> self._shift).astype(np.int64)
        rows = self._table[slots]
        # most are known and in the first slot; where that is vacant, row -1 is compared in vain
        rows[(rows < 0) | (self._keys[rows] != keys)] = -1
        pending = np.flatnonzero(rows < 0)
        new: list[NDArray[np.int64]] = []
        while pending.size:
            found = self._table[slots[pending]]
            vacant = pending[found == -1]
            # several keys may claim the same free slot: all write their mark, one stays
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
        rows[inserted] = self.rows + np.arange(len(inserted))
        self._table[slots[inserted]] = rows[inserted]
        self._keys[rows[inserted]] = keys[inserted]
        self.rows += len(inserted)
        return rows


class VoxelCloud:
    """Voxels with the points of keyframes, and cells that record which of them are looked through."""

    def __init__(self, voxel_size: float) -> None:
        self.voxel_size = voxel_size
        self._voxels, self._cells = SumTable(8), SumTable(7)
        self._empty = 0  # voxels without points
        self._hidden = 0  # voxels with points in cells that are looked through

    @property
    def ray_step(self) -> float:
        """Sampling distance of a ray that meets all cells it passes: the width of a cell."""
        return self.voxel_size * (1 << _CELL_BITS)

    def add(
        self,
        points: Float32,
        colors: UInt8,
        confidence: Float32,
        passed: Float32 | None = None,
        number: int = 0,
    ) -> None:
        """Fuse a keyframe's points (N, 3) with colours (N, 3) and confidence (N,).

        passed: (M, 3) points of free space, `ray_step` apart on its rays.  number: of the keyframe, higher
        for later ones.
        """
        self._change(1, points, colors, confidence, passed, number)

    def remove(
        self,
        points: Float32,
        colors: UInt8,
        confidence: Float32,
        passed: Float32 | None = None,
        number: int = 0,
    ) -> None:
        """Remove exactly the contribution of `add` with the same arguments."""
        self._change(-1, points, colors, confidence, passed, number)
        if self._empty > max(_COMPACT_AT, self._voxels.rows // 4):
            self._voxels.pack(self._voxels.sums[:, _COUNT] > 0)
            self._empty = 0
            self._cells.pack((self._cells.sums != 0).any(axis=1))

    def _change(
        self,
        sign: int,
        points: Float32,
        colors: UInt8,
        confidence: Float32,
        passed: Float32 | None,
        number: int,
    ) -> None:
        keys, sums = _contributions(points, colors, confidence, self.voxel_size)
        known = self._voxels.rows
        rows = self._voxels.rows_of(keys)
        self._empty += self._voxels.rows - known
        before = self._voxels.sums[rows]
        after = before + sign * sums
        self._voxels.sums[rows] = after
        filled = (after[:, _COUNT] > 0).astype(np.int64) - (before[:, _COUNT] > 0)
        self._empty -= int(filled.sum())
        self._change_cells(sign, _cells_of(keys), filled, passed, number)

    def _change_cells(
        self, sign: int, hit: Int64, filled: Int64, passed: Float32 | None, number: int
    ) -> None:
        """hit: (K,) cells of the changed voxels; filled: (K,) +1 for a first point, -1 for a last."""
        cells, hit = hit, _distinct(hit)
        through = np.zeros(0, np.int64)
        if passed is not None:
            through = _distinct(_cells_of(_keys(_in_voxels(passed, self.voxel_size)[0])))
            through = through[~_among(through, hit)]  # a cell where it also has points is not free
        rows = self._cells.rows_of(np.concatenate([hit, through]))
        sums = self._cells.sums
        self._hidden -= self._hidden_in(rows)
        seen, free = rows[: len(hit)], rows[len(hit) :]
        moments = sign * np.array([1, number, number**2])
        changed = filled != 0
        place = np.searchsorted(hit, cells[changed])
        sums[seen, _OCCUPIED] += np.bincount(place, filled[changed], len(hit)).astype(np.int64)
        sums[seen, _HITS] += moments
        sums[free, _PASSES] += moments
        self._hidden += self._hidden_in(rows)

    def _hidden_in(self, rows: Int64) -> int:
        """Number of voxels with points in cells that are looked through."""
        sums = self._cells.sums[rows]
        sums = sums[sums[:, _OCCUPIED] > 0]
        return int(sums[_looked_through(sums), _OCCUPIED].sum())

    def __len__(self) -> int:
        """Number of points of the cloud."""
        return self._voxels.rows - self._empty - self._hidden

    @property
    def nbytes(self) -> int:
        """Memory of the arrays in bytes."""
        return self._voxels.nbytes + self._cells.nbytes

    def cloud(self) -> Cloud:
        """One point per voxel, sorted by voxel so that equal content gives equal arrays."""
        hidden = self._cells.keys[_looked_through(self._cells.sums)]
        shown = self._voxels.sums[:, _COUNT] > 0
        shown &= ~np.isin(_cells_of(self._voxels.keys), hidden)
        rows = np.flatnonzero(shown)
        return self._points(rows[np.argsort(self._voxels.keys[rows])])

    def region(self, lower: NDArray[np.floating], upper: NDArray[np.floating]) -> Cloud:
        """The points inside the axis-aligned box from lower (3,) to upper (3,)."""
        cloud = self.cloud()
        inside = ((cloud.points >= lower) & (cloud.points <= upper)).all(axis=-1)
        return Cloud(cloud.points[inside], cloud.colors[inside], cloud.confidence[inside])

    def _points(self, rows: Int64) -> Cloud:
        sums = self._voxels.sums[rows]
        weight = np.maximum(sums[:, [_WEIGHT]], 1)
        inside = (sums[:, _POSITION] / weight + 0.5) / _SUBDIVISION
        points = (_unpack(self._voxels.keys[rows]) + inside) * self.voxel_size
        colors = np.rint(sums[:, _COLOR] / weight).astype(np.uint8)
        confidence = sums[:, _WEIGHT] / np.maximum(sums[:, _COUNT], 1) / _CONFIDENCE_STEPS
        return Cloud(points.astype(np.float32), colors, confidence.astype(np.float32))


def _looked_through(cells: Int64) -> Bool:
    """(K,) cells (K, 7) with points that later, or many more, keyframes look through.

    Points newer than the views through them stay: an object may have been added.
    """
    hits, hit_mean, hit_reach = _spread(cells[:, _HITS])
    passes, pass_mean, pass_reach = _spread(cells[:, _PASSES])
    later = (_LATER_SHARE * passes >= hits) & (pass_mean > hit_mean + hit_reach)
    outvoted = (passes >= _OUTVOTED * hits) & (hit_mean <= pass_mean + pass_reach)
    return (passes >= _FEWEST_PASSES) & (later | outvoted)


def _spread(moments: Int64) -> tuple[Int64, NDArray[np.float64], NDArray[np.float64]]:
    """(count, mean, distance from the mean to the last) of numbers given by their moments (K, 3)."""
    count = moments[:, 0]
    mean, square = (moments[:, i] / np.maximum(count, 1) for i in (1, 2))
    return count, mean, _TO_THE_END * np.sqrt(np.maximum(square - mean**2, 0))


def _in_voxels(points: Float32, voxel_size: float) -> tuple[NDArray[np.float64], NDArray[np.float64], Bool]:
    """Of the points in range: voxel indices (K, 3), points (K, 3) in voxels; and which these are (N,)."""
    scaled = points.astype(np.float64) / voxel_size
    index = np.floor(scaled)
    inside = np.ones(len(points), bool)
    if len(points) and not max(-index.min(), index.max()) < _HALF_RANGE - 1:  # which is rare
        inside = np.asarray((np.abs(index) < _HALF_RANGE - 1).all(axis=-1))
        index, scaled = index[inside], scaled[inside]
    return index, scaled, inside


def _keys(index: NDArray[np.float64]) -> Int64:
    """Voxel indices (N, 3) -> keys (N,)."""
    whole = index.astype(np.int64) + _HALF_RANGE
    return (whole[:, 0] << 2 * _AXIS_BITS) | (whole[:, 1] << _AXIS_BITS) | whole[:, 2]


def _contributions(
    points: Float32, colors: UInt8, confidence: Float32, voxel_size: float
) -> tuple[Int64, Int64]:
    """(distinct voxel keys (K,), integer sums (K, 8)) of a set of points; points out of range are ignored."""
    index, scaled, inside = _in_voxels(points, voxel_size)
    keys = _keys(index)
    within = np.minimum((scaled - index) * _SUBDIVISION, _SUBDIVISION - 1).astype(np.int64)
    weight = np.rint(np.clip(confidence[inside], 1.0, _MAX_CONFIDENCE) * _CONFIDENCE_STEPS).astype(np.int64)
    terms = np.empty((len(keys), 8), np.int64)
    terms[:, _WEIGHT] = weight
    np.multiply(weight[:, None], within, out=terms[:, _POSITION])
    np.multiply(weight[:, None], colors[inside], out=terms[:, _COLOR])
    terms[:, _COUNT] = 1
    if not len(keys):
        return keys, terms
    order = np.argsort(keys)
    keys = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[starts], np.add.reduceat(terms.take(order, axis=0), starts, axis=0)


def _distinct(keys: Int64) -> Int64:
    """The different ones of keys (N,), in order; `np.unique` takes several times as long."""
    keys = np.sort(keys)
    return keys[np.flatnonzero(np.diff(keys, prepend=-1))]


def _among(keys: Int64, others: Int64) -> Bool:
    """(N,) whether keys (N,) are among the sorted others (K,)."""
    if not len(others):
        return np.zeros(len(keys), bool)
    return np.asarray(others[np.minimum(np.searchsorted(others, keys), len(others) - 1)] == keys)


def _unpack(keys: Int64) -> Int64:
    """Voxel keys (N,) -> voxel indices (N, 3)."""
    mask = (1 << _AXIS_BITS) - 1
    return np.stack([keys >> 2 * _AXIS_BITS, (keys >> _AXIS_BITS) & mask, keys & mask], axis=-1) - _HALF_RANGE


def _cells_of(keys: Int64) -> Int64:
    """Voxel keys (N,) -> keys of the cells that they are in."""
    axis = ((1 << _AXIS_BITS) - 1) & ~((1 << _CELL_BITS) - 1)
    return keys & ((axis << 2 * _AXIS_BITS) | (axis << _AXIS_BITS) | axis)

"""Fusion attention to merged tokens of far views, for scenes of hundreds of views.

Neighbouring tokens of a view are similar.  Every group of consecutive views attends to each of its own tokens
and of view 0's, whose camera is the frame of the global points.  The keys and values of all other views are
merged: the mean of a cell of merge x merge patches represents its tokens, with the logarithm of their number
added to its logit (Bolya et al., Token Merging, ICLR 2023, "proportional attention").  No training is needed.
For many views the work falls to 1 / merge^2 of the exact one.

A group's attention is joined from plain ones: to the near tokens, to the cells of all views before the group,
and to those after it.  Cells are merged once and stored view by view, so that both are slices.  If merge does
not divide a grid, the smaller cells at its right and bottom edges form further slices.  The logarithm of the
number of tokens is equal for all cells of a slice, so it is added to the slice's sum instead of to each
logit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from fast3r_ros.model.attention import attend
from fast3r_ros.model.attention_sums import MixedAndSums, attend_with_sums, joined

GROUP = 8  # number of consecutive views that attend to each other's unmerged tokens

_Size = tuple[int, int]  # tokens of a cell, vertically and horizontally


@dataclass(frozen=True)
class _Cells:
    """The merged cells of one size, view after view.

    keys, values: (B, heads, cells, D).  starts: index of each view's first cell, and the end.  log_size:
    logarithm of the number of tokens in a cell.
    """

    keys: Tensor
    values: Tensor
    starts: tuple[int, ...]
    log_size: float


class MergedAttention:
    """An `AttentionFunction` for views of the given grids (h, w); merge 1 is exact."""

    def __init__(self, grids: Sequence[tuple[int, int]], merge: int, group: int = GROUP) -> None:
        self._grids = list(grids)
        self._merge = merge
        numbers = range(len(grids))
        self._groups = [numbers[start : start + group] for start in numbers[::group]]
        self._counts = [rows * columns for rows, columns in grids]
        self._starts = list(accumulate(self._counts, initial=0))

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float, kernel: str) -> Tensor:
        """Queries, keys and values (B, heads, T, D) to mixed values of the same shape."""
        if len(self._groups) == 1:
            return attend(query, key, value, scale, kernel)
        cells = self._merged(key, value)
        # tokens before heads in memory, which the next projection reads without a copy
        mixed = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        for group in self._groups:
            tokens = slice(self._starts[group.start], self._starts[group.stop])
            near = [tokens] if group.start == 0 else [slice(0, self._counts[0]), tokens]
            near_keys, near_values = (
                torch.cat([tensor[:, :, part] for part in near], dim=2) for tensor in (key, value)
            )
            own = query[:, :, tokens]
            parts = [attend_with_sums(own, near_keys, near_values, scale, kernel)]
            for views in (range(1, group.start), range(group.stop, len(self._grids))):
                parts += [_attended(own, each, views, scale, kernel) for each in cells if _any(each, views)]
            mixed[:, :, tokens] = joined(parts)
        return mixed

    def _merged(self, key: Tensor, value: Tensor) -> list[_Cells]:
        """The cells of all views, grouped by size."""
        found: dict[_Size, list[tuple[Tensor, Tensor]]] = {}  # size -> keys and values of consecutive views
        counts: dict[_Size, list[int]] = {}  # size -> number of cells of each view
        done = 0
        for grid, run in groupby(self._grids):
            views = len(list(run))
            part = slice(self._starts[done], self._starts[done + views])
            means = [self._means(tensor[:, :, part], views, grid) for tensor in (key, value)]
            for size, rows, columns in _regions(grid, self._merge):
                keys, values = (mean[:, :, :, rows, columns].flatten(3, 4) for mean in means)
                found.setdefault(size, []).append((keys.flatten(2, 3), values.flatten(2, 3)))
                lengths = counts.setdefault(size, [])
                lengths += [0] * (done - len(lengths)) + [keys.shape[3]] * views
            done += views
        result = []
        for size, parts in found.items():
            keys, values = (torch.cat(tensors, dim=2) for tensors in zip(*parts, strict=True))
            lengths = counts[size] + [0] * (len(self._grids) - len(counts[size]))
            starts = tuple(accumulate(lengths, initial=0))
            result.append(_Cells(keys, values, starts, math.log(math.prod(size))))
        return result

    def _means(self, tokens: Tensor, views: int, grid: tuple[int, int]) -> Tensor:
        """(B, heads, V * h * w, D) of V views to the means of cells, (B, heads, V, rows, columns, D)."""
        batch, heads, _, width = tokens.shape
        maps = tokens.unflatten(2, (views, *grid)).permute(0, 2, 1, 5, 3, 4).flatten(0, 1).flatten(1, 2)
        means = F.avg_pool2d(maps, self._merge, ceil_mode=True, count_include_pad=False)
        return means.unflatten(1, (heads, width)).unflatten(0, (batch, views)).permute(0, 2, 1, 4, 5, 3)


def _regions(grid: tuple[int, int], merge: int) -> list[tuple[_Size, slice, slice]]:
    """The rectangles of cells of equal size: their size, rows and columns.

    Whole cells, those at the right, those at the bottom, and the corner; empty rectangles are omitted.
    """
    sides = []
    for length in grid:
        whole, rest = divmod(length, merge)
        spans = [(merge, slice(0, whole)), (rest, slice(whole, None))]
        sides.append([(side, span) for side, span in spans if side and (side < merge or whole)])
    return [((high, wide), rows, columns) for high, rows in sides[0] for wide, columns in sides[1]]


def _any(cells: _Cells, views: range) -> bool:
    return len(views) > 0 and cells.starts[views.stop] > cells.starts[views.start]


def _attended(query: Tensor, cells: _Cells, views: range, scale: float, kernel: str) -> MixedAndSums:
    """Attention to the cells of some consecutive views."""
    part = slice(cells.starts[views.start], cells.starts[views.stop])
    mixed, sums = attend_with_sums(query, cells.keys[:, :, part], cells.values[:, :, part], scale, kernel)
    return mixed, sums + cells.log_size

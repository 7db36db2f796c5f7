"""Fusion attention to merged tokens of far views, for scenes of hundreds of views.

Neighbouring tokens of a view are nearly alike.  Every group of consecutive views attends to its own tokens
and to those of view 0, whose camera is the frame of the global points, one by one; the keys and values of
all other views are merged: the mean of a cell of merge x merge patches stands for its tokens, with the
logarithm of their number added to its logit (Bolya et al., Token Merging, ICLR 2023, "proportional
attention").  Nothing is trained.  For many views the work falls to 1 / merge^2 of the exact one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from fast3r_ros.model.attention import attend

GROUP = 8  # consecutive views whose tokens are not merged for each other
EXTRA = 8  # columns added to a head: one for the logarithm, and fast kernels want multiples of 8


class MergedAttention:
    """An `AttentionFunction` for views of the given grids (h, w); merge 1 is exact."""

    def __init__(self, grids: Sequence[tuple[int, int]], merge: int, group: int = GROUP) -> None:
        self._grids = list(grids)
        self._merge = merge
        numbers = range(len(grids))
        self._groups = [numbers[start : start + group] for start in numbers[::group]]
        self._counts = [rows * columns for rows, columns in grids]
        self._starts = list(accumulate(self._counts, initial=0))
        self._log_sizes = {grid: _log_sizes(grid, merge) for grid in set(grids)}

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float, kernel: str) -> Tensor:
        """Queries, keys and values (B, heads, T, D) to mixed values of the same shape."""
        keys, values = key.split(self._counts, dim=2), value.split(self._counts, dim=2)
        columns = {grid: log_sizes.to(key) / scale for grid, log_sizes in self._log_sizes.items()}
        far_keys = [
            _widened(self._merged(view, grid), columns[grid])
            for view, grid in zip(keys, self._grids, strict=True)
        ]
        far_values = [
            _widened(self._merged(view, grid)) for view, grid in zip(values, self._grids, strict=True)
        ]
        # tokens before heads in memory: the projection after it reads this without a copy
        mixed = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        for group in self._groups:
            near = {0, *group}
            seen_keys, seen_values = (
                torch.cat([_widened(views[v]) if v in near else far[v] for v in range(len(views))], dim=2)
                for views, far in ((keys, far_keys), (values, far_values))
            )
            tokens = slice(self._starts[group.start], self._starts[group.stop])
            wide = _widened(query[:, :, tokens], query.new_ones(1))
            mixed[:, :, tokens] = attend(wide, seen_keys, seen_values, scale, kernel)[..., : query.shape[-1]]
        return mixed

    def _merged(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, heads, h*w, D) of one view to the means of its cells, (B, heads, cells, D)."""
        maps = tokens.transpose(2, 3).flatten(1, 2).unflatten(2, grid)
        means = F.avg_pool2d(maps, self._merge, ceil_mode=True, count_include_pad=False)
        return means.flatten(2).unflatten(1, (tokens.shape[1], -1)).transpose(2, 3)


def _log_sizes(grid: tuple[int, int], merge: int) -> Tensor:
    """(cells, 1): the logarithm of the number of tokens in each cell, fewer at the right and the bottom."""
    rows, columns = (
        torch.tensor([min(merge, side - start) for start in range(0, side, merge)]) for side in grid
    )
    return (rows[:, None] * columns).flatten()[:, None].log()


def _widened(x: Tensor, column: Tensor | None = None) -> Tensor:
    """(..., D) with EXTRA columns of zeros, the first of them `column` where it is given."""
    wide = F.pad(x, (0, EXTRA))
    if column is not None:
        wide[..., x.shape[-1] : x.shape[-1] + 1] = column
    return wide

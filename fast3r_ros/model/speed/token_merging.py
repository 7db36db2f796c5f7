"""Fusion attention to merged tokens of far views, for scenes of hundreds of views; near and far keys are
attended to apart and joined by their sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from fast3r_ros.model.attention import (
    KernelError,
    agrees,
    attend,
    checked_rows,
    first_right,
    kernel_errors,
    kernel_problem,
)

MOST_LOGITS = 1 << 24  # float32 logits that plain attention holds at a time
_NEXT_KERNELS = ("flash", "efficient", "cudnn")
MixedAndSums = tuple[Tensor, Tensor]


def attend_with_sums(query: Tensor, key: Tensor, value: Tensor, scale: float, name: str) -> MixedAndSums:
    """Attention of (B, heads, N, D) tensors: the mix, and the logarithm of each query's sum (B, heads, N).

    name: a kernel of `attention`.  Packages' kernels do not return the sums; then PyTorch's next one is used,
    as in `attend`, finally plain attention.  For inference.
    """
    names = _NEXT_KERNELS if name == "auto" else (name, *_NEXT_KERNELS)
    found = first_right(
        names if query.device.type == "cuda" or name != "auto" else _NEXT_KERNELS[:1],
        query,
        key,
        lambda kernel: _run(query, key, value, scale, kernel),
        lambda result: _right(result, query, key, value, scale),
        "attention with sums",
    )
    return plain(query, key, value, scale) if found is None else found


def joined(parts: Sequence[MixedAndSums]) -> Tensor:
    """The mix over all keys of mixes and sums over parts of them, in the mixes' dtype."""
    if len(parts) == 1:
        return parts[0][0]
    shares = torch.stack([sums for _, sums in parts]).softmax(dim=0).unsqueeze(-1)
    together = shares[0] * parts[0][0]
    for share, (mixed, _) in zip(shares[1:], parts[1:], strict=True):
        together = torch.addcmul(together, share, mixed.to(share.dtype))
    return together.to(parts[0][0].dtype)


def plain(query: Tensor, key: Tensor, value: Tensor, scale: float) -> MixedAndSums:
    """Like `attend_with_sums`, with all logits of some queries at a time, float32 or wider."""
    wide = torch.promote_types(query.dtype, torch.float32)
    keys, values = key.to(wide), value.to(wide)
    rows = max(1, MOST_LOGITS // (query[..., 0, 0].numel() * key.shape[2]))
    mixed, sums = [], []
    for part in query.split(rows, dim=2):
        logits = part.to(wide) @ keys.transpose(2, 3) * scale
        sums.append(logits.logsumexp(dim=-1))
        mixed.append((logits.softmax(dim=-1) @ values).to(query.dtype))
    return torch.cat(mixed, dim=2), torch.cat(sums, dim=2)


def _run(query: Tensor, key: Tensor, value: Tensor, scale: float, name: str) -> MixedAndSums:
    """One kernel of PyTorch, called below `scaled_dot_product_attention`, which does not return the sums.

    Raises KernelError when it cannot run or does not return the sums, and torch.OutOfMemoryError.
    """
    operators = torch.ops.aten
    problem = kernel_problem(query, name)
    if problem:
        raise KernelError(problem)
    tokens = query.shape[2]
    with kernel_errors():
        if name == "math":
            return plain(query, key, value, scale)
        if name == "flash" and query.device.type == "cpu":
            flash = operators._scaled_dot_product_flash_attention_for_cpu
            mixed, sums = flash(query, key, value, scale=scale)
        elif name == "flash":
            mixed, sums = operators._scaled_dot_product_flash_attention(query, key, value, scale=scale)[:2]
        elif name == "efficient":
            efficient = operators._scaled_dot_product_efficient_attention
            mixed, sums = efficient(query, key, value, None, True, scale=scale)[:2]
        elif name == "cudnn":
            cudnn = operators._scaled_dot_product_cudnn_attention
            mixed, sums = cudnn(query, key, value, None, True, scale=scale)[:2]
        else:
            raise KernelError("it does not return the sums")
        # some kernels pad the queries or add an axis of length one
        return mixed, sums.flatten(2)[..., :tokens]


@torch.no_grad()
def _right(result: MixedAndSums, query: Tensor, key: Tensor, value: Tensor, scale: float) -> bool:
    """Whether a few rows and their sums equal plain attention.  Synchronises with the device."""
    mixed, sums = result
    if not agrees(mixed, query, key, value, scale):
        return False
    rows = checked_rows(query)
    chosen = slice(None, None, max(1, query.shape[1] - 1))  # the first head and the last
    logits = query[:1, chosen, rows].float() @ key[:1, chosen].float().transpose(2, 3) * scale
    exact = logits.logsumexp(dim=-1)
    return bool(((sums[:1, chosen, rows] - exact).abs() <= 1e-2 * (1 + exact.abs())).all())


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

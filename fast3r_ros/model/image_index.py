"""Image indices: each view's row of the sinusoidal index table.

In training, view 0 has index 0 and the others random indices from 1..999, so that 20 views in training cover
the range that hundreds use later ("position interpolation", section 3 of the Fast3R paper).
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

TRAINED_ROWS = 1000


def spread_indices(batch: int, views: int) -> Tensor:
    """Indices spread evenly over the trained range, (batch, views): reproducible, any number of views.

    Up to 1000 views they are distinct integers; beyond that they are fractions between 0 and 999, so that the
    table is interpolated and never exceeded.
    """
    if views <= 1:
        return torch.zeros(batch, views, dtype=torch.long)
    positions = torch.arange(views, dtype=torch.float64) * ((TRAINED_ROWS - 1) / (views - 1))
    row = positions.round().long() if views <= TRAINED_ROWS else positions
    return row.expand(batch, views)


def counted_indices(batch: int, views: int) -> Tensor:
    """View v gets row v, (batch, views); squeezed into the table beyond 1000 views."""
    if views > TRAINED_ROWS:
        return spread_indices(batch, views)
    return torch.arange(views).expand(batch, views)


def drawn_indices(batch: int, views: int, seed: int | None) -> Tensor:
    """The random draw of training, (batch, views): 0 for view 0, distinct rows of 1..999 for the others.

    With a seed, the draw equals that of the official release after `torch.manual_seed(seed)`; without one,
    the seed comes from torch's global generator.  Beyond 1000 views, evenly spread positions are drawn in
    random order.
    """
    source = None if seed is None else torch.Generator().manual_seed(seed)
    drawn_seed = int(torch.randint(0, 2**32, (1,), generator=source))
    generator = torch.Generator().manual_seed(drawn_seed)
    rows = spread_indices(1, views)[0]
    result = torch.zeros(batch, views, dtype=rows.dtype)
    for sample in range(batch):
        if views <= TRAINED_ROWS:
            result[sample, 1:] = (
                torch.randperm(TRAINED_ROWS - 1, generator=generator)[: max(views - 1, 0)] + 1
            )
        else:
            result[sample, 1:] = rows[1:][torch.randperm(views - 1, generator=generator)]
    return result


def free_indices(taken: Sequence[int], count: int, spread: bool = True) -> list[int]:
    """`count` whole indices not in `taken`, for views that join others; `taken` has at least one.

    spread: consecutive indices in the middle of the widest gap of the trained range; otherwise the smallest.
    """
    used = sorted(taken)
    found = []
    for _ in range(count):
        if spread:
            width, start = max((b - a, -a) for a, b in itertools.pairwise([*used, TRAINED_ROWS]))
            index = width // 2 - start
        else:
            index = next(number for number in itertools.count(1) if number not in used)
        found.append(index)
        bisect.insort(used, index)
    return found


def index_embedding(indices: Tensor, width: int) -> Tensor:
    """The table's rows at `indices` (any shape, whole or fractional): (..., width) float32, sines first.

    Row p is [sin(p w_0), ...; cos(p w_0), ...] with w_k = 10000^(-k / (width / 2)), computed in float64.
    """
    half = width // 2
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device="cpu") / half)
    angles = indices.detach().to("cpu", torch.float64)[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()

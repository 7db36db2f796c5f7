"""Fusion of new views with what the fusion remembers of others.

Most views of a window that slides were fused before.  Their keys and values are kept, block by block, and a
later pass takes only the tokens of new views through the blocks; these attend to each other and to what is
kept.  The views that are kept do not look at the new ones, which an exact pass would let them do.  It is the
cache of language models; Zhuo et al. (Streaming 4D Visual Geometry Transformer, 2025) train a network for it,
here nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from fast3r_ros.model.attention import attend


@dataclass(frozen=True)
class FusionMemory:
    """What the blocks of the fusion made of some views.

    keys, values: (B, heads, T, D) of each block, over the tokens of all views.  counts: tokens of each view.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    counts: tuple[int, ...]

    def spans(self, views: Sequence[int]) -> list[slice]:
        """Where the tokens of some views are, in the views' order; neighbours together."""
        starts = list(accumulate(self.counts, initial=0))
        spans: list[slice] = []
        for view in views:
            if spans and spans[-1].stop == starts[view]:
                spans[-1] = slice(spans[-1].start, starts[view + 1])
            else:
                spans.append(slice(starts[view], starts[view + 1]))
        return spans


class Remembering:
    """An `AttentionFunction` for one pass of the fusion, which keeps what a later pass can attend to.

    memory, views: attend to these views of an earlier pass, too.
    """

    def __init__(self, memory: FusionMemory | None = None, views: Sequence[int] = ()) -> None:
        self._memory = memory
        self._counts = [] if memory is None else [memory.counts[view] for view in views]
        self._spans = [] if memory is None else memory.spans(views)
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float, kernel: str) -> Tensor:
        """Queries, keys and values (B, heads, T, D) of new views to mixed values of the same shape."""
        block = len(self._keys)
        before = ((), ()) if self._memory is None else (self._memory.keys, self._memory.values)
        for seen, tokens, kept in zip(before, (key, value), (self._keys, self._values), strict=True):
            old = [seen[block][:, :, span] for span in self._spans]
            kept.append(torch.cat([*old, tokens], dim=2))  # always a copy: keys lie between queries
        return attend(query, self._keys[block], self._values[block], scale, kernel)

    def memory(self, counts: Sequence[int]) -> FusionMemory:
        """After the pass: the views attended to, then the new ones.  counts: tokens of each new view."""
        return FusionMemory(tuple(self._keys), tuple(self._values), (*self._counts, *counts))

"""Fusion of new views with the cached keys and values of earlier ones.

Most views of a sliding window have been fused before.  Their keys and values are cached, block by block, and
a later pass takes only the tokens of new views through the blocks; these attend to each other and to the
cache.  The cached views do not attend to the new ones, unlike in an exact pass.  This is the KV cache of
language models; Zhuo et al. (Streaming 4D Visual Geometry Transformer, 2025) train a network for it, here
nothing is trained.
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
    """The cached keys and values of some views in the fusion's blocks.

    keys, values: (B, heads, T, D) of each block, over the tokens of all views.  counts: tokens of each view.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    counts: tuple[int, ...]

    def spans(self, views: Sequence[int]) -> list[slice]:
        """The token ranges of some views, in the views' order; adjacent ranges are joined."""
        starts = list(accumulate(self.counts, initial=0))
        spans: list[slice] = []
        for view in views:
            if spans and spans[-1].stop == starts[view]:
                spans[-1] = slice(spans[-1].start, starts[view + 1])
            else:
                spans.append(slice(starts[view], starts[view + 1]))
        return spans


class KvCache:
    """An `AttentionFunction` for one pass of the fusion that caches keys and values for later passes.

    memory, views: also attend to these views of an earlier pass.
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
            kept.append(torch.cat([*old, tokens], dim=2))  # always a copy: in memory keys lie between queries
        return attend(query, self._keys[block], self._values[block], scale, kernel)

    def memory(self, counts: Sequence[int]) -> FusionMemory:
        """After the pass: the views attended to, then the new ones.  counts: tokens of each new view."""
        return FusionMemory(tuple(self._keys), tuple(self._values), (*self._counts, *counts))

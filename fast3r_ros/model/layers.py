"""The transformer block that the encoder and the fusion transformer share, and the encoder's 2D rotary
embedding (RoPE), on a GPU as one kernel.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fast3r_ros.files import one_line
from fast3r_ros.model.attention import attend

_log = logging.getLogger(__name__)


def rope_tables(grid: tuple[int, int], head_dim: int, base: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the 2D rotary embedding for a row-major grid, each (h*w, 1, 1, 2, head_dim / 4).

    The first half of a head rotates with the token's row, the second with its column; within a half of size m
    pair (i, i + m/2) rotates by position * base^(-2i/m).  Angles are float32; the tables at least float32.
    """
    quarter = head_dim // 4
    steps = torch.arange(0, 2 * quarter, 2, device=like.device).float()
    frequencies = 1.0 / base ** (steps / (2 * quarter))
    rows, columns = torch.meshgrid(
        torch.arange(grid[0], device=like.device), torch.arange(grid[1], device=like.device), indexing="ij"
    )
    positions = torch.stack([rows, columns], dim=-1).reshape(-1, 1, 1, 2, 1).float()
    angles = (positions * frequencies).to(torch.promote_types(like.dtype, torch.float32))
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Apply `rope_tables` to (B, N, ..., heads, D); computed in the tables' dtype, returned in x's."""
    if x.device.type == "cuda" and type(x) is Tensor and not torch.is_grad_enabled():
        return fused(x, cosines, sines)
    return stepwise(x, cosines, sines)


def fused(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Like `rotate`, in one kernel; stepwise, with a warning, if it cannot be compiled.

    Raises torch.OutOfMemoryError when the device is out of memory.
    """
    if torch.compiler.is_compiling() or _failures:  # a graph fuses it anyway
        return stepwise(x, cosines, sines)
    try:
        return _kernel()(x, cosines, sines)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # any type: without Triton or the C compiler that it needs
        _failures.append(one_line(error))
        _log.warning("the rotation cannot be compiled and runs step by step: %s", _failures[0])
    return stepwise(x, cosines, sines)


def stepwise(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Like `rotate`, one operation after the other."""
    halves = x.unflatten(-1, (2, 2, cosines.shape[-1])).to(cosines.dtype)
    first, second = halves.unbind(-2)
    turned = torch.stack([first * cosines - second * sines, second * cosines + first * sines], dim=-2)
    return turned.flatten(-3).to(x.dtype)


_failures: list[str] = []  # reason why this process cannot compile


@functools.cache
def _kernel() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    from torch._inductor import config  # imported late: takes seconds

    options: dict[str, Any] = {"compile_threads": 1}  # no pool of processes for one kernel
    if hasattr(config, "force_pointwise_cat"):  # otherwise two kernels, one per half of the pairs
        options["force_pointwise_cat"] = True
    return torch.compile(stepwise, dynamic=True, fullgraph=True, options=options)


TOKENS_AT_ONCE = 32768
# (query, key, value, scale, kernel) -> mixed values; `attend` is the exact one of a single process
AttentionFunction = Callable[[Tensor, Tensor, Tensor, float, str], Tensor]


class Attention(nn.Module):
    """Multi-head self-attention; `kernel` is one of ATTENTION_NAMES, `scale` multiplies the logits.

    heads: number computed here, fewer than the network's if tensor parallelism splits them.
    """

    def __init__(self, width: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = width // heads
        self.scale = self.head_dim**-0.5
        self.kernel = "auto"
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        scale: float,
        function: AttentionFunction = attend,
    ) -> Tensor:
        """(B, N, C) to (B, N, C); rotation: the cos and sin of `rope_tables`, scale: of the logits."""
        return self.proj(self.mix(self.qkv(x), rotation, scale, function))

    def mix(
        self, qkv: Tensor, rotation: tuple[Tensor, Tensor] | None, scale: float, function: AttentionFunction
    ) -> Tensor:
        """(B, N, 3 heads D) queries, keys and values to the values mixed by attention, (B, N, heads D)."""
        parts = qkv.unflatten(-1, (3, self.heads, self.head_dim))
        if rotation is not None:
            query, key = rotate(parts[:, :, :2], *rotation).unbind(2)
        else:
            query, key = parts[:, :, 0], parts[:, :, 1]
        value = parts[:, :, 2]
        mixed = function(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale, self.kernel
        )
        return mixed.transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block: x += attention(norm(x)); x += mlp(norm(x)).

    inner: dtype of attention and MLP, None for that of x.
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, norm_eps: float, qkv_bias: bool = True
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, heads, qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.inner: torch.dtype | None = None

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor] | None = None,
        scale: float | None = None,
        function: AttentionFunction = attend,
    ) -> Tensor:
        """(B, N, C) to (B, N, C); `function` mixes the values, by default exactly and in this process."""
        scale = self.attn.scale if scale is None else scale
        if torch.is_grad_enabled():
            x = x + self.attn(narrowed(self.inner, self.norm1(x)), rotation, scale, function)
            return x + self.mlp(narrowed(self.inner, self.norm2(x)))
        x = self._attended(x, rotation, scale, function)
        # in parts: the hidden layer of 1500 views would need tens of GB
        for part in x.split(TOKENS_AT_ONCE, dim=1):
            part.add_(self.mlp(narrowed(self.inner, self.norm2(part))))
        return x

    def _attended(
        self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, scale: float, function: AttentionFunction
    ) -> Tensor:
        """x + attention(norm(x)) without gradients: allocates only queries, keys, values and their mix."""
        qkv = in_parts(lambda part: self.attn.qkv(narrowed(self.inner, self.norm1(part))), x)
        mixed = self.attn.mix(qkv, rotation, scale, function)
        del qkv  # three times the size of x
        return x + in_parts(self.attn.proj, mixed)


def narrowed(inner: torch.dtype | None, x: Tensor) -> Tensor:
    """x in a block's `inner` dtype, unchanged for None."""
    return x if inner is None else x.to(inner)


def widened(x: Tensor, blocks: nn.ModuleList) -> tuple[Tensor, torch.dtype | None]:
    """x in the dtype of the residual stream, and the blocks' dtype if it differs."""
    first = next(iter(blocks), None)
    if not isinstance(first, Block) or first.inner is None:
        return x, None
    return x.to(first.norm1.weight.dtype), first.inner


def in_parts(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function`, which treats tokens independently, of (B, N, C) in parts of TOKENS_AT_ONCE: (B, N, C')."""
    parts = x.split(TOKENS_AT_ONCE, dim=1)
    if len(parts) == 1:
        return function(x)
    whole: Tensor | None = None
    start = 0
    for part in parts:
        result = function(part)
        if whole is None:
            whole = result.new_empty(*x.shape[:2], result.shape[-1])
        whole[:, start : start + part.shape[1]] = result
        start += part.shape[1]
        del result
    assert whole is not None
    return whole


def run_block(
    block: nn.Module,
    x: Tensor,
    rotation: tuple[Tensor, Tensor] | None,
    scale: float | None,
    recompute: bool,
    function: AttentionFunction = attend,
) -> Tensor:
    """Run one block; with `recompute` its activations are computed again in the backward pass."""
    if recompute and torch.is_grad_enabled():
        result: Tensor = checkpoint(block, x, rotation, scale, function, use_reentrant=False)
        return result
    result = block(x, rotation, scale, function)
    return result

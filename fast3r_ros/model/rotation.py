"""The encoder's 2D rotary embedding (RoPE), as one kernel on a GPU.

PyTorch's compiler makes the kernel on first use, for all sizes.  The stepwise version takes nine kernels,
each of which reads and writes all queries and keys in float32.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fast3r_ros.files import one_line

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

"""Finds the fastest attention kernel of a device for a shape by running all kernels."""

from __future__ import annotations

import logging
import math
import statistics
import time
import warnings

import torch
from torch import Tensor

from fast3r_ros.model.attention import PACKAGES, PYTORCH_KERNELS, agrees, run_kernel
from fast3r_ros.model.fast3r import Fast3R
from fast3r_ros.model.layers import Attention
from fast3r_ros.model.speed.acceleration import acceleration_of

RUNS = 5
WORTH_IT = 0.95  # relative to PyTorch's own choice; a smaller gain is noise
# 64 views of 512x384 saturate every kernel; 1500 views take many seconds and give the same order
MOST_TOKENS = 49152
_log = logging.getLogger(__name__)


@torch.inference_mode()
def choose_attention(model: Fast3R, tokens: int) -> str:
    """Set the fusion's kernel to the fastest for a scene of `tokens` tokens; returns its name.

    A kernel set by `Fast3R.set_attention` stays, and so does PyTorch's choice for merged tokens, whose
    attention has other shapes.  Raises torch.OutOfMemoryError when the device has no memory for one
    attention.
    """
    modules = [module for module in model.decoder.modules() if isinstance(module, Attention)]
    if any(module.kernel != "auto" for module in modules):
        return modules[0].kernel
    if acceleration_of(model).merge > 1:
        return "auto"
    seconds = kernel_seconds(*_packed(model, modules[0], min(tokens, MOST_TOKENS)))
    fastest = min(seconds, key=lambda name: seconds[name], default="auto")
    chosen = fastest if _worth_it(seconds, fastest) else "auto"
    for module in modules:
        module.kernel = chosen
    times = ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in seconds.items())
    _log.info("attention of %d tokens: %s; using %s", tokens, times or "no kernel runs", chosen)
    return chosen


def kernel_seconds(query: Tensor, key: Tensor, value: Tensor) -> dict[str, float]:
    """Name -> median seconds of each kernel for tensors (B, heads, N, D) of this shape, layout and dtype.

    Only kernels that run and agree with plain attention; `math` is excluded, as it stores all logits.
    Raises torch.OutOfMemoryError when there is no memory for one.
    """
    found = {}
    for name in ("auto", *PYTORCH_KERNELS, *PACKAGES):
        if name == "math":
            continue
        try:
            found[name] = _seconds(query, key, value, name)
        except torch.OutOfMemoryError:
            raise  # the network would run out of memory, too
        except RuntimeError as error:
            _log.debug("attention %s is skipped: %s", name, error)
        except _WrongValues:
            _log.warning("attention %s differs from plain attention and is skipped", name)
    return found


class _WrongValues(Exception):
    """A kernel's result differs from plain attention."""


def _seconds(query: Tensor, key: Tensor, value: Tensor, name: str) -> float:
    """Median time of a kernel.  Raises like `run_kernel`, and _WrongValues."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns at length why a kernel does not run
        mixed = run_kernel(query, key, value, 1.0, name)  # also the warm-up
        _wait(query.device)
    if not agrees(mixed, query, key, value, 1.0):
        raise _WrongValues
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run_kernel(query, key, value, 1.0, name)
        _wait(query.device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _packed(model: Fast3R, attention: Attention, tokens: int) -> tuple[Tensor, ...]:
    """Random queries, keys and values (1, heads, tokens, D) in the memory layout of `Attention.mix`.

    They are adjacent for each token, as one linear layer produces all three.
    """
    weight = next(model.parameters())
    shape = (1, tokens, 3, attention.heads, attention.head_dim)
    return torch.randn(shape, dtype=weight.dtype, device=weight.device).permute(2, 0, 3, 1, 4).unbind()


def _worth_it(seconds: dict[str, float], name: str) -> bool:
    return seconds.get(name, math.inf) < WORTH_IT * seconds.get("auto", math.inf)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""The fastest attention kernel that a device has for a shape, found by running them."""

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

RUNS = 5
WORTH_IT = 0.95  # of the time of PyTorch's own choice; a smaller gain is noise
# 64 views of 512x384 keep every kernel busy; one call over 1500 views takes many seconds and tells no more
MOST_TOKENS = 49152

_log = logging.getLogger(__name__)


@torch.inference_mode()
def choose_attention(model: Fast3R, tokens: int) -> str:
    """Give the fusion the fastest kernel for a scene of so many tokens; returns its name.

    A kernel that was chosen by `Fast3R.set_attention` stays, and so does PyTorch's choice where tokens are
    merged, as attention then has other shapes.  Raises torch.OutOfMemoryError where the device has no memory
    for one attention.
    """
    modules = [module for module in model.decoder.modules() if isinstance(module, Attention)]
    if any(module.kernel != "auto" for module in modules):
        return modules[0].kernel
    if model.acceleration.merge > 1:
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
    """Name -> median seconds of the kernels that run tensors (B, heads, N, D) of this shape, layout, dtype
    and device, and whose values are those of plain attention.  `math` is left out, as it keeps all logits in
    memory.  Raises torch.OutOfMemoryError where there is no memory for one.
    """
    found = {}
    for name in ("auto", *PYTORCH_KERNELS, *PACKAGES):
        if name == "math":
            continue
        try:
            found[name] = _seconds(query, key, value, name)
        except torch.OutOfMemoryError:
            raise  # the network would run out, too
        except RuntimeError as error:
            _log.debug("attention %s is left out: %s", name, error)
        except _WrongValues:
            _log.warning("attention %s gives other values than plain attention and is left out", name)
    return found


class _WrongValues(Exception):
    """A kernel's result is not that of plain attention."""


def _seconds(query: Tensor, key: Tensor, value: Tensor, name: str) -> float:
    """Median time of a kernel.  Raises as `run_kernel`, and _WrongValues."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch tells at length why a kernel does not run
        mixed = run_kernel(query, key, value, 1.0, name)  # also its warm-up
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
    """Random queries, keys and values (1, heads, tokens, D) that lie as `Attention.mix` passes them on: side
    by side for each token, as one linear layer makes all three.
    """
    weight = next(model.parameters())
    shape = (1, tokens, 3, attention.heads, attention.head_dim)
    return torch.randn(shape, dtype=weight.dtype, device=weight.device).permute(2, 0, 3, 1, 4).unbind()


def _worth_it(seconds: dict[str, float], name: str) -> bool:
    return seconds.get(name, math.inf) < WORTH_IT * seconds.get("auto", math.inf)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

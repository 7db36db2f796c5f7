"""The fastest attention kernel that a device has for a shape, found by running them."""

from __future__ import annotations

import logging
import statistics
import time
import warnings

import torch
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from fast3r_ros.model.attention import PYTORCH_KERNELS, attend, flash_attn_refusal
from fast3r_ros.model.fast3r import Fast3R
from fast3r_ros.model.layers import Attention

RUNS = 5
WORTH_IT = 0.95  # of the time of PyTorch's own choice; a smaller gain is noise

_log = logging.getLogger(__name__)


@torch.inference_mode()
def choose_attention(model: Fast3R, tokens: int) -> str:
    """Give the fusion the fastest kernel for a scene of so many tokens; returns its name.

    A kernel that was chosen by `Fast3R.set_attention` stays.
    """
    modules = [module for module in model.decoder.modules() if isinstance(module, Attention)]
    if any(module.kernel != "auto" for module in modules):
        return modules[0].kernel
    weight, config = next(model.parameters()), model.config.decoder
    shape = (1, config.num_heads, tokens, config.embed_dim // config.num_heads)
    query, key, value = (torch.randn(shape, dtype=weight.dtype, device=weight.device) for _ in range(3))
    seconds = kernel_seconds(query, key, value)
    fastest = min(seconds, key=lambda name: seconds[name])
    chosen = fastest if seconds[fastest] < WORTH_IT * seconds["auto"] else "auto"
    for module in modules:
        module.kernel = chosen
    times = ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in seconds.items())
    _log.info("attention of %d tokens: %s; using %s", tokens, times, chosen)
    return chosen


def kernel_seconds(query: Tensor, key: Tensor, value: Tensor) -> dict[str, float]:
    """Name -> median seconds of the kernels that run tensors (B, heads, N, D) of this shape, dtype and
    device.  `math` is left out, as it keeps all logits in memory.
    """
    names = ["auto", *(name for name in (*PYTORCH_KERNELS, "flash_attn") if name != "math")]
    found = {}
    for name in names:
        if not _runs(query, key, value, name):
            continue
        times = []
        for _ in range(RUNS):
            start = time.perf_counter()
            attend(query, key, value, 1.0, name)
            _wait(query.device)
            times.append(time.perf_counter() - start)
        found[name] = statistics.median(times)
    return found


def _runs(query: Tensor, key: Tensor, value: Tensor, name: str) -> bool:
    """Whether a kernel takes these tensors; also its warm-up."""
    if name == "flash_attn" and flash_attn_refusal(query):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch tells at length why a kernel does not run
        try:
            if name in PYTORCH_KERNELS:
                with sdpa_kernel(PYTORCH_KERNELS[name]):
                    torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=1.0)
            else:
                attend(query, key, value, 1.0, name)
            _wait(query.device)
        except (RuntimeError, ImportError):
            return False
    return True


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

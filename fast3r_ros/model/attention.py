"""Scaled dot-product attention with a choice of kernels.

`auto` leaves the choice to PyTorch for the device and dtype.  The other names force one of PyTorch's kernels,
or the `flash_attn` package; where the forced one cannot run, PyTorch's choice is used and a warning says so
once.
"""

from __future__ import annotations

import functools
import importlib.util
import logging

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fast3r_ros.errors import UserError

PYTORCH_KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
ATTENTION_NAMES = ("auto", *PYTORCH_KERNELS, "flash_attn")

_log = logging.getLogger(__name__)


def check_attention(name: str) -> str:
    """The name itself when it is one of ATTENTION_NAMES; raises UserError otherwise."""
    if name not in ATTENTION_NAMES:
        raise UserError(f"attention is {name!r}, expected one of {', '.join(ATTENTION_NAMES)}")
    return name


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, name: str) -> Tensor:
    """Attention of (B, heads, N, D) tensors with logits scaled by `scale`; returns (B, heads, N, D)."""
    if name == "auto":
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    if name == "flash_attn":
        refusal = flash_attn_refusal(query)
        if refusal:
            _warn_once(f"attention flash_attn: {refusal}; using PyTorch's own choice")
            return F.scaled_dot_product_attention(query, key, value, scale=scale)
        from flash_attn import flash_attn_func

        query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
        return flash_attn_func(query, key, value, softmax_scale=scale).transpose(1, 2)
    try:
        with sdpa_kernel(PYTORCH_KERNELS[name]):
            return F.scaled_dot_product_attention(query, key, value, scale=scale)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        _warn_once(
            f"attention {name} cannot run {query.dtype} on {query.device.type} "
            f"({str(error).splitlines()[0]}); "
            "using PyTorch's own choice"
        )
        return F.scaled_dot_product_attention(query, key, value, scale=scale)


def flash_attn_refusal(query: Tensor) -> str:
    """Why the flash_attn package cannot be used for this tensor; empty when it can."""
    if importlib.util.find_spec("flash_attn") is None:
        return "the package is not installed"
    if query.device.type != "cuda":
        return f"it needs a CUDA device, the tokens are on {query.device.type}"
    if query.dtype not in (torch.float16, torch.bfloat16):
        return f"it needs float16 or bfloat16, the tokens are {query.dtype}"
    return ""


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning(message)

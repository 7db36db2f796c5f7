"""Scaled dot-product attention with a choice of kernels.

`auto` leaves the choice to PyTorch for the device and dtype.  The other names force one of PyTorch's kernels,
or that of a package: FlashAttention 2 (`flash_attn`) or 3 (`flash_attn_3`).  Where the forced one cannot run,
PyTorch's choice is used and a warning says so once.

PyTorch can put FlashAttention 3 behind its own flash kernel, too, but for the whole process and as a
prototype; called by name it can be timed beside the others.
"""

from __future__ import annotations

import functools
import importlib
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
PACKAGES = {"flash_attn": "flash_attn", "flash_attn_3": "flash_attn_interface"}  # the modules to import
ATTENTION_NAMES = ("auto", *PYTORCH_KERNELS, *PACKAGES)
HOPPER = (9, 0)  # compute capability
# cuDNN 9.15.0; up to there it is wrong for numbers of tokens that 128 does not divide (PyTorch issue 169849)
LAST_WRONG_CUDNN = 91500

_log = logging.getLogger(__name__)


def check_attention(name: str) -> str:
    """The name itself when it is one of ATTENTION_NAMES; raises UserError otherwise."""
    if name not in ATTENTION_NAMES:
        raise UserError(f"attention is {name!r}, expected one of {', '.join(ATTENTION_NAMES)}")
    return name


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, name: str) -> Tensor:
    """Attention of (B, heads, N, D) tensors with logits scaled by `scale`; returns (B, heads, N, D)."""
    if name != "auto":
        try:
            return run_kernel(query, key, value, scale, name)
        except (RuntimeError, ImportError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            _warn_once(
                f"attention {name} cannot run {query.dtype} on {query.device.type} "
                f"({str(error).splitlines()[0]}); "
                "using PyTorch's own choice"
            )
    return F.scaled_dot_product_attention(query, key, value, scale=scale)


def run_kernel(query: Tensor, key: Tensor, value: Tensor, scale: float, name: str) -> Tensor:
    """As `attend`, by the named kernel only: raises RuntimeError or ImportError where it cannot run."""
    refusal = kernel_refusal(query, name)
    if refusal:
        raise RuntimeError(refusal)
    if name == "auto":
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    if name not in PACKAGES:
        with sdpa_kernel(PYTORCH_KERNELS[name]):
            return F.scaled_dot_product_attention(query, key, value, scale=scale)
    function = importlib.import_module(PACKAGES[name]).flash_attn_func
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    result = function(query, key, value, softmax_scale=scale)
    mixed: Tensor = result[0] if isinstance(result, tuple) else result  # older ones add the logits' sums
    return mixed.transpose(1, 2)


def kernel_refusal(query: Tensor, name: str) -> str:
    """Why a kernel is not to be used for this tensor; empty when it can be tried."""
    if name == "cudnn":
        version = torch.backends.cudnn.version()
        if version is not None and version <= LAST_WRONG_CUDNN:
            return (
                f"cuDNN {version} gives wrong results for some numbers of tokens, later than 9.15.0 does not"
            )
    if name not in PACKAGES:
        return ""
    if importlib.util.find_spec(PACKAGES[name]) is None:
        return f"the package with {PACKAGES[name]} is not installed"
    if query.device.type != "cuda":
        return f"it needs a CUDA device, the tokens are on {query.device.type}"
    if query.dtype not in (torch.float16, torch.bfloat16):
        return f"it needs float16 or bfloat16, the tokens are {query.dtype}"
    if name == "flash_attn_3" and (capability := torch.cuda.get_device_capability(query.device)) != HOPPER:
        return f"it needs compute capability 9.0, the GPU has {capability[0]}.{capability[1]}"
    return ""


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning(message)

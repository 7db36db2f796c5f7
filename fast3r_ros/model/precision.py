"""The device and the dtype of the network: one rule for the node, commands, benchmarks and parallel runs.

`auto` is float32 on a CPU and float16 on a GPU, with or without bfloat16.  With float16 weights, the residual
stream of the transformers (to which every block adds) and its norms are float32: sums over 48 blocks grow and
would lose precision.  The heads' last layers are float32 as well, because their results go through an
exponential: a rounding error of 0.001 is 0.1 % of a distance.  A result that is not finite is computed again
with `safer` weights.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from fast3r_ros.errors import UserError
from fast3r_ros.model.layers import Block

Module = TypeVar("Module", bound=nn.Module)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPE_NAMES = ("auto", *DTYPES)

_log = logging.getLogger(__name__)


def resolve_device(device: str) -> str:
    """A PyTorch device name for auto, cpu, cuda or cuda:1.  Raises UserError for an unavailable device."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {device!r} cannot be used ({reason}); use auto, cpu or cuda") from error
    return device


def resolve_dtype(dtype: str | None, device: str | torch.device) -> torch.dtype:
    """The dtype of the weights for `auto` (or None) or a name of DTYPES, on a device of `resolve_device`.

    On a GPU that only emulates bfloat16 it becomes float16, with a warning.  float32 on a GPU is exact: TF32
    is switched off for this process.  Raises UserError for another name.
    """
    on_gpu = torch.device(device).type == "cuda"
    if dtype is None or dtype == "auto":
        return torch.float16 if on_gpu else torch.float32
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPE_NAMES)}")
    if dtype == "bfloat16" and on_gpu and not _has_bfloat16():
        _log.warning("dtype bfloat16: this GPU does not support it; using float16")
        return torch.float16
    if dtype == "float32" and on_gpu:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        _log.info("float32: TF32 is off, also for convolutions")
    return DTYPES[dtype]


@contextmanager
def exact_float32() -> Iterator[None]:
    """Inside, TF32 is off; afterwards the flags are restored."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def name_of(dtype: torch.dtype) -> str:
    """`float16` for torch.float16."""
    return str(dtype).removeprefix("torch.")


def stream_names(model: nn.Module) -> set[str]:
    """Parameters that stay float32 with float16 weights: the transformers' norms, the heads' last layers."""
    return {
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm) or name.endswith(".dpt.head.4")
        for parameter, _ in module.named_parameters()
    }


def in_dtype(model: Module, dtype: torch.dtype, stream: Collection[str] | None = None) -> Module:
    """Change a network's weights to a dtype of `resolve_dtype`, as `Fast3R.from_pretrained` loads them.

    stream: parameters that become float32; by default `stream_names` for float16, else none.
    """
    if stream is None:
        stream = stream_names(model) if dtype == torch.float16 else ()
    for name, parameter in model.named_parameters():  # scales of 8 bits are buffers and stay
        parameter.data = parameter.data.to(torch.float32 if name in stream else dtype)
    set_inner_dtype(model, dtype)
    return model


def set_inner_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Set the dtype of the blocks' layers where it differs from the residual stream's."""
    for module in model.modules():
        if isinstance(module, Block):
            module.inner = dtype if module.norm1.weight.dtype != dtype else None


def widest_range(device: torch.device) -> torch.dtype:
    """bfloat16, whose range is that of float32, or float32 on a GPU without it."""
    return torch.bfloat16 if device.type == "cpu" or _has_bfloat16() else torch.float32


def all_finite(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether all numbers are finite; synchronises with the device once."""
    flags = [tensor.isfinite().all() for tensor in tensors]
    return not flags or bool(torch.stack(flags).all())


def _has_bfloat16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)

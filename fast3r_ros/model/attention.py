"""Scaled dot-product attention with a choice of kernels.

`auto` leaves the choice to PyTorch for the device and dtype.  The other names force one of PyTorch's kernels,
or that of a package: FlashAttention 2 (`flash_attn`), 3 (`flash_attn_3`) or 4 (`flash_attn_4`).  If the
forced kernel cannot run, or its values differ from plain attention, the next one is used, with one warning.

PyTorch can also use FlashAttention 3 behind its own flash kernel, but for the whole process and as a
prototype; called by name it can be timed next to the others.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fast3r_ros.errors import UserError
from fast3r_ros.files import one_line

PYTORCH_KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
# the modules that hold `flash_attn_func`
PACKAGES = {
    "flash_attn": "flash_attn",
    "flash_attn_3": "flash_attn_interface",
    "flash_attn_4": "flash_attn.cute",
}
CAPABILITIES = {"flash_attn_3": (9,), "flash_attn_4": (9, 10)}  # supported major compute capabilities
ATTENTION_NAMES = ("auto", *PYTORCH_KERNELS, *PACKAGES)
NEXT_KERNELS = ("auto", "efficient", "flash", "cudnn")  # tried when the named kernel cannot be used
# cuDNN 9.15.0; until then wrong for numbers of tokens not divisible by 128 (PyTorch issue 169849)
LAST_WRONG_CUDNN = 91500
CHECKED_ROWS = 8  # number of queries compared with plain attention
# in errors of rounded probabilities; a wrong kernel is off by hundreds of them
ROUNDING_MARGIN = 8.0
MOST_VERDICTS = 4096  # number of sizes; a stream of windows has some tens

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


def check_attention(name: str) -> str:
    """The name itself when it is one of ATTENTION_NAMES; raises UserError otherwise."""
    if name not in ATTENTION_NAMES:
        raise UserError(f"attention is {name!r}, expected one of {', '.join(ATTENTION_NAMES)}")
    return name


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, name: str) -> Tensor:
    """Attention of (B, heads, N, D) tensors with logits scaled by `scale`; returns (B, heads, N, D).

    The results of kernels of a GPU and of packages are compared with plain attention once per size.
    Raises torch.OutOfMemoryError when the device is out of memory.
    """
    if name == "auto" and query.device.type == "cpu":
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    if torch.compiler.is_compiling():  # a graph for all sizes cannot compare one size
        return run_kernel(query, key, value, scale, name)
    found = first_right(
        (name, *NEXT_KERNELS),
        query,
        key,
        lambda kernel: run_kernel(query, key, value, scale, kernel),
        lambda mixed: agrees(mixed, query, key, value, scale),
    )
    return F.scaled_dot_product_attention(query, key, value, scale=scale) if found is None else found


def first_right(
    names: Sequence[str],
    query: Tensor,
    key: Tensor,
    run: Callable[[str], _Result],
    right: Callable[[_Result], bool],
    kind: str = "attention",
) -> _Result | None:
    """The result of the first of some kernels that runs and is correct; None if there is none.

    run: raises KernelError when a kernel cannot run.  right: compares a result with plain attention; called
    once per new size, and not while a graph is recorded.  Each skipped kernel is reported once.
    """
    for kernel in dict.fromkeys(names):
        size = (kind, kernel, query.dtype, query.device, tuple(query.shape), tuple(key.shape), query.stride())
        if not _verdicts.get(size, True):
            continue
        try:
            result = run(kernel)
        except KernelError as error:
            problem = f"cannot run {query.dtype} on {query.device.type} ({error})"
        else:
            unknown = size not in _verdicts and _is_checked(query, kernel)
            if not unknown or right(result):
                if unknown:
                    _judge(size, True)
                return result
            problem = f"differs from plain attention for {query.shape[2]} tokens"
        if not _is_recorded(query):
            _judge(size, False)
        _warn_once(f"{kind} {kernel} {problem}; using the next one, from PyTorch")
    return None


class KernelError(RuntimeError):
    """A kernel that cannot be used, for any reason but missing memory."""


def run_kernel(query: Tensor, key: Tensor, value: Tensor, scale: float, name: str) -> Tensor:
    """Like `attend`, with the named kernel only and without comparison.

    Raises KernelError with one line when it cannot run, whatever the kernel raised, and
    torch.OutOfMemoryError when the device is out of memory.
    """
    problem = kernel_problem(query, name)
    if problem:
        raise KernelError(problem)
    with kernel_errors():
        if name in PACKAGES:
            mixed = _by_package(query, key, value, scale, name)
        elif name in PYTORCH_KERNELS:
            with sdpa_kernel(PYTORCH_KERNELS[name]):
                mixed = F.scaled_dot_product_attention(query, key, value, scale=scale)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, scale=scale)
    if not isinstance(mixed, Tensor) or mixed.shape != (*query.shape[:3], value.shape[3]):
        raise KernelError(f"it returns {getattr(mixed, 'shape', type(mixed).__name__)}")
    if (mixed.dtype, mixed.device) != (query.dtype, query.device):
        raise KernelError(f"it returns {mixed.dtype} on {mixed.device}")
    return mixed


@contextmanager
def kernel_errors() -> Iterator[None]:
    """Around a kernel: any exception becomes a one-line KernelError or a torch.OutOfMemoryError."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # foreign kernels raise anything: AttributeError, compilers' own types
        if "out of memory" in str(error).lower():  # the wording of drivers and other packages
            raise torch.OutOfMemoryError(one_line(error)) from error
        raise KernelError(one_line(error) or type(error).__name__) from error


def kernel_problem(query: Tensor, name: str) -> str:
    """Why a kernel cannot be used for this tensor; empty when it can be tried."""
    if name == "cudnn":
        version = torch.backends.cudnn.version()
        if version is not None and version <= LAST_WRONG_CUDNN:
            return f"cuDNN {version} gives wrong results for some token counts; update it beyond 9.15.0"
    if name not in PACKAGES:
        return ""
    if query.device.type != "cuda":
        return f"it needs a CUDA device, the tokens are on {query.device.type}"
    if query.dtype not in (torch.float16, torch.bfloat16):
        return f"it needs float16 or bfloat16, the tokens are {query.dtype}"
    if name in CAPABILITIES:
        major, minor = torch.cuda.get_device_capability(query.device)
        if major not in CAPABILITIES[name]:
            needed = " or ".join(f"{number}.x" for number in CAPABILITIES[name])
            return f"it needs compute capability {needed}, the GPU has {major}.{minor}"
    return ""


@torch.no_grad()
def agrees(mixed: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float) -> bool:
    """Whether a few rows of a kernel's result equal plain attention in float32, up to rounding.

    Rows and heads are spread from the first to the last, because kernels fail by addressing many tokens.
    Synchronises with the device.  True where plain attention itself is not finite.
    """
    rows = checked_rows(query)
    rounding = max(torch.finfo(query.dtype).eps, 2**-10)  # float32 may be TF32
    for batch in {0, query.shape[0] - 1}:
        for head in {0, query.shape[1] - 1}:
            logits = query[batch, head, rows].float() @ key[batch, head].float().T * scale
            shares, values = logits.softmax(dim=-1), value[batch, head].float()
            exact = shares @ values
            # each probability is rounded, then the sum
            spread = (shares.square() @ values.square()).sqrt()
            bar = rounding * (exact.abs() + ROUNDING_MARGIN * spread) + 1e-4 * spread.amax()
            right = (mixed[batch, head, rows].float() - exact).abs() <= bar
            if not bool((right | ~exact.isfinite()).all()):
                return False
    return True


def checked_rows(query: Tensor) -> Tensor:
    """Indices of the compared queries of (B, heads, N, D), from the first to the last."""
    count = query.shape[2]
    return torch.linspace(0, count - 1, min(CHECKED_ROWS, count), device=query.device).long()


def _by_package(query: Tensor, key: Tensor, value: Tensor, scale: float, name: str) -> Any:
    """The result of the package's kernel, which has tokens before heads, transposed back."""
    function = _package_function(PACKAGES[name])
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    result = function(query, key, value, softmax_scale=scale)
    mixed = result[0] if isinstance(result, tuple) else result  # some also return the logits' sums
    return mixed.transpose(1, 2)


def _package_function(module: str) -> Callable[..., Any]:
    """The kernel of a package.  Raises KernelError when it is missing or incomplete."""
    try:
        found = getattr(importlib.import_module(module), "flash_attn_func", None)
    except ModuleNotFoundError as error:
        raise KernelError(f"the package with {module} is not installed ({error})") from error
    if not callable(found):  # another package of the family creates a namespace of this name
        raise KernelError(f"the package with {module} is not installed: it has no flash_attn_func")
    return found


def _is_checked(query: Tensor, kernel: str) -> bool:
    """Whether to compare a result: not while a graph is recorded, and not for tensors without values."""
    if type(query) is not Tensor or not query.numel() or _is_recorded(query):
        return False
    return query.device.type == "cuda" or (kernel in PACKAGES and query.device.type == "cpu")


def _is_recorded(query: Tensor) -> bool:
    return query.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


_verdicts: dict[tuple[Any, ...], bool] = {}  # size -> whether its kernel runs and is correct


def _judge(size: tuple[Any, ...], good: bool) -> None:
    if len(_verdicts) >= MOST_VERDICTS:
        _verdicts.clear()
    _verdicts[size] = good


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning(message)

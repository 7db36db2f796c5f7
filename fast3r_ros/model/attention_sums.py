"""Attention that also returns its normalising sums, so that results for parts of the keys can be joined.

A query's mix of the values of many keys is the mean of its mixes over disjoint parts of them, weighted with
the sums of the exponentials of the logits in each part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fast3r_ros.model.attention import (
    KernelError,
    agrees,
    checked_rows,
    first_right,
    kernel_errors,
    kernel_problem,
)

MOST_LOGITS = 1 << 24  # float32 logits that plain attention holds at a time
_NEXT_KERNELS = ("flash", "efficient", "cudnn")

MixedAndSums = tuple[Tensor, Tensor]


def attend_with_sums(query: Tensor, key: Tensor, value: Tensor, scale: float, name: str) -> MixedAndSums:
    """Attention of (B, heads, N, D) tensors: the mix, and the logarithm of each query's sum (B, heads, N).

    name: a kernel of `attention`.  Packages' kernels do not return the sums; then PyTorch's next one is used,
    as in `attend`, finally plain attention.  For inference.
    """
    names = _NEXT_KERNELS if name == "auto" else (name, *_NEXT_KERNELS)
    found = first_right(
        names if query.device.type == "cuda" or name != "auto" else _NEXT_KERNELS[:1],
        query,
        key,
        lambda kernel: _run(query, key, value, scale, kernel),
        lambda result: _right(result, query, key, value, scale),
        "attention with sums",
    )
    return plain(query, key, value, scale) if found is None else found


def joined(parts: Sequence[MixedAndSums]) -> Tensor:
    """The mix over all keys of mixes and sums over parts of them, in the mixes' dtype."""
    if len(parts) == 1:
        return parts[0][0]
    shares = torch.stack([sums for _, sums in parts]).softmax(dim=0).unsqueeze(-1)
    together = shares[0] * parts[0][0]
    for share, (mixed, _) in zip(shares[1:], parts[1:], strict=True):
        together = torch.addcmul(together, share, mixed.to(share.dtype))
    return together.to(parts[0][0].dtype)


def plain(query: Tensor, key: Tensor, value: Tensor, scale: float) -> MixedAndSums:
    """Like `attend_with_sums`, with all logits of some queries at a time, float32 or wider."""
    wide = torch.promote_types(query.dtype, torch.float32)
    keys, values = key.to(wide), value.to(wide)
    rows = max(1, MOST_LOGITS // (query[..., 0, 0].numel() * key.shape[2]))
    mixed, sums = [], []
    for part in query.split(rows, dim=2):
        logits = part.to(wide) @ keys.transpose(2, 3) * scale
        sums.append(logits.logsumexp(dim=-1))
        mixed.append((logits.softmax(dim=-1) @ values).to(query.dtype))
    return torch.cat(mixed, dim=2), torch.cat(sums, dim=2)


def _run(query: Tensor, key: Tensor, value: Tensor, scale: float, name: str) -> MixedAndSums:
    """One kernel of PyTorch, called below `scaled_dot_product_attention`, which does not return the sums.

    Raises KernelError when it cannot run or does not return the sums, and torch.OutOfMemoryError.
    """
    operators = torch.ops.aten
    problem = kernel_problem(query, name)
    if problem:
        raise KernelError(problem)
    tokens = query.shape[2]
    with kernel_errors():
        if name == "math":
            return plain(query, key, value, scale)
        if name == "flash" and query.device.type == "cpu":
            flash = operators._scaled_dot_product_flash_attention_for_cpu
            mixed, sums = flash(query, key, value, scale=scale)
        elif name == "flash":
            mixed, sums = operators._scaled_dot_product_flash_attention(query, key, value, scale=scale)[:2]
        elif name == "efficient":
            efficient = operators._scaled_dot_product_efficient_attention
            mixed, sums = efficient(query, key, value, None, True, scale=scale)[:2]
        elif name == "cudnn":
            cudnn = operators._scaled_dot_product_cudnn_attention
            mixed, sums = cudnn(query, key, value, None, True, scale=scale)[:2]
        else:
            raise KernelError("it does not return the sums")
        # some kernels pad the queries or add an axis of length one
        return mixed, sums.flatten(2)[..., :tokens]


@torch.no_grad()
def _right(result: MixedAndSums, query: Tensor, key: Tensor, value: Tensor, scale: float) -> bool:
    """Whether a few rows and their sums equal plain attention.  Synchronises with the device."""
    mixed, sums = result
    if not agrees(mixed, query, key, value, scale):
        return False
    rows = checked_rows(query)
    chosen = slice(None, None, max(1, query.shape[1] - 1))  # the first head and the last
    logits = query[:1, chosen, rows].float() @ key[:1, chosen].float().transpose(2, 3) * scale
    exact = logits.logsumexp(dim=-1)
    return bool(((sums[:1, chosen, rows] - exact).abs() <= 1e-2 * (1 + exact.abs())).all())

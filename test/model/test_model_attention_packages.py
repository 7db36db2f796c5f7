"""Attention of other packages: when they are refused, and what they are given and give back.

The packages are stand-ins that compute plain attention: the kernels themselves need the card, and were not
run by these tests.
"""

from __future__ import annotations

import importlib.machinery
import logging
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fast3r_ros.model import attention
from fast3r_ros.model.attention import PACKAGES, attend, kernel_refusal


def plain(query: Tensor, key: Tensor, value: Tensor, softmax_scale: float) -> Tensor:
    """Attention of (B, N, heads, D) as the packages define it, (B, N, heads, D)."""
    logits = torch.einsum("bihd,bjhd->bhij", query, key) * softmax_scale
    return torch.einsum("bhij,bjhd->bihd", logits.softmax(dim=-1), value)


def with_sums(query: Tensor, key: Tensor, value: Tensor, softmax_scale: float) -> tuple[Tensor, Tensor]:
    """As FlashAttention 3 did at first."""
    return plain(query, key, value, softmax_scale), query.new_zeros(query.shape[:3]).transpose(1, 2)


def install(monkeypatch: pytest.MonkeyPatch, name: str, function: Callable[..., Any] = plain) -> None:
    module = ModuleType(PACKAGES[name])
    module.__spec__ = importlib.machinery.ModuleSpec(PACKAGES[name], None)
    module.flash_attn_func = function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, PACKAGES[name], module)


def packed(tokens: int = 37) -> tuple[Tensor, ...]:
    """Queries, keys and values (2, 4, tokens, 16), which lie as `Attention.mix` passes them on."""
    torch.manual_seed(0)
    return torch.randn(2, tokens, 3, 4, 16).permute(2, 0, 3, 1, 4).unbind()


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("function", [plain, with_sums])
def test_a_package_gets_tokens_before_heads_and_no_copy(
    name: str, function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    query, key, value = packed()
    expected = attend(query, key, value, 0.3, "auto")
    given: list[Tensor] = []

    def recorded(*inputs: Tensor, softmax_scale: float) -> Any:
        given.extend(inputs)
        return function(*inputs, softmax_scale)

    install(monkeypatch, name, recorded)
    monkeypatch.setattr(attention, "kernel_refusal", lambda query, name: "")  # of tensors on a CPU
    result = attend(query, key, value, 0.3, name)
    assert [tensor.data_ptr() for tensor in given] == [tensor.data_ptr() for tensor in (query, key, value)]
    assert all(tensor.shape == (2, 37, 4, 16) and tensor.stride(3) == 1 for tensor in given)
    assert result.shape == query.shape
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "device", "dtype", "capability", "refusal"),
    [
        ("flash_attn", CPU, torch.bfloat16, (9, 0), "it needs a CUDA device, the tokens are on cpu"),
        ("flash_attn", CUDA, torch.float32, (9, 0), "it needs float16 or bfloat16, the tokens are"),
        ("flash_attn", CUDA, torch.float16, (8, 0), ""),
        ("flash_attn_3", CUDA, torch.float32, (9, 0), "it needs float16 or bfloat16, the tokens are"),
        ("flash_attn_3", CUDA, torch.bfloat16, (8, 9), "it needs compute capability 9.0, the GPU has 8.9"),
        ("flash_attn_3", CUDA, torch.bfloat16, (10, 0), "it needs compute capability 9.0, the GPU has 10.0"),
        ("flash_attn_3", CUDA, torch.bfloat16, (9, 0), ""),
    ],
)
def test_refusals(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    capability: tuple[int, int],
    refusal: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    query: Any = SimpleNamespace(device=device, dtype=dtype)
    found = kernel_refusal(query, name)
    assert found.startswith(refusal)
    assert bool(found) == bool(refusal)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_named_once(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    attention._warn_once.cache_clear()
    for _ in range(2):
        attend(*packed(), 0.3, name)
    (record,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert f"attention {name} cannot run" in record.getMessage()
    assert f"{PACKAGES[name]} is not installed" in record.getMessage()


def test_a_package_that_cannot_be_loaded_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*inputs: Tensor, softmax_scale: float) -> Tensor:
        raise ImportError("undefined symbol")

    install(monkeypatch, "flash_attn_3", broken)
    monkeypatch.setattr(attention, "kernel_refusal", lambda query, name: "")
    inputs = packed()
    assert torch.equal(attend(*inputs, 0.3, "flash_attn_3"), attend(*inputs, 0.3, "auto"))


def test_a_device_without_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*inputs: Tensor, softmax_scale: float) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    install(monkeypatch, "flash_attn_3", full)
    monkeypatch.setattr(attention, "kernel_refusal", lambda query, name: "")
    with pytest.raises(torch.OutOfMemoryError):
        attend(*packed(), 0.3, "flash_attn_3")

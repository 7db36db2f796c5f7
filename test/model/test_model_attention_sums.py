"""Attention with its sums: joined parts equal the whole, and wrong kernels are replaced."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from fast3r_ros.model import attention
from fast3r_ros.model.speed import token_merging
from fast3r_ros.model.speed.token_merging import attend_with_sums, joined, plain


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resets the verdicts on kernels and the warnings."""
    monkeypatch.setattr(attention, "_verdicts", {})
    attention._warn_once.cache_clear()


def tensors(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (2, 3, 7, 16), keys and values (2, 3, 30, 16), of which the queries prefer some."""
    torch.manual_seed(0)
    query, key, value = 3 * torch.randn(2, 3, 7, 16), torch.randn(2, 3, 30, 16), torch.randn(2, 3, 30, 16)
    return query.to(dtype), key.to(dtype), value.to(dtype)


@pytest.mark.parametrize("name", ["auto", "flash", "math"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.float16, 4e-3)]
)
def test_mix_and_sums_are_those_of_the_definition(name: str, dtype: torch.dtype, tolerance: float) -> None:
    query, key, value = tensors(dtype)
    mixed, sums = attend_with_sums(query, key, value, 0.3, name)
    logits = query.double() @ key.double().transpose(2, 3) * 0.3
    assert (mixed.dtype, mixed.shape, sums.shape) == (dtype, query.shape, query.shape[:3])
    torch.testing.assert_close(sums.double(), logits.logsumexp(-1), rtol=tolerance, atol=tolerance)
    exact = logits.softmax(-1) @ value.double()
    torch.testing.assert_close(mixed.double(), exact, rtol=tolerance, atol=tolerance)


def test_parts_joined_are_the_whole() -> None:
    query, key, value = tensors()
    spans = [slice(0, 11), slice(11, 12), slice(12, 30)]
    parts = [attend_with_sums(query, key[:, :, s], value[:, :, s], 0.3, "auto") for s in spans]
    whole, _ = attend_with_sums(query, key, value, 0.3, "auto")
    torch.testing.assert_close(joined(parts), whole, rtol=1e-5, atol=1e-5)


def test_plain_attention_keeps_few_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = tensors()
    expected = plain(query, key, value, 0.3)
    monkeypatch.setattr(token_merging, "MOST_LOGITS", 2 * 3 * 30 * 2)  # of two queries
    torch.testing.assert_close(plain(query, key, value, 0.3), expected)


@pytest.mark.parametrize("name", ["efficient", "flash_attn"])
def test_a_kernel_without_sums_is_replaced_and_reported_once(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    query, key, value = tensors()
    expected = plain(query, key, value, 0.3)
    for _ in range(2):
        for found, exact in zip(attend_with_sums(query, key, value, 0.3, name), expected, strict=True):
            torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert f"attention with sums {name} cannot run" in warning.message


@pytest.mark.parametrize("wrong", ["mix", "sums"])
def test_wrong_values_are_found(wrong: str) -> None:
    query, key, value = tensors()
    mixed, sums = plain(query, key, value, 0.3)
    assert token_merging._right((mixed, sums), query, key, value, 0.3)
    spoilt = (mixed.flip(2), sums) if wrong == "mix" else (mixed, sums / 0.6931)  # in powers of two
    assert not token_merging._right(spoilt, query, key, value, 0.3)

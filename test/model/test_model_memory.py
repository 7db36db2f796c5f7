"""The calculated memory of a pass agrees with the measured one."""

from __future__ import annotations

import pytest
import torch
from memory_meter import MemoryMeter
from small_model import random_views, small_config, small_model

from fast3r_ros.model import Fast3RConfig, ViewTokens, layers, memory
from fast3r_ros.model.memory import MemoryPlan, predict_memory

SIZE = (96, 64)
FUSION_TOLERANCE = 0.02
HEADS = {
    "head_dpt_reassemble_dims": [8, 12, 16, 24],
    "head_dpt_last_dim": 8,
}  # on which the shares below hold
LEAST, MOST = 0.8, 1.4  # predicted by measured, of encoder and heads, whose chunks follow rougher estimates


@torch.no_grad()
def measured(views: int, at_once: int, budget: int, dtype: torch.dtype) -> MemoryPlan:
    """The peaks of the steps, called as `predict_memory` says."""
    model = small_model(**HEADS).to(dtype)
    model.memory_budget = budget
    images = torch.cat(random_views(*[SIZE[::-1]] * views))
    tokens: list[ViewTokens] = []
    with MemoryMeter() as encode:
        for part in images.split(at_once):
            encoded = model.encode(part)
            tokens += [ViewTokens(view, encoded.grid) for view in encoded.tokens.split(1)]
    with MemoryMeter() as fuse:
        features = model.fuse(tokens)
    with MemoryMeter() as heads:
        model.global_head(features, range(at_once))
    kept = encode.live
    return MemoryPlan(
        weights=sum(weight.numel() * weight.element_size() for weight in model.parameters()),
        encode=encode.peak,
        fuse=kept + fuse.peak,
        heads=kept + fuse.live + heads.peak,
    )


@pytest.mark.parametrize(
    ("views", "at_once", "budget", "tokens_at_once", "dtype"),
    [
        (20, 5, 1, 64, torch.float32),
        (20, 20, 4 << 20, 64, torch.bfloat16),
        (20, 20, 4 << 20, 32768, torch.float32),
        (9, 3, 1 << 30, 64, torch.float32),
        (9, 3, 1 << 30, 32768, torch.bfloat16),
    ],
)
def test_prediction_and_measurement(
    views: int,
    at_once: int,
    budget: int,
    tokens_at_once: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layers, "TOKENS_AT_ONCE", tokens_at_once)
    monkeypatch.setattr(memory, "TOKENS_AT_ONCE", tokens_at_once)
    predicted = predict_memory(small_config(**HEADS), views, SIZE, dtype, at_once, budget)
    found = measured(views, at_once, budget, dtype)
    assert predicted.weights == found.weights
    assert predicted.fuse == pytest.approx(found.fuse, rel=FUSION_TOLERANCE)
    assert LEAST < predicted.encode / found.encode < MOST
    assert LEAST < predicted.heads / found.heads < MOST


def test_1500_views_fit_an_80_gb_card() -> None:
    config = Fast3RConfig.from_dict(
        {"encoder_args": {}, "decoder_args": {}, "head_args": {"with_local_head": True}}
    )
    plan = predict_memory(config, 1500, (512, 384), torch.bfloat16, at_once=16)
    assert plan.weights == 2 * 647_551_368
    assert plan.peak < 26e9
    assert plan.peak == plan.weights + plan.fuse

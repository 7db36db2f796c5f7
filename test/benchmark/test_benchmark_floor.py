"""The roofline's FLOPs equal those of PyTorch's own counter, and its times follow from them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from fast3r_ros.benchmark.roofline import (
    DevicePeaks,
    Operation,
    fusion_attention,
    measure_device_peaks,
    roofline_seconds,
    stages,
)
from fast3r_ros.model import Fast3R, Fast3RConfig, ViewTokens
from fast3r_ros.model.network_config import DecoderConfig, EncoderConfig, HeadConfig


def config(local: bool = True, mlp_ratio: float = 4.0) -> Fast3RConfig:
    """Different widths everywhere, so that none can be confused."""
    return Fast3RConfig(
        EncoderConfig(embed_dim=48, depth=2, num_heads=4, mlp_ratio=mlp_ratio),
        DecoderConfig(embed_dim=32, enc_embed_dim=48, depth=10, num_heads=4),
        HeadConfig(
            with_local_head=local, dpt_reassemble_dims=(8, 12, 20, 24), dpt_feature_dim=16, dpt_last_dim=10
        ),
    )


def flops(operations: list[Operation]) -> float:
    return sum(operation.flops for operation in operations)


@settings(max_examples=6, deadline=None)
@given(
    views=st.integers(1, 3),
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    local=st.booleans(),
    mlp_ratio=st.sampled_from([2.0, 4.0]),
)
def test_flops_are_those_that_pytorch_counts(
    views: int, rows: int, columns: int, local: bool, mlp_ratio: float
) -> None:
    chosen = config(local, mlp_ratio)
    model = Fast3R(chosen).double().eval()  # convolutions of float32 may use a kernel that is not counted
    model.set_attention("math")  # products, which the counter sees
    images = torch.zeros(views, 3, 16 * rows, 16 * columns, dtype=torch.float64)
    expected = stages(chosen, views, (16 * columns, 16 * rows), 8)
    with torch.inference_mode():
        counter = FlopCounterMode(display=False)
        with counter:
            encoded = model.encode(images)
        assert flops(expected["encode"]) == counter.get_total_flops()
        tokens = [ViewTokens(part, encoded.grid) for part in encoded.tokens.chunk(views)]
        with counter:
            features = model.fuse(tokens)
        assert flops(expected["fuse"]) == counter.get_total_flops()
        with counter:
            model.global_head(features)
            if local:
                model.local_head(features)
        assert flops(expected["heads"]) == counter.get_total_flops()


def test_attention_is_the_part_of_the_fusion_that_grows_with_the_square() -> None:
    chosen = config()
    once = stages(chosen, 4, (64, 48), 4)["fuse"]
    twice = stages(chosen, 8, (64, 48), 4)["fuse"]
    attention = chosen.decoder.depth * fusion_attention(chosen, 4 * 12, 4).flops
    assert flops(twice) == pytest.approx(2 * flops(once) + 2 * attention)
    assert attention == flops([each for each in once if each.name == "attention"])


def test_the_weights_are_among_the_bytes() -> None:
    chosen = config()
    model = Fast3R(chosen)
    least = 4 * sum(p.numel() for p in model.decoder.parameters() if p.ndim > 1)
    moved = sum(operation.bytes for operation in stages(chosen, 1, (16, 16), 4)["fuse"])
    assert least < moved < 1.2 * least  # one token: hardly anything else moves


def test_views_with_cached_tokens_cost_no_encoding() -> None:
    whole, slid = (stages(config(), 8, (64, 48), 2, encoded) for encoded in (None, 2))
    assert flops(slid["encode"]) == pytest.approx(flops(whole["encode"]) / 4)
    assert slid["fuse"] == whole["fuse"]
    assert slid["heads"] == whole["heads"]


def test_the_slower_of_arithmetic_and_traffic_decides() -> None:
    operations = [Operation("products", 100.0, 1.0), Operation("copies", 1.0, 100.0)]
    assert roofline_seconds(operations, DevicePeaks(matrix_rate=10.0, bandwidth=50.0)) == pytest.approx(
        10 + 2
    )


def test_the_released_network_of_32_views_has_the_known_arithmetic() -> None:
    released = Fast3RConfig(head=replace(HeadConfig(), with_local_head=True))
    parts = stages(released, 32, (512, 384), 2)
    # 12 C^2 multiply-adds per token and block in linear layers, 2 C T in attention
    tokens, width, depth = 32 * 768, 1024, 24
    linear = depth * tokens * 2 * 12 * width**2 + 2 * tokens * width * width
    attention = depth * 4 * tokens**2 * width
    assert flops(parts["fuse"]) == pytest.approx(linear + attention)


def test_peaks_are_measured_on_this_machine() -> None:
    found = measure_device_peaks(torch.device("cpu"), torch.float32)
    assert 1e8 < found.matrix_rate < 1e15
    assert 1e8 < found.bandwidth < 1e13

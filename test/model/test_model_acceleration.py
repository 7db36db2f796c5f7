"""Accelerations: exact where they should be, and their errors where they are not."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import cast

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_model import random_views, small_model
from torch import Tensor, nn

from fast3r_ros.cli import main
from fast3r_ros.errors import UserError
from fast3r_ros.model import Fast3R
from fast3r_ros.model.attention import attend
from fast3r_ros.model.layers import Block
from fast3r_ros.model.speed.acceleration import (
    Acceleration,
    PointmapError,
    accelerate,
    acceleration_of,
    pointmap_error,
)
from fast3r_ros.model.speed.quantised import Fp8Linear, Int8Linear
from fast3r_ros.model.speed.token_merging import MergedAttention

few = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
grids = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=6)


def attention_inputs(tokens: int, batch: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (batch, 2, tokens, 4), the queries large enough to prefer some keys."""
    source = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, batch, 2, tokens, 4, generator=source).unbind()
    return 3 * query, key, value


@few
@given(grids=grids, group=st.integers(1, 4), batch=st.integers(1, 2))
def test_merging_single_tokens_is_exact(grids: list[tuple[int, int]], group: int, batch: int) -> None:
    inputs = attention_inputs(sum(h * w for h, w in grids), batch, len(grids))
    found = MergedAttention(grids, 1, group)(*inputs, 0.4, "auto")
    torch.testing.assert_close(found, attend(*inputs, 0.4, "auto"), atol=1e-5, rtol=1e-5)


@few
@given(grids=grids, merge=st.integers(2, 4), group=st.integers(1, 3))
def test_merging_equal_tokens_is_exact_for_every_grid(
    grids: list[tuple[int, int]], merge: int, group: int
) -> None:
    query, key, value = attention_inputs(sum(h * w for h, w in grids), 1, merge)
    start = 0
    for height, width in grids:
        for tensor in (key, value):  # every cell of merge x merge tokens gets the values of its first
            view = tensor[:, :, start : start + height * width].unflatten(2, (height, width))
            rows, columns = (torch.arange(side) // merge * merge for side in (height, width))
            view.copy_(view[:, :, rows][:, :, :, columns].clone())
        start += height * width
    found = MergedAttention(grids, merge, group)(query, key, value, 0.4, "auto")
    torch.testing.assert_close(found, attend(query, key, value, 0.4, "auto"), atol=1e-5, rtol=1e-5)


@few
@given(grids=grids, merge=st.integers(2, 4), group=st.integers(1, 3))
def test_a_cell_counts_as_often_as_it_has_tokens(
    grids: list[tuple[int, int]], merge: int, group: int
) -> None:
    """Query by query, with explicit logits."""
    query, key, value = attention_inputs(sum(h * w for h, w in grids), 1, merge)
    found = MergedAttention(grids, merge, group)(query, key, value, 0.4, "auto")
    starts = [0]
    for height, width in grids:
        starts.append(starts[-1] + height * width)
    for view in range(len(grids)):
        near = {0, *range(view // group * group, view // group * group + group)}
        keys, values, sizes = [], [], []
        for other, (height, width) in enumerate(grids):
            side = 1 if other in near else merge
            tokens = torch.arange(starts[other], starts[other + 1]).view(height, width)
            for row in range(0, height, side):
                for column in range(0, width, side):
                    cell = tokens[row : row + side, column : column + side].flatten()
                    keys.append(key[:, :, cell].mean(2))
                    values.append(value[:, :, cell].mean(2))
                    sizes.append(float(len(cell)))
        mine = query[:, :, starts[view] : starts[view + 1]]
        weights = (0.4 * mine @ torch.stack(keys, 3)).exp() * torch.tensor(sizes)
        expected = weights @ torch.stack(values, 2) / weights.sum(-1, keepdim=True)
        torch.testing.assert_close(
            found[:, :, starts[view] : starts[view + 1]], expected, atol=1e-5, rtol=1e-5
        )


def choosy_model() -> Fast3R:
    """A network whose fusion attends to some tokens more than to others."""
    model = small_model()
    with torch.no_grad():
        for block in model.decoder.dec_blocks:
            cast(Block, block).attn.qkv.weight.mul_(3)
    return model


@torch.inference_mode()
def error_of(acceleration: Acceleration) -> PointmapError:
    """Against the exact result, on 20 views of which most are far from each other."""
    model = choosy_model()
    views = random_views(*[(64, 80)] * 20)
    exact = model(views)
    return pointmap_error(exact, accelerate(model, acceleration)(views))


def test_the_error_grows_with_the_cells_and_is_bounded() -> None:
    errors = [error_of(Acceleration(merge=merge)) for merge in (1, 2, 4)]
    medians = [error.points_median for error in errors]
    assert medians[0] == 0.0
    assert 0.0 < medians[1] < medians[2] < 0.05
    assert errors[2].points_95 < 0.1
    assert errors[2].confidence_median < 0.05


@torch.inference_mode()
def test_few_views_are_not_merged() -> None:
    model = choosy_model()
    views = random_views(*[(48, 32)] * 8)
    exact = model(views)
    found = accelerate(model, Acceleration(merge=4))(views)
    for a, b in zip(exact, found, strict=True):
        torch.testing.assert_close(a.global_points.points, b.global_points.points, atol=1e-5, rtol=1e-5)


def test_int8_is_within_one_percent_and_is_not_exact() -> None:
    error = error_of(Acceleration(linears="int8"))
    assert 1e-6 < error.points_median < 0.01
    assert error.points_95 < 0.02
    assert error.confidence_median < 0.01


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("layer", "bound"), [(Int8Linear, 0.015), (Fp8Linear, 0.05)])
def test_eight_bit_products_are_close_to_float(
    layer: type[Int8Linear] | type[Fp8Linear], bound: float, bias: bool
) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, bias=bias).requires_grad_(False)
    x = torch.randn(2, 7, 64) * torch.logspace(-6, 3, 7)[:, None]  # each token has its own scale
    x[0, 0] = 0
    expected, found = linear(x), layer(linear)(x)
    assert found.shape == expected.shape
    offset = linear.bias if bias else 0.0
    norms = (expected - offset).norm(dim=-1)
    error = (found - expected).norm(dim=-1)
    assert bool((error <= bound * norms + 1e-6).all())
    assert float((error / norms.clamp_min(1e-12)).max()) > 1e-4 or bias


def test_fp8_is_rejected_on_unsupported_gpus() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="fp8 linears need a CUDA GPU, the model is on cpu"):
        accelerate(small_model(), Acceleration(linears="fp8"))


def test_active_accelerations_are_printed_and_exact_is_the_default(tmp_path: Path) -> None:
    model = small_model()
    assert "steps=exact" in repr(model)
    accelerate(model, Acceleration(2, "int8"))
    assert "steps=merge=2,linears=int8" in repr(model)
    assert Acceleration.parse(str(acceleration_of(model))) == acceleration_of(model)
    assert Acceleration.parse("exact") == Acceleration()
    accelerate(model, Acceleration(linears="int8"))  # merging can be turned off again, rounding cannot
    with pytest.raises(UserError, match="already int8; load the model again"):
        accelerate(model, Acceleration())
    with pytest.raises(UserError, match="cannot be saved"):
        model.save_pretrained(tmp_path)


def test_int8_weights_take_a_quarter_and_copies_keep_them() -> None:
    model = accelerate(small_model(), Acceleration(linears="int8"))
    layer = cast(Int8Linear, cast(Block, model.decoder.dec_blocks[0]).mlp.fc1)
    assert layer.weight.dtype == torch.int8
    views = random_views((32, 32), (32, 48))
    with torch.inference_mode():
        first, second = model(views), copy.deepcopy(model)(views)
    assert torch.equal(first[1].global_points.points, second[1].global_points.points)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge=0", "merge is 0"),
        ("merge=1.5", "not a whole number"),
        ("linears=int4", "linears is 'int4'"),
        ("speed=2", "'speed=2' is unknown"),
        ("merge", "'merge' is unknown"),
    ],
)
def test_wrong_accelerations_are_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Acceleration.parse(text)


@pytest.mark.slow
def test_the_benchmark_reports_every_error_and_rejection(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choosy_model().save_pretrained(tmp_path)
    scene = ["--views", "10", "--size", "48x32", "--runs", "1"]
    asked = ["--accelerate", "exact", "merge=2", "linears=int8", "linears=fp8"]
    assert main(["benchmark", "acceleration", "--model", str(tmp_path), *scene, *asked]) == 0
    document = json.loads(capsys.readouterr().out)
    exact, merged, rounded, fp8 = document["results"]
    assert exact["error"]["points_95"] == 0.0
    assert merged["error"]["points_median"] > 0.0
    assert rounded["error"]["points_median"] > 0.0
    assert rounded["median_s"] > 0.0
    assert "error" in fp8 or "CUDA GPU" in fp8["refused"] or "capability" in fp8["refused"]

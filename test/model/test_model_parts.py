"""Attention kernels, rotary positions, image indices and fast convolutions."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fast3r_ros.errors import UserError
from fast3r_ros.model import transformer
from fast3r_ros.model.attention import ATTENTION_NAMES, attend, check_attention
from fast3r_ros.model.heads import SMALLEST_SIDE, Conv3x3
from fast3r_ros.model.layers import rope_tables, rotate

few = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("name", ATTENTION_NAMES)
def test_every_attention_name_gives_the_same_numbers(name: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 37, 16).unbind()
    scale = 0.3
    expected = (query @ key.transpose(2, 3) * scale).softmax(dim=-1) @ value
    with caplog.at_level(logging.WARNING):
        result = attend(query, key, value, scale, check_attention(name))
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_flash_attn_on_a_cpu_falls_back_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    from fast3r_ros.model.attention import _warn_once

    _warn_once.cache_clear()
    tokens = torch.zeros(1, 1, 3, 8)
    for _ in range(2):
        attend(tokens, tokens, tokens, 1.0, "flash_attn")
    warnings = [record for record in caplog.records if "flash_attn" in record.getMessage()]
    assert len(warnings) == 1


def test_an_unknown_attention_is_rejected() -> None:
    with pytest.raises(UserError, match="attention is 'flush', expected one of auto"):
        check_attention("flush")


@few
@given(rows=st.integers(1, 5), columns=st.integers(1, 5), shift=st.integers(1, 20))
def test_rotary_products_depend_on_the_distance_between_tokens_only(
    rows: int, columns: int, shift: int
) -> None:
    torch.manual_seed(rows * 10 + columns)
    query, key = torch.randn(2, 1, 1, 1, 1, 32).unbind()

    def product(first: tuple[int, int], second: tuple[int, int]) -> float:
        grid = (max(first[0], second[0]) + 1, max(first[1], second[1]) + 1)
        cosines, sines = rope_tables(grid, 32, 100.0, query)

        def turned(x: torch.Tensor, place: tuple[int, int]) -> torch.Tensor:
            token = place[0] * grid[1] + place[1]
            return rotate(x, cosines[token][None], sines[token][None])

        return float((turned(query, first) * turned(key, second)).sum())

    near = product((0, 0), (rows, columns))
    assert product((shift, 2 * shift), (rows + shift, columns + 2 * shift)) == pytest.approx(near, abs=1e-4)


def test_rotary_formula() -> None:
    x = torch.randn(1, 6, 2, 3, 8, generator=torch.Generator().manual_seed(1))
    cosines, sines = rope_tables((2, 3), 8, 100.0, x)
    result = rotate(x, cosines, sines)
    # token 5 is row 1, column 2; the first half of a head turns with the row, the second with the column
    for half, position in ((0, 1), (1, 2)):
        for pair, frequency in ((0, 1.0), (1, 0.1)):
            first, second = x[0, 5, 1, 2, 4 * half + pair], x[0, 5, 1, 2, 4 * half + pair + 2]
            angle = position * frequency
            expected = first * math.cos(angle) - second * math.sin(angle)
            assert float(result[0, 5, 1, 2, 4 * half + pair]) == pytest.approx(float(expected), abs=1e-6)


def test_index_table_rows() -> None:
    rows = transformer.index_embedding(torch.tensor([[0, 3, 999]]), 8)
    assert rows.shape == (1, 3, 8)
    torch.testing.assert_close(rows[0, 0], torch.tensor([0.0] * 4 + [1.0] * 4))
    angles = [3 * 10000 ** (-k / 4) for k in range(4)]
    expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    torch.testing.assert_close(rows[0, 1], torch.tensor(expected))


# (seed, batch, views) -> rows that the official release drew after torch.manual_seed(seed)
OFFICIAL_DRAWS = [
    (0, 1, 3, [[0, 877, 196]]),
    (0, 2, 3, [[0, 877, 196], [0, 799, 433]]),
]


@pytest.mark.parametrize(("seed", "batch", "views", "expected"), OFFICIAL_DRAWS)
def test_seeded_draw_is_the_official_one(seed: int, batch: int, views: int, expected: list) -> None:
    assert transformer.drawn_indices(batch, views, seed).tolist() == expected
    torch.manual_seed(seed)
    assert transformer.drawn_indices(batch, views, None).tolist() == expected


@few
@given(views=st.integers(1, 1500), seed=st.integers(0, 9))
def test_indices_are_distinct_within_the_table_and_start_at_zero(views: int, seed: int) -> None:
    for indices in (
        transformer.spread_indices(2, views),
        transformer.drawn_indices(2, views, seed),
        transformer.counted_indices(2, views),
    ):
        assert indices.shape == (2, views)
        for row in indices:
            assert row[0] == 0
            assert len(row.unique()) == views
            assert float(row.min()) >= 0
            assert float(row.max()) <= transformer.TRAINED_ROWS - 1
            assert indices.is_floating_point() == (views > transformer.TRAINED_ROWS)


@few
@given(
    batch=st.integers(1, 3),
    inputs=st.integers(1, 20),
    outputs=st.integers(1, 20),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    bias=st.booleans(),
)
def test_fast_convolution_is_the_plain_one(
    batch: int, inputs: int, outputs: int, height: int, width: int, bias: bool
) -> None:
    torch.manual_seed(height * 100 + width)
    layer = Conv3x3(inputs, outputs, bias)
    x = torch.randn(batch, inputs, height, width)
    plain = layer(x)  # gradients are wanted, so arithmetic is direct
    assert plain.requires_grad
    with torch.no_grad():
        fast = layer(x)
    torch.testing.assert_close(fast, plain.detach(), atol=1e-4, rtol=1e-4)


def test_fast_convolution_is_used_where_it_pays() -> None:
    layer = Conv3x3(4, 4)
    large, small = torch.zeros(1, 4, SMALLEST_SIDE, SMALLEST_SIDE), torch.zeros(1, 4, 8, 40)
    with torch.no_grad():
        assert layer._fast(large) == torch._nnpack_available()
        assert not layer._fast(small)
        assert not layer._fast(large.double())
    assert not layer._fast(large)

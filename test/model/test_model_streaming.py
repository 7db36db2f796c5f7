"""Streaming: equal to an exact pass in which known views do not attend to new ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_model import random_views, small_model
from torch import Tensor

from fast3r_ros.cli import main
from fast3r_ros.errors import UserError
from fast3r_ros.model import ViewTokens
from fast3r_ros.model.speed.acceleration import Acceleration, accelerate, acceleration_of
from fast3r_ros.model.speed.kv_cache import FusionMemory, KvCache
from fast3r_ros.model.transformer import TRAINED_ROWS, free_indices

MODEL = small_model()
few = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def count(views: list[ViewTokens]) -> list[int]:
    return [view.tokens.shape[1] for view in views]


@torch.inference_mode()
def encoded(grids: list[tuple[int, int]]) -> list[ViewTokens]:
    """Tokens of random views of these grids (h, w)."""
    return [MODEL.encode(image) for image in random_views(*((16 * h, 16 * w) for h, w in grids))]


@torch.inference_mode()
def seen_together(views: list[ViewTokens], indices: list[int], sees: Tensor) -> list[Tensor]:
    """The hooks of one pass in which view i attends to view j only where sees[i, j]."""
    counts = torch.tensor(count(views))
    mask = sees.repeat_interleave(counts, 0).repeat_interleave(counts, 1)

    def masked(query: Tensor, key: Tensor, value: Tensor, scale: float, kernel: str) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, mask, scale=scale)

    return list(MODEL.fuse(views, torch.tensor([indices]), function=masked).hooks)


@torch.inference_mode()
def streamed(
    views: list[ViewTokens], indices: list[int], memory: FusionMemory | None, kept: list[int]
) -> tuple[tuple[Tensor, ...], FusionMemory]:
    cache = KvCache(memory, kept)
    features = MODEL.fuse(views, torch.tensor([indices]), function=cache)
    return features.hooks, cache.memory(count(views))


@few
@given(data=st.data())
def test_a_chain_of_passes_equals_one_pass_with_blind_known_views(data: st.DataObject) -> None:
    """Three passes over views of any sizes, each keeping any of the views before it."""
    grids = data.draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=3, max_size=7))
    views = encoded(grids)
    indices = free_indices([0], len(views))
    ends = sorted(data.draw(st.sets(st.integers(1, len(views) - 1), min_size=2, max_size=2)))
    parts = [range(0, ends[0]), range(ends[0], ends[1]), range(ends[1], len(views))]
    sees = torch.zeros(len(views), len(views), dtype=torch.bool)
    memory, remembered, outputs = None, list[int](), []
    for part in parts:
        kept = sorted(data.draw(st.sets(st.sampled_from(range(len(remembered)))))) if remembered else []
        seen = [remembered[place] for place in kept]
        for view in part:
            sees[view, [*seen, *part]] = True
        hooks, memory = streamed([views[i] for i in part], [indices[i] for i in part], memory, kept)
        assert [key.shape[2] for key in memory.keys] == [sum(memory.counts)] * len(memory.keys)
        remembered = [*seen, *part]
        outputs.append(hooks)
    # a view that left is hidden from later ones, but not from those that stayed, by the mask
    expected = seen_together(views, indices, sees)
    for found, whole in zip(zip(*outputs, strict=True), expected, strict=True):
        torch.testing.assert_close(torch.cat(found, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_a_first_pass_that_remembers_is_exact() -> None:
    views = encoded([(2, 3), (2, 3), (3, 2)])
    hooks, memory = streamed(views, [0, 300, 700], None, [])
    with torch.inference_mode():
        exact = MODEL.fuse(views, torch.tensor([[0, 300, 700]])).hooks
    for found, expected in zip(hooks, exact, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert memory.counts == (6, 6, 6)
    assert len(memory.keys) == len(memory.values) == len(MODEL.decoder.dec_blocks)


def test_the_cache_does_not_hold_the_queries() -> None:
    _, memory = streamed(encoded([(2, 3)]), [0], None, [])
    for tensor in (*memory.keys, *memory.values):
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


@few
@given(
    taken=st.sets(st.integers(0, TRAINED_ROWS - 1), min_size=1, max_size=200),
    more=st.integers(1, 64),
    spread=st.booleans(),
)
def test_further_indices_are_new_and_in_the_trained_range(taken: set[int], more: int, spread: bool) -> None:
    found = free_indices(sorted(taken), more, spread)
    assert len(set(found) | taken) == len(taken) + more
    assert all(0 <= index < TRAINED_ROWS for index in found)


def test_further_indices_take_the_place_of_those_that_left() -> None:
    assert free_indices([0, 250, 750, 999], 2) == [500, 125]
    assert free_indices([0, 1, 3], 2, spread=False) == [2, 4]
    counting = small_model(decoder_random_image_idx_embedding=False)
    assert counting.further_indices([0, 1, 2], 2) == [3, 4]
    assert MODEL.further_indices([0], 1) != [1]


def test_streaming_is_printed_and_parsed() -> None:
    model = accelerate(small_model(), Acceleration.parse("stream=4,linears=int8"))
    assert "steps=stream=4,linears=int8" in repr(model)
    assert Acceleration.parse(str(acceleration_of(model))) == acceleration_of(model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stream=0", "stream is 0"),
        ("stream=many", "stream=many is not a whole number"),
        ("merge=2,stream=2", "cannot be combined"),
    ],
)
def test_wrong_streaming_is_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Acceleration.parse(text)


def test_streaming_needs_a_local_head() -> None:
    with pytest.raises(UserError, match="local head"):
        accelerate(small_model(head_with_local_head=False), Acceleration(stream=2))


@pytest.mark.slow
def test_the_benchmark_measures_the_error_of_new_views(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_model().save_pretrained(tmp_path)
    scene = ["--views", "16", "--size", "48x32", "--runs", "1", "--accelerate", "stream=2", "merge=2"]
    assert main(["benchmark", "acceleration", "--model", str(tmp_path), *scene]) == 0
    streamed, merged = json.loads(capsys.readouterr().out)["results"]
    assert (streamed["new_views"], merged["new_views"]) == (2, 16)
    assert 0.0 < streamed["error"]["points_median"] < 0.1

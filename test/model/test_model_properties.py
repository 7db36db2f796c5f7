"""Properties of the network for any weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_model import random_views, small_model

from fast3r_ros.errors import UserError
from fast3r_ros.model import ViewPrediction

MODEL = small_model()
SIZE = (32, 48)
few = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def tensors(view: ViewPrediction) -> list[torch.Tensor]:
    """All results of a view."""
    assert view.local_points is not None
    heads = (view.global_points, view.local_points)
    return [tensor for head in heads for tensor in (head.points, head.confidence)]


def assert_same(first: list[ViewPrediction], second: list[ViewPrediction], tolerance: float = 1e-5) -> None:
    for a, b in zip(first, second, strict=True):
        for x, y in zip(tensors(a), tensors(b), strict=True):
            torch.testing.assert_close(x, y, atol=tolerance, rtol=tolerance)


@few
@given(order=st.permutations([1, 2, 3, 4]), seed=st.integers(0, 1000))
@torch.no_grad()
def test_permuting_views_and_indices_permutes_the_results(order: list[int], seed: int) -> None:
    views = random_views(*[SIZE] * 5, seed=seed)
    indices = MODEL.default_indices(1, 5, seed)
    plain = MODEL(views, indices)
    order = [0, *order]
    permuted = MODEL([views[number] for number in order], indices[:, order])
    assert_same([plain[number] for number in order], permuted)


@few
@given(
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4),
    batch=st.integers(1, 2),
)
@torch.no_grad()
def test_shapes_follow_the_views_and_adding_one_changes_none(
    sizes: list[tuple[int, int]], batch: int
) -> None:
    pixels = [(16 * height, 16 * width) for height, width in sizes]
    for shown in (pixels, [*pixels, (48, 32)]):
        result = MODEL(random_views(*shown, batch=batch))
        for (height, width), view in zip(shown, result, strict=True):
            points, confidence, *_ = tensors(view)
            assert points.shape == (batch, height, width, 3)
            assert confidence.shape == (batch, height, width)
            assert bool((confidence >= 1).all())
            assert bool(points.isfinite().all())
            assert points.is_contiguous()
            assert confidence.is_contiguous()


@pytest.mark.parametrize("random_indices", [True, False])
@torch.no_grad()
def test_more_views_than_the_index_table_has_rows(random_indices: bool) -> None:
    model = small_model(decoder_random_image_idx_embedding=random_indices)
    views = random_views(*[(16, 16)] * 1100)
    result = model(views)
    assert len(result) == 1100
    assert all(bool(tensor.isfinite().all()) for view in result for tensor in tensors(view))


@torch.no_grad()
def test_a_batch_of_scenes_is_each_scene_alone() -> None:
    views = random_views(SIZE, (48, 32), SIZE, batch=3)
    indices = MODEL.default_indices(3, 3, seed=7)
    together = MODEL(views, indices)
    for scene in range(3):
        alone = MODEL([view[scene : scene + 1] for view in views], indices[scene : scene + 1])
        for a, b in zip(alone, together, strict=True):
            for x, y in zip(tensors(a), tensors(b), strict=True):
                torch.testing.assert_close(x[0], y[scene], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_cached_tokens_give_what_one_call_gives() -> None:
    views = random_views(*[SIZE] * 4, (48, 32))
    whole = MODEL(views)
    kept = [MODEL.encode(view) for view in views]
    features = MODEL.fuse(kept)
    asked = [4, 1, 2]
    parts = zip(MODEL.global_head(features, asked), MODEL.local_head(features, asked), strict=True)
    assert_same([whole[number] for number in asked], [ViewPrediction(*pair) for pair in parts])


@pytest.mark.parametrize("budget", [1, 2_000_000, 1 << 40])
@torch.no_grad()
def test_the_memory_budget_changes_nothing_but_memory(budget: int) -> None:
    views = random_views(*[(64, 64)] * 3, (32, 64), batch=2)
    plain = MODEL(views)
    MODEL.memory_budget = budget
    try:
        assert_same(plain, MODEL(views))
    finally:
        MODEL.memory_budget = None


@torch.no_grad()
def test_blocks_in_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    views = random_views(SIZE, SIZE, SIZE)
    plain = MODEL(views)
    monkeypatch.setattr("fast3r_ros.model.layers.TOKENS_AT_ONCE", 5)
    assert_same(plain, MODEL(views))


def test_gradients_reach_every_weight_that_is_used_and_recomputing_keeps_them() -> None:
    gradients = []
    for recompute in (False, True):
        model = small_model().train()
        model.set_recompute(recompute)
        result = model(random_views(SIZE, SIZE, batch=2), seed=5)
        torch.stack([tensor.mean() for view in result for tensor in tensors(view)]).sum().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    without = [name for name, gradient in gradients[0].items() if gradient is None]
    assert all("refinenet4.resConfUnit1" in name for name in without)
    for name, gradient in gradients[0].items():
        if gradient is not None:
            torch.testing.assert_close(gradient, gradients[1][name])


@torch.no_grad()
def test_logits_are_scaled_up_at_inference_only_if_configured() -> None:
    views = random_views(SIZE, SIZE)
    indices = torch.tensor([[0, 500]])

    def results(enabled: bool, training: bool) -> list[ViewPrediction]:
        model = small_model(decoder_attn_bias_for_inference_enabled=enabled)
        return model.train(training)(views, indices)

    plain = results(enabled=False, training=False)
    assert_same(plain, results(enabled=False, training=True))
    assert_same(plain, results(enabled=True, training=True))
    with pytest.raises(AssertionError):
        assert_same(plain, results(enabled=True, training=False))


def test_norm_epsilons_are_the_official_three() -> None:
    found = {
        name.rsplit(".", 1)[-1] if "blocks" not in name else name.split(".")[1] + ".norm": module.eps
        for name, module in MODEL.named_modules()
        if isinstance(module, torch.nn.LayerNorm)
    }
    assert found == {"enc_blocks.norm": 1e-6, "enc_norm": 1e-6, "dec_blocks.norm": 1e-5, "dec_norm": 1e-6}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@torch.no_grad()
def test_a_view_that_is_not_finite_is_named(value: float) -> None:
    views = random_views(*[SIZE] * 3)
    views[2][0, 1, 5, 6] = value
    with pytest.raises(UserError, match=r"view 2 .*NaN or Inf"):
        MODEL(views)
    with pytest.raises(UserError, match=r"image 1 .*NaN or Inf"):
        MODEL.encode(torch.cat([views[0], views[2]]))


@torch.no_grad()
def test_unusable_requests_are_named() -> None:
    views = random_views(SIZE, SIZE)
    with pytest.raises(UserError, match=r"view 1 is 40x32"):
        MODEL([views[0], torch.zeros(1, 3, 32, 40)])
    with pytest.raises(UserError, match=r"image_indices has shape \(1, 3\)"):
        MODEL(views, torch.zeros(1, 3))
    with pytest.raises(UserError, match="no views"):
        MODEL.fuse([])
    features = MODEL.fuse([MODEL.encode(view) for view in views])
    with pytest.raises(UserError, match="view 2 does not exist"):
        MODEL.global_head(features, [2])
    with pytest.raises(UserError, match="no local head"):
        small_model(head_with_local_head=False).local_head(features)

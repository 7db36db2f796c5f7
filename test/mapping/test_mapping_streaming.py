"""Streaming in the sliding window: which windows are processed in full, and the results of the others."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fast3r_ros.evaluation.held_out import long_walks
from fast3r_ros.evaluation.mapped import score_mapper
from fast3r_ros.mapping.data import EncodedView, Frame, Reconstruction
from fast3r_ros.mapping.network import Fast3RNetwork
from fast3r_ros.mapping.streaming import SeenViews, continuation
from fast3r_ros.model import Fast3R
from fast3r_ros.model.speed.acceleration import Acceleration, accelerate
from fast3r_ros.model.speed.kv_cache import FusionMemory

MAPS = ("points_global", "confidence_global", "points_local", "confidence_local")
WINDOW, SLIDE, EVERY = 6, 2, 3


@pytest.fixture(scope="module")
def demo() -> Fast3R:
    return Fast3R.from_pretrained("demo")


@pytest.fixture
def streaming(demo: Fast3R) -> Fast3RNetwork:
    return Fast3RNetwork(accelerate(copy.deepcopy(demo), Acceleration(stream=EVERY)), 64)


@pytest.fixture(scope="module")
def plain(demo: Fast3R) -> Fast3RNetwork:
    return Fast3RNetwork(demo, 64)


def frames(count: int) -> list[Frame]:
    rng = np.random.default_rng(0)
    return [Frame(i, "a", rng.integers(0, 256, (48, 64, 3), np.uint8)) for i in range(count)]


def maps(result: Reconstruction, view: int) -> list[Tensor]:
    return [getattr(result, name)[view] for name in MAPS]


def windows(network: Fast3RNetwork, count: int) -> list[list[EncodedView]]:
    """Windows of WINDOW views that slide by SLIDE."""
    views = [network.encode(frame) for frame in frames(WINDOW + SLIDE * (count - 1))]
    return [views[start : start + WINDOW] for start in range(0, SLIDE * count, SLIDE)]


def assert_alike(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def view() -> EncodedView:
    return EncodedView(np.zeros((1, 1, 3), np.uint8), np.eye(3), None, np.zeros(1, np.float32), None)


@given(
    known=st.integers(1, 8),
    shared=st.integers(0, 8),
    new=st.integers(0, 8),
    age=st.integers(0, 4),
    every=st.integers(1, 4),
)
@settings(deadline=None)
def test_when_a_window_continues_and_what_it_keeps(
    known: int, shared: int, new: int, age: int, every: int
) -> None:
    old, fresh = [view() for _ in range(known)], [view() for _ in range(new)]
    stays = old[max(0, known - shared) :]
    seen = SeenViews(tuple(old), tuple(range(known)), ((),) * known, FusionMemory((), (), (1,) * known), age)
    step = continuation(seen, [*stays, *fresh], every)
    assert (step is not None) == (age + 1 < every and 0 < new <= len(stays))
    if step is not None:
        assert [id(each) for each in step.fresh] == [id(each) for each in fresh]
        kept = [id(old[place]) for place in step.kept]
        assert kept == [id(each) for each in old if each is old[0] or id(each) in {id(s) for s in stays}]


def test_one_window_in_three_is_exact_and_the_others_use_the_cache(
    streaming: Fast3RNetwork, plain: Fast3RNetwork
) -> None:
    seen = windows(streaming, 5)
    results = [streaming.reconstruct(window) for window in seen]
    for number in (0, 3):  # processed in full
        exact = plain.reconstruct(seen[number])
        for place in range(WINDOW):
            assert_alike(maps(results[number], place), maps(exact, place))
    for number in (1, 2, 4):
        exact = plain.reconstruct(seen[number])
        before = results[number - 1]
        for place in range(WINDOW - SLIDE):
            for one, other in zip(maps(results[number], place), maps(before, place + SLIDE), strict=True):
                assert torch.equal(one, other)
        new = torch.stack(maps(results[number], WINDOW - 1)[:1])
        assert bool(new.isfinite().all())
        assert not torch.allclose(new[0], exact.points_global[-1], rtol=1e-3)  # it is another frame


def test_a_repeated_window_is_processed_in_full(streaming: Fast3RNetwork, plain: Fast3RNetwork) -> None:
    """Like the mapper after a rejected registration: with another view 0."""
    first, second = windows(streaming, 2)
    streaming.reconstruct(first)
    streaming.reconstruct(second)
    again = [second[2], *second[:2], *second[3:]]
    assert_alike(maps(streaming.reconstruct(again), 1), maps(plain.reconstruct(again), 1))


def test_views_that_left_are_forgotten_but_for_the_first(demo: Fast3R) -> None:
    network = Fast3RNetwork(accelerate(copy.deepcopy(demo), Acceleration(stream=100)), 64)
    for window in windows(network, 8):
        network.reconstruct(window)
        assert network._seen is not None
        assert len(network._seen.views) == len(set(network._seen.indices)) <= WINDOW + 1
        assert network._seen.memory.keys[0].shape[2] == sum(network._seen.memory.counts)
    assert network._seen.age == 7


def test_of_a_pass_that_fails_nothing_is_remembered(
    streaming: Fast3RNetwork, plain: Fast3RNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = windows(streaming, 3)
    streaming.reconstruct(first)

    def no_memory(*_: object) -> Reconstruction:
        raise torch.OutOfMemoryError("no memory")

    with monkeypatch.context() as failing:
        failing.setattr(streaming, "pointmaps", no_memory)
        with pytest.raises(torch.OutOfMemoryError):
            streaming.reconstruct(second)
    for place in range(WINDOW):
        assert_alike(maps(streaming.reconstruct(third), place), maps(plain.reconstruct(third), place))


@pytest.mark.slow
def test_the_mapper_keeps_the_track(demo: Fast3R) -> None:
    """Against the exact pass on a held-out room; accuracy over ten rooms is in docs/parallel.md."""
    walk = long_walks("easy", 1, 40)[0]
    exact = score_mapper(walk, Fast3RNetwork(demo))
    streamed = score_mapper(walk, Fast3RNetwork(accelerate(copy.deepcopy(demo), Acceleration(stream=4))))
    assert streamed["keyframes"] >= 0.7 * exact["keyframes"]
    assert streamed["ate"] < 1.5 * exact["ate"] + 0.05
    assert streamed != exact

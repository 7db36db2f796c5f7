"""The sliding window: its size, its overlap, view 0, and when tokens are released."""

import gc
import weakref
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fast3r_ros.benchmark.synthetic_run import start, the_loop
from fast3r_ros.mapping.config import MapperConfig, WindowConfig
from fast3r_ros.mapping.data import EncodedView, WindowNetwork
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.mapping.window import SlidingWindow, WindowView, reference_order
from fast3r_ros.synthetic.oracle_network import Disturbance, OracleNetwork


def view(number, keyframe_id=None, descriptor=(1.0, 0.0)):
    encoded = EncodedView(np.zeros((1, 1, 3), np.uint8), np.eye(3), None, np.float32(descriptor), None)
    return WindowView(keyframe_id, number, "a", encoded)


@given(st.integers(8, 20), st.integers(1, 4), st.integers(0, 3), st.integers(1, 30))
def test_a_window_is_never_larger_than_its_size_and_keeps_its_overlap(size, stride, loops, rounds):
    window = SlidingWindow(WindowConfig(size=size, stride=stride, overlap=4))
    identity = 0
    for _ in range(rounds):
        new = [view(identity + i) for i in range(stride)]
        together = window.compose(new, [view(-1, 0)] * loops if identity > size else [])
        assert len(together) <= size
        shared = sum(v.keyframe_id is not None for v in together)
        assert shared >= min(identity, 1 if size < stride + loops + 4 else 4)
        window.keep([replace(v, keyframe_id=identity + i) for i, v in enumerate(new)])
        identity += stride
    assert window.ids == list(range(identity))[-(size - 1) :]


def test_view_0_is_known_and_resembles_the_others():
    views = [
        view(0, 0, (0.0, 1.0)),
        view(1, 1, (0.9, 0.1)),
        view(2, None, (1.0, 0.0)),
        view(3, 3, (0.6, 0.4)),
        view(4, None, (1.0, 0.0)),
    ]
    order = reference_order(views)
    assert order[0] == 1
    assert set(order[:3]) == {0, 1, 3}


def test_few_new_views_and_many_known_ones_are_weighted_equally_for_view_0():
    def at(degrees, number, keyframe_id=None):
        return view(number, keyframe_id, (np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))))

    known = [at(5 * i, i, i) for i in range(12)]  # up to 55 degrees, the middle one at 25
    order = reference_order([*known, at(70, 12), at(75, 13)])
    assert 40 < 5 * order[0] < 55
    assert order[1] == 11  # the nearest to the new ones
    assert sorted(order) == list(range(14))
    assert reference_order([at(70, 0), at(72, 1), at(80, 2)])[0] == 1


class Watched(WindowNetwork):
    """A network that records live tokens, how often a frame was encoded, and the views 0.

    fail: so many windows are nonsense.  dim: of one window the last so many views have no confidence.
    """

    def __init__(self, network, fail=0, dim=0):
        self.network, self.fail, self.dim = network, fail, dim
        self.tokens = []
        self.encoded, self.first = Counter(), []

    def encode(self, frame):
        result = self.network.encode(frame)
        self.tokens.append(weakref.ref(result.tokens))
        self.encoded[frame.stamp_ns] += 1
        return result

    @property
    def alive(self):
        return sum(tokens() is not None for tokens in self.tokens)

    def reconstruct(self, views):
        self.first.append(views[0].image.tobytes())
        self.network.disturbance = replace(self.network.disturbance, pure_noise=self.fail > 0)
        self.fail -= 1
        maps = self.network.reconstruct(views)
        dim, self.dim = self.dim, 0
        confidence = [
            torch.ones_like(c) if i >= len(views) - dim else c for i, c in enumerate(maps.confidence_global)
        ]
        return replace(maps, confidence_global=confidence)


def watched(**parameters):
    sequence, frames = the_loop()
    network = Watched(OracleNetwork(sequence, Disturbance()))
    return network, Mapper(network, MapperConfig.from_flat({"loop.enabled": False, **parameters})), frames


def feed(mapper, frames):
    results = []
    for frame in frames:
        mapper.add_frame(frame)
        if mapper.window_ready():
            results.append(mapper.process_window())
    return results


@pytest.mark.slow
def test_a_frame_is_encoded_once_and_its_tokens_are_released_when_it_leaves_the_window():
    network, mapper, frames = watched()
    feed(mapper, frames[:160])
    gc.collect()
    assert len(mapper.trajectory()) > 30
    assert max(network.encoded.values()) == 1
    assert network.alive <= mapper.config.window.size


def test_a_rejected_window_is_tried_again_with_another_view_0():
    network, mapper, frames = watched()
    feed(mapper, frames[:80])
    count = len(network.first)
    network.fail = 1
    results = []
    rest = iter(frames[80:])
    while not results:
        results += feed(mapper, [next(rest)])
    assert results[0].accepted
    assert len(network.first) == count + 2
    assert network.first[-1] != network.first[-2]
    assert mapper.status().windows_rejected == 0


def test_without_retries_it_is_rejected_at_once_and_counted_with_a_reason():
    network, mapper, frames = watched(**{"registration.retries": 0})
    feed(mapper, frames[:80])
    count, version = len(network.first), mapper.map.version
    network.fail = 1
    results = []
    rest = iter(frames[80:])
    while not results:
        results += feed(mapper, [next(rest)])
    assert not results[0].accepted
    assert "could be placed" in results[0].reason
    assert len(network.first) == count + 1
    assert mapper.status().windows_rejected == 1
    assert mapper.map.version == version
    assert np.isinf(results[0].covariance).all()
    results = feed(mapper, [next(rest) for _ in range(40)])
    assert all(result.accepted for result in results)


@pytest.mark.parametrize(
    "trouble",
    [
        {"fail": 1},
        pytest.param({"dim": 2}, marks=pytest.mark.slow),
        pytest.param({"dim": 4}, marks=pytest.mark.slow),
    ],
)
def test_views_that_are_not_placed_get_a_second_chance_with_the_next_window(trouble):
    """A rejected window (fail, or all new views dim), and one whose newest views are not connected."""
    network, mapper, frames = watched(**{"registration.retries": 0})
    feed(mapper, frames[:80])
    before = mapper.status().keyframes
    vars(network).update(trouble)
    results = feed(mapper, frames[80:160])
    assert [r.accepted for r in results].count(False) == (trouble != {"dim": 2})
    mapper.finish()
    status = mapper.status()
    assert status.keyframes - before > 12
    assert not {"rejected", "not_connected"} & {name for name, count in status.dropped.items() if count}
    assert status.keyframes + sum(status.dropped.values()) == status.received
    stamps = [k.stamp_ns for k in mapper.map.keyframes.values()]
    assert stamps == sorted(stamps)


def test_the_registration_is_reported_with_its_covariance():
    sequence, frames = the_loop()
    result = start(sequence).feed(frames[:80]).results[-1]
    assert 0.5 < result.inlier_share <= 1
    assert 0 < result.residual < 0.1
    assert result.covariance.shape == (7, 7)
    assert np.linalg.eigvalsh(result.covariance).min() > 0
    assert np.sqrt(np.diag(result.covariance)).max() < 0.05

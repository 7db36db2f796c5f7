"""The network behind mapping gives the same results captured, batched and by the chosen view."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from fast3r_ros.errors import UserError
from fast3r_ros.io.run_report import peak_memory
from fast3r_ros.mapping import network as mapping_network
from fast3r_ros.mapping import warm_up as mapping_warm_up
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.cuda_graphs import TensorFunction
from fast3r_ros.mapping.data import EncodedView, Frame, Reconstruction
from fast3r_ros.mapping.network import Fast3RNetwork
from fast3r_ros.model import Fast3R
from fast3r_ros.model.speed.acceleration import Acceleration, accelerate
from fast3r_ros.ros.worker import gpu_memory, warm_up

VIEWS = 3


class GraphDouble:
    """Records functions like CUDA graphs, and counts replays."""

    def __init__(self) -> None:
        self.replays = 0

    def __call__(self, function: TensorFunction, inputs: Sequence[Tensor]) -> TensorFunction:
        buffers = [value.clone() for value in inputs]
        results = [result.clone() for result in function(*buffers)]

        def replay(*values: Tensor) -> list[Tensor]:
            self.replays += 1
            for buffer, value in zip(buffers, values, strict=True):
                buffer.copy_(value)
            for kept, result in zip(results, function(*buffers), strict=True):
                kept.copy_(result)
            return [result.clone() for result in results]

        return replay


def frames(count: int, height: int = 48, width: int = 64) -> list[Frame]:
    rng = np.random.default_rng(0)
    return [Frame(i, "a", rng.integers(0, 256, (height, width, 3), np.uint8)) for i in range(count)]


def assert_alike(result: Reconstruction, expected: Reconstruction) -> None:
    for name in ("points_global", "confidence_global", "points_local", "confidence_local"):
        for view, other in zip(getattr(result, name), getattr(expected, name), strict=True):
            torch.testing.assert_close(view, other, rtol=1e-5, atol=1e-5)


def test_a_captured_window_gives_what_the_network_gives(network: Fast3R) -> None:
    double = GraphDouble()
    captured, plain = Fast3RNetwork(network, record=double), Fast3RNetwork(network)
    captured.warm_up(VIEWS, (64, 48))
    assert captured.captured == 4  # the encoder for one view and for several, the fusion, the heads
    seen = frames(VIEWS + 1)
    kept = [captured.encode(frame) for frame in seen]
    expected = [plain.encode(frame) for frame in seen]
    for view, other in zip(kept, expected, strict=True):
        np.testing.assert_allclose(view.descriptor, other.descriptor, atol=1e-6)
    assert double.replays >= len(seen)
    before = double.replays
    first = captured.reconstruct(kept[:VIEWS])
    second = captured.reconstruct(kept[1:])
    assert double.replays == before + 4  # fusion and heads of two windows
    assert_alike(first, plain.reconstruct(expected[:VIEWS]))  # after the second has run: nothing is shared
    assert_alike(second, plain.reconstruct(expected[1:]))


@pytest.mark.parametrize(("count", "height", "width"), [(2, 48, 64), (4, 48, 64), (3, 64, 48)])
def test_windows_that_were_not_captured_fall_back(
    network: Fast3R, count: int, height: int, width: int
) -> None:
    captured, plain = Fast3RNetwork(network, record=GraphDouble()), Fast3RNetwork(network)
    captured.warm_up(VIEWS, (64, 48))
    views = [captured.encode(frame) for frame in frames(count, height, width)]
    result = captured.reconstruct(views)
    assert result.points_global[0].shape == (height, width, 3)
    assert_alike(result, plain.reconstruct(views))


def test_a_window_of_two_shapes_falls_back(network: Fast3R) -> None:
    captured = Fast3RNetwork(network, record=GraphDouble())
    captured.warm_up(VIEWS, (64, 48))
    views = [captured.encode(frame) for frame in (*frames(2), *frames(1, 64, 48))]
    assert_alike(captured.reconstruct(views), Fast3RNetwork(network).reconstruct(views))


def test_a_cpu_captures_nothing(network: Fast3R) -> None:
    plain = Fast3RNetwork(network)
    plain.warm_up(VIEWS, (64, 48))
    assert plain.captured == 0


def test_chosen_views_are_those_of_the_whole(network: Fast3R) -> None:
    plain = Fast3RNetwork(network)
    features = plain.fuse([plain.encode(frame) for frame in frames(4)])
    whole = plain.pointmaps(features)
    part = plain.pointmaps(features, [2, 0])
    for name in ("points_global", "confidence_local"):
        torch.testing.assert_close(getattr(part, name)[0], getattr(whole, name)[2], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(getattr(part, name)[1], getattr(whole, name)[0], rtol=1e-5, atol=1e-5)


def test_frames_encoded_together_are_those_encoded_alone(network: Fast3R) -> None:
    plain = Fast3RNetwork(network)
    seen = frames(3)
    together = plain.encode_prepared([plain.prepare(frame) for frame in seen])
    for view, frame in zip(together, seen, strict=True):
        alone = plain.encode(frame)
        np.testing.assert_array_equal(view.image, alone.image)
        np.testing.assert_allclose(view.descriptor, alone.descriptor, atol=1e-6)
        torch.testing.assert_close(view.tokens.tokens, alone.tokens.tokens, rtol=1e-5, atol=1e-5)


def test_new_views_of_a_window_are_replayed_together(network: Fast3R) -> None:
    double = GraphDouble()
    captured, plain = Fast3RNetwork(network, record=double), Fast3RNetwork(network)
    captured.warm_up(VIEWS, (64, 48), new=2)
    before = double.replays
    first, second = captured.encode_all(frames(2))
    assert double.replays == before + 1
    for view, frame in zip((first, second), frames(2), strict=True):
        assert isinstance(view, EncodedView)
        torch.testing.assert_close(
            view.tokens.tokens, plain.encode(frame).tokens.tokens, rtol=1e-5, atol=1e-5
        )


def test_frames_of_one_size_are_encoded_together_and_one_that_is_unusable_alone_is_left_out(
    network: Fast3R, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, passes = Fast3RNetwork(network), list[int]()
    together = plain.encode_prepared
    monkeypatch.setattr(
        plain, "encode_prepared", lambda views, lap: passes.append(len(views)) or together(views, lap)
    )
    unusable = Frame(9, "a", np.zeros((48, 64), np.uint8))
    seen = [*frames(2), unusable, *frames(1, 64, 48), *frames(3)[2:]]
    views = plain.encode_all(seen)
    assert passes == [3, 1]
    assert isinstance(views[2], UserError)
    for view, frame in zip(views, seen, strict=True):
        if frame is not unusable:
            assert isinstance(view, EncodedView)
            np.testing.assert_array_equal(view.image, plain.prepare(frame).pixels.numpy())
            np.testing.assert_allclose(view.descriptor, plain.encode(frame).descriptor, atol=1e-6)


def test_the_models_gpu_is_the_current_one_in_every_thread(
    network: Fast3R, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU the guard does nothing; here its presence around all computations is tested."""
    asked: list[Tensor] = []
    guard = torch.cuda.device_of
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: asked.append(tensor) or guard(tensor))
    plain = Fast3RNetwork(network)
    (frame,) = frames(1)
    prepared = plain.prepare(frame)
    (view,) = plain.encode_prepared([prepared])
    features = plain.fuse([view])
    steps = [
        lambda: plain.prepare(frame),
        lambda: plain.encode_prepared([prepared]),
        lambda: plain.fuse([view]),
        lambda: plain.pointmaps(features),
        lambda: plain.local_pointmaps(features, [0]),
        lambda: plain.reconstruct([view]),
        lambda: plain.warm_up(2, (64, 48)),
    ]
    for step in steps:
        asked.clear()
        step()
        assert asked[0] is next(network.parameters())


@pytest.mark.parametrize("stream", [1, 2])
def test_a_gpu_times_attention_kernels_once_before_its_first_pass(
    network: Fast3R, monkeypatch: pytest.MonkeyPatch, stream: int
) -> None:
    asked: list[int] = []

    def choose(model: Fast3R, tokens: int) -> str:
        asked.append(tokens)
        return "auto"

    monkeypatch.setattr(mapping_network, "choose_attention", choose)
    model = accelerate(copy.deepcopy(network), Acceleration(stream=stream))
    plain = Fast3RNetwork(model)
    views = [plain.encode(frame) for frame in (*frames(2), *frames(1, 64, 48))]
    plain.reconstruct(views)
    assert asked == []  # on a CPU there is nothing to choose from
    plain._attention_chosen = False  # as on a GPU
    plain.fuse(views)
    plain.reconstruct(views[:2])
    assert asked == [3 * 3 * 4]
    plain._attention_chosen = False
    plain.reconstruct(views[:2])
    plain.reconstruct(views)
    assert asked == [3 * 3 * 4, 2 * 3 * 4]


def test_a_captured_stream_gives_what_the_network_gives(network: Fast3R) -> None:
    model, double = accelerate(copy.deepcopy(network), Acceleration(stream=2)), GraphDouble()
    captured, plain = Fast3RNetwork(model, record=double), Fast3RNetwork(model)
    captured.warm_up(VIEWS, (64, 48))
    seen = frames(VIEWS + 2)
    kept, expected = ([one.encode(frame) for frame in seen] for one in (captured, plain))
    before = double.replays
    results, exact = [], []
    for start in range(3):  # a full pass, a continued one, a full one
        results.append(captured.reconstruct(kept[start : start + VIEWS]))
        exact.append(plain.reconstruct(expected[start : start + VIEWS]))
    assert double.replays == before + 4  # fusion and heads of two windows
    for found, true in zip(results, exact, strict=True):
        assert_alike(found, true)


def test_stages_are_reported_as_they_end(network: Fast3R) -> None:
    plain, stages = Fast3RNetwork(network), list[str]()
    view = plain.encode(frames(1)[0], stages.append)
    plain.reconstruct([view, view], stages.append)
    assert stages == ["preprocess", "encode", "describe", "fuse", "heads"]
    with pytest.raises(UserError):
        plain.encode(Frame(0, "a", np.zeros((48, 64), np.uint8)))


def test_a_warm_up_records_and_rehearses_a_window_of_the_nodes(
    network: Fast3R, monkeypatch: pytest.MonkeyPatch
) -> None:
    warmed_up: list[Reconstruction] = []
    monkeypatch.setattr(mapping_warm_up, "warm_up_mapping", lambda like, config: warmed_up.append(like))
    captured = Fast3RNetwork(network, record=GraphDouble())
    config = MapperConfig.from_flat({"window.size": 5, "window.stride": 3, "window.overlap": 2})
    warm_up(captured, config, (64, 48))
    assert captured.captured == 4
    assert captured._captured.find("encode", torch.zeros(3, 48, 64, 3, dtype=torch.uint8)) is not None
    (like,) = warmed_up
    assert [tuple(view.shape) for view in like.points_local] == [(48, 64, 3)] * 5


def test_a_warm_up_that_does_not_fit_into_memory_is_reported(
    network: Fast3R, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_room(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    plain = Fast3RNetwork(network)
    monkeypatch.setattr(plain, "warm_up", no_room)
    warm_up(plain, MapperConfig(), (64, 48))
    assert "no memory to warm up for windows of 16 views" in caplog.text


def test_gpu_memory_is_that_of_the_gpu_in_use_and_not_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, peak = {0: 0, 1: 2**20}, {0: 0, 1: 3 * 2**20}
    for name, value in {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 2,
        "memory_allocated": lambda device=0: taken[device],
        "max_memory_allocated": lambda device=0: peak[device],
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    assert gpu_memory() == (taken[1], peak[1])
    assert peak_memory()["device"] == 3.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the CUDA path needs a GPU")
def test_on_a_gpu_the_window_is_captured_and_agrees_with_the_cpu(network: Fast3R) -> None:
    on_gpu = Fast3RNetwork(Fast3R(network.config).eval().cuda())
    on_gpu._model.load_state_dict(network.state_dict())
    on_gpu.warm_up(VIEWS, (64, 48))
    assert on_gpu.captured == 4
    seen = frames(VIEWS)
    result = on_gpu.reconstruct([on_gpu.encode(frame) for frame in seen])
    plain = Fast3RNetwork(network)
    expected = plain.reconstruct([plain.encode(frame) for frame in seen])
    for view, other in zip(result.points_global, expected.points_global, strict=True):
        torch.testing.assert_close(view.cpu(), other, rtol=1e-2, atol=1e-2)

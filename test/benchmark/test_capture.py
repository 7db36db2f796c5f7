"""What is captured and what falls back.

CUDA graphs need a GPU; a recorder that works as they do keeps their rules here: fixed input buffers, and
results that the next replay overwrites.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fast3r_ros.mapping.capture import Captured, CudaGraphs, TensorFunction


def like_a_graph(function: TensorFunction, inputs: Sequence[Tensor]) -> TensorFunction:
    buffers = [value.clone() for value in inputs]
    results = [result.clone() for result in function(*buffers)]

    def replay(*values: Tensor) -> list[Tensor]:
        for buffer, value in zip(buffers, values, strict=True):
            buffer.copy_(value)
        for kept, result in zip(results, function(*buffers), strict=True):
            kept.copy_(result)
        return [result.clone() for result in results]

    return replay


def refuses(function: TensorFunction, inputs: Sequence[Tensor]) -> TensorFunction:
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


def doubled(x: Tensor) -> list[Tensor]:
    return [2 * x, x * x]


def test_only_what_was_captured_is_replayed_and_gives_the_same() -> None:
    captured = Captured(like_a_graph)
    assert captured.capture("doubled", doubled, torch.zeros(3))
    values = torch.randn(3)
    replay = captured.find("doubled", values)
    assert replay is not None
    for result, expected in zip(replay(values), doubled(values), strict=True):
        torch.testing.assert_close(result, expected)
    assert captured.find("halved", values) is None
    for other in (torch.zeros(4), torch.zeros(3, 1), torch.zeros(3, dtype=torch.float64)):
        assert captured.find("doubled", other) is None


def test_results_outlive_the_next_replay() -> None:
    captured = Captured(like_a_graph)
    captured.capture("doubled", doubled, torch.zeros(2))
    replay = captured.find("doubled", torch.zeros(2))
    assert replay is not None
    first = replay(torch.ones(2))
    replay(torch.full((2,), 5.0))
    assert first[0].tolist() == [2.0, 2.0]


def test_without_a_recorder_nothing_is_captured() -> None:
    captured = Captured(None)
    assert not captured.capture("doubled", doubled, torch.zeros(2))
    assert captured.find("doubled", torch.zeros(2)) is None


def test_what_cannot_be_captured_is_told(caplog: pytest.LogCaptureFixture) -> None:
    captured = Captured(refuses)
    assert not captured.capture("doubled", doubled, torch.zeros(2))
    assert "doubled of (2,) is not captured" in caplog.text
    assert "operation not permitted" in caplog.text
    assert captured.find("doubled", torch.zeros(2)) is None


def test_what_a_failed_attempt_took_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[weakref.ref[Tensor]] = []
    left: list[int] = []

    def runs_out_of_memory(function: TensorFunction, inputs: Sequence[Tensor]) -> TensorFunction:
        large = torch.zeros(1000)
        taken.append(weakref.ref(large))
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: left.append(sum(t() is not None for t in taken)))
    assert not Captured(runs_out_of_memory).capture("doubled", doubled, torch.zeros(2))
    assert left == [0]  # given back once, when nothing held the memory


def test_a_shape_is_captured_once() -> None:
    calls: list[int] = []

    def counted(x: Tensor) -> list[Tensor]:
        calls.append(1)
        return [x]

    captured = Captured(like_a_graph)
    assert captured.capture("counted", counted, torch.zeros(2))
    assert captured.capture("counted", counted, torch.ones(2))
    assert len(calls) == len(captured) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_cuda_graph_gives_what_the_function_gives() -> None:
    captured = Captured(CudaGraphs())
    assert captured.capture("doubled", doubled, torch.zeros(1000, device="cuda"))
    values = torch.randn(1000, device="cuda")
    replay = captured.find("doubled", values)
    assert replay is not None
    results = replay(values)
    replay(torch.zeros(1000, device="cuda"))
    torch.testing.assert_close(results[0], 2 * values)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_cuda_graphs_share_memory_and_keep_their_results_apart() -> None:
    def much(x: Tensor) -> list[Tensor]:
        return [(x.repeat(1 << 20, 1) + 1).sum(0)]

    def reserved(recorders: Sequence[CudaGraphs]) -> int:
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        inputs = torch.arange(3.0, device="cuda"), torch.arange(4.0, device="cuda")
        replays = [record(much, [values]) for record, values in zip(recorders, inputs, strict=True)]
        results = [replay(values)[0] for replay, values in zip(replays, inputs, strict=True)]
        for result, values in zip(results, inputs, strict=True):
            torch.testing.assert_close(result, much(values)[0])
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved() - before

    together = CudaGraphs()
    assert reserved([together, together]) < 0.8 * reserved([CudaGraphs(), CudaGraphs()])

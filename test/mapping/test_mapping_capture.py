"""Captured functions and fallbacks.

CUDA graphs need a GPU; a recorder that works as they do keeps their rules here: fixed input buffers, and
results that the next replay overwrites.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from fast3r_ros.mapping.cuda_graphs import Captured, CudaGraphs, TensorFunction


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


def test_only_captured_shapes_are_replayed_with_equal_results() -> None:
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


def test_a_failed_capture_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    captured = Captured(refuses)
    assert not captured.capture("doubled", doubled, torch.zeros(2))
    assert "doubled of (2,) is not captured" in caplog.text
    assert "operation not permitted" in caplog.text
    assert captured.find("doubled", torch.zeros(2)) is None


def test_memory_of_a_failed_attempt_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[weakref.ref[Tensor]] = []
    left: list[int] = []

    def runs_out_of_memory(function: TensorFunction, inputs: Sequence[Tensor]) -> TensorFunction:
        large = torch.zeros(1000)
        taken.append(weakref.ref(large))
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: left.append(sum(t() is not None for t in taken)))
    assert not Captured(runs_out_of_memory).capture("doubled", doubled, torch.zeros(2))
    assert left == [0]  # freed once, when nothing held the memory


def test_a_shape_is_captured_once() -> None:
    calls: list[int] = []

    def counted(x: Tensor) -> list[Tensor]:
        calls.append(1)
        return [x]

    captured = Captured(like_a_graph)
    assert captured.capture("counted", counted, torch.zeros(2))
    assert captured.capture("counted", counted, torch.ones(2))
    assert len(calls) == len(captured) == 1


class CudaStandIn:
    """The parts of `torch.cuda` used by `CudaGraphs`, on a device of `free` bytes where a run takes `peak`.

    pools: those of every recording that was begun; the numbers in `failing` end with an error.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int, peak: int, failing: Sequence[int]) -> None:
        self.pools: list[object] = []
        self.handles = 0
        self.fastest: list[bool] = []  # whether cuDNN measured, at each recording
        self._free, self._failing = free, failing
        for name, value in {
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
            "Stream": lambda device: SimpleNamespace(wait_stream=lambda other: None),
            "current_stream": lambda device: SimpleNamespace(wait_stream=lambda other: None),
            "stream": lambda side: nullcontext(),
            "graph": self._graph,
            "graph_pool_handle": self._handle,
            "empty_cache": lambda: None,
            "memory_allocated": lambda device: 100,
            "max_memory_allocated": lambda device: 100 + peak,
            "reset_peak_memory_stats": lambda device: None,
            "mem_get_info": lambda device: (free, 10 * free),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def _handle(self) -> str:
        self.handles += 1
        return f"pool {self.handles}"

    @contextmanager
    def _graph(self, graph: object, pool: object, stream: object, capture_error_mode: str) -> Iterator[None]:
        self.pools.append(pool)
        self.fastest.append(torch.backends.cudnn.benchmark)
        yield
        if len(self.pools) - 1 in self._failing:
            raise RuntimeError("operation not permitted when stream is capturing")


def test_recordings_share_one_pool_also_with_those_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = CudaStandIn(monkeypatch, free=1000, peak=10, failing=(0, 2))
    before = torch.backends.cudnn.benchmark
    captured = Captured(CudaGraphs())
    assert [captured.capture("doubled", doubled, torch.zeros(count)) for count in (1, 2, 3, 4)] == [
        False,
        True,
        False,
        True,
    ]
    assert cuda.pools == ["pool 1"] * 4
    assert cuda.fastest == [True] * 4
    assert torch.backends.cudnn.benchmark == before


@pytest.mark.parametrize(("free", "begun"), [(199, 0), (200, 1)])
def test_a_pass_that_does_not_fit_twice_is_not_recorded(
    free: int, begun: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cuda = CudaStandIn(monkeypatch, free, peak=100, failing=())
    runs: list[int] = []

    def counted(x: Tensor) -> list[Tensor]:
        runs.append(1)
        return [x]

    assert Captured(CudaGraphs()).capture("counted", counted, torch.zeros(2)) == bool(begun)
    assert len(cuda.pools) == begun
    assert len(runs) == 3 + begun
    assert ("it needs twice" in caplog.text) == (not begun)


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

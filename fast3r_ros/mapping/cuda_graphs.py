"""CUDA graphs: work of fixed shapes is recorded once and launched as a whole.

A window's pass consists of about a thousand short kernels; launched one by one from Python they can leave a
fast GPU waiting.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

TensorFunction = Callable[..., Sequence[Tensor]]
Record = Callable[[TensorFunction, Sequence[Tensor]], TensorFunction]
_WARM_UP_RUNS = 3  # runs before recording, to choose kernels and allocate workspaces
_log = logging.getLogger(__name__)


class Captured:
    """Recorded functions of tensors, by name and by the shapes of their inputs."""

    def __init__(self, record: Record | None) -> None:
        """record: makes a replay of a function for inputs of the given shapes; None disables recording."""
        self._record = record
        self._replays: dict[Hashable, TensorFunction] = {}

    def capture(self, name: Hashable, function: TensorFunction, *inputs: Tensor) -> bool:
        """Record a function for inputs like these; False, with a warning, if that fails.

        The function must use only its arguments and constants, and must not synchronise with the device.
        """
        if self._record is None:
            return False
        key = _key(name, inputs)
        if key in self._replays:
            return True
        try:
            self._replays[key] = self._record(function, inputs)
            return True
        except RuntimeError as error:
            shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
            reason = str(error).splitlines()[0]
            _log.warning("%s of %s is not captured and runs kernel by kernel: %s", name, shapes, reason)
        # after the error is gone with its frames and their tensors, the attempt's memory can be freed
        torch.cuda.empty_cache()
        return False

    def find(self, name: Hashable, *inputs: Tensor) -> TensorFunction | None:
        """The replay for inputs of exactly these shapes; later runs do not change its results."""
        return self._replays.get(_key(name, inputs)) if self._replays else None

    def __len__(self) -> int:
        """Number of recorded functions."""
        return len(self._replays)


class CudaGraphs:
    """Records functions as CUDA graphs whose intermediate results share one pool of memory.

    Sharing is safe because no two of them run at the same time (all are replayed in the stream of the thread
    that uses the network) and none reads what another left there: inputs are copied into buffers outside of
    the pool, and results are copied out of it at once.

    A failed attempt leaves its memory in the pool for the next one; PyTorch never frees it, and running out
    of memory within a recording can end older ones.  Therefore a recording starts only if its memory is
    certain to fit.
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, function: TensorFunction, inputs: Sequence[Tensor]) -> TensorFunction:
        """A graph of `function`, for inputs of these shapes.

        Raises RuntimeError when the function does something a graph cannot record, such as synchronising,
        and when there is no memory for two runs: the graph, and a run kernel by kernel next to it.
        """
        device = inputs[0].device
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        buffers = [value.clone() for value in inputs]
        graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        # also restores the stream when recording fails
        with torch.cuda.stream(side), _measured_convolutions():
            _require_room(_peak_of(lambda: function(*buffers), device), device)
            with torch.cuda.graph(graph, self._pool, side, capture_error_mode="thread_local"):
                results = function(*buffers)
        torch.cuda.current_stream(device).wait_stream(side)

        def replay(*values: Tensor) -> list[Tensor]:
            for buffer, value in zip(buffers, values, strict=True):
                buffer.copy_(value)
            graph.replay()
            return [result.clone() for result in results]

        return replay


def _peak_of(run: Callable[[], object], device: torch.device) -> int:
    """Peak memory of the warm-up's runs in bytes, above the initial usage."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(_WARM_UP_RUNS):
        run()
    return torch.cuda.max_memory_allocated(device) - before


def _require_room(peak: int, device: torch.device) -> None:
    """Raises RuntimeError when a device has no room for twice `peak` bytes, after freeing its cache."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    if free < 2 * peak:
        raise RuntimeError(f"it needs twice {peak / 1e9:.2f} GB, and only {free / 1e9:.2f} GB are free")


@contextmanager
def _measured_convolutions() -> Iterator[None]:
    """Inside, cuDNN uses its fastest kernel for every convolution, found by timing them in the warm-up.

    Recorded shapes are fixed, so this happens once for each.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _key(name: Hashable, inputs: Sequence[Tensor]) -> Hashable:
    return (name, tuple((tuple(value.shape), value.dtype, value.device) for value in inputs))

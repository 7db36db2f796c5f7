"""Work of fixed shapes recorded once and launched as a whole: CUDA graphs, where there is CUDA.

A window's pass is some thousand short kernels; launched one by one from Python they can leave a fast GPU
waiting.
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

_WARM_UP_RUNS = 3  # kernels are chosen and workspaces allocated before anything is recorded
_log = logging.getLogger(__name__)


class Captured:
    """Functions of tensors that were recorded, by name and by the shapes of their inputs."""

    def __init__(self, record: Record | None) -> None:
        """record: makes a replay of a function for inputs of the given shapes; None: nothing is recorded."""
        self._record = record
        self._replays: dict[Hashable, TensorFunction] = {}

    def capture(self, name: Hashable, function: TensorFunction, *inputs: Tensor) -> bool:
        """Record a function for inputs like these; False, with a warning, where that fails.

        The function must use nothing but its arguments and constants, and must not wait for the device.
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
        # here, where the error with its frames and their tensors is gone: what the attempt took goes back
        torch.cuda.empty_cache()
        return False

    def find(self, name: Hashable, *inputs: Tensor) -> TensorFunction | None:
        """The replay for inputs of exactly these shapes; its results stay as they are whatever runs next."""
        return self._replays.get(_key(name, inputs)) if self._replays else None

    def __len__(self) -> int:
        """How many functions were recorded."""
        return len(self._replays)


class CudaGraphs:
    """Records functions as CUDA graphs whose intermediate results share one pool of memory.

    They may share it because no two of them run at the same time (all are replayed in the stream of the
    thread that asks the network) and none reads what another left there: inputs are copied into buffers
    outside of the pool, and results, which no later recording overwrites while they live, are copied out of
    it at once.

    What an attempt that fails has taken stays in the pool, where the next one uses it; PyTorch never gives it
    back, and running out of memory within a recording can end older ones.  So none is begun that may not fit.
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, function: TensorFunction, inputs: Sequence[Tensor]) -> TensorFunction:
        """A graph of `function`, for inputs of these shapes.

        Raises RuntimeError when the function does what a graph cannot hold, such as waiting for the device,
        and when memory does not suffice twice: for the graph, and for what runs beside it kernel by kernel.
        """
        device = inputs[0].device
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        buffers = [value.clone() for value in inputs]
        graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        # which also restores the stream when recording fails
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
    """The bytes that the warm-up's runs take at most, above what is taken before them."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(_WARM_UP_RUNS):
        run()
    return torch.cuda.max_memory_allocated(device) - before


def _require_room(peak: int, device: torch.device) -> None:
    """Raises RuntimeError where a device has no room for twice `peak` bytes, with its cache given back."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    if free < 2 * peak:
        raise RuntimeError(
            f"it takes {peak / 1e9:.2f} GB, which do not fit twice into the {free / 1e9:.2f} GB left"
        )


@contextmanager
def _measured_convolutions() -> Iterator[None]:
    """Inside, cuDNN takes for every convolution the fastest of its kernels, found by running them in the
    warm-up; shapes that are recorded stay as they are, so that this is done once for each.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _key(name: Hashable, inputs: Sequence[Tensor]) -> Hashable:
    return (name, tuple((tuple(value.shape), value.dtype, value.device) for value in inputs))

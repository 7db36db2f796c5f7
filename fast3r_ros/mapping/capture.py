"""Work of fixed shapes recorded once and launched as a whole: CUDA graphs, where there is CUDA.

A window's pass is some thousand short kernels; launched one by one from Python they can leave a fast GPU
waiting.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
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
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, function: TensorFunction, inputs: Sequence[Tensor]) -> TensorFunction:
        """A graph of `function`, for inputs of these shapes.

        Raises RuntimeError when the function does what a graph cannot hold, such as waiting for the device,
        and when memory does not suffice.
        """
        buffers = [value.clone() for value in inputs]
        graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream(buffers[0].device)
        side.wait_stream(torch.cuda.current_stream(buffers[0].device))
        with torch.cuda.stream(side):  # which also restores the stream when recording fails
            for _ in range(_WARM_UP_RUNS):
                function(*buffers)
            with torch.cuda.graph(graph, self._pool, side, capture_error_mode="thread_local"):
                results = function(*buffers)
        torch.cuda.current_stream(buffers[0].device).wait_stream(side)
        self._pool = graph.pool()

        def replay(*values: Tensor) -> list[Tensor]:
            for buffer, value in zip(buffers, values, strict=True):
                buffer.copy_(value)
            graph.replay()
            return [result.clone() for result in results]

        return replay


def _key(name: Hashable, inputs: Sequence[Tensor]) -> Hashable:
    return (name, tuple((tuple(value.shape), value.dtype, value.device) for value in inputs))

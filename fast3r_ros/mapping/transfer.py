"""Copies from the network's device to the host, one for everything that is needed together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def to_host(*tensors: Tensor) -> list[np.ndarray]:
    """Arrays of the same content; from a GPU all are transferred in one copy.

    On the CPU the arrays share the tensors' memory.
    """
    if tensors[0].device.type == "cpu":
        return [tensor.numpy() for tensor in tensors]
    # pinned memory is scarce: it is freed, because each part is a copy
    return [part.numpy() for part in apart(fetch(together(tensors)), tensors)]


def fetch(tensor: Tensor) -> Tensor:
    """The tensor on the host: itself on the CPU; from a GPU one synchronous copy into pinned memory."""
    if tensor.device.type == "cpu":
        return tensor
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
    return pinned.copy_(tensor)


def together(tensors: Sequence[Tensor]) -> Tensor:
    """The concatenated bytes of tensors of any shape and dtype, as one (N,) uint8 tensor on their device."""
    return torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors])


def apart(content: Tensor, likes: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of `together`: tensors of the shapes and dtypes of `likes` from (N,) bytes."""
    sizes = [like.numel() * like.element_size() for like in likes]
    parts = zip(content.split(sizes), likes, strict=True)
    # copies, because a part may not be aligned for its dtype
    return [part.clone().view(like.dtype).view(like.shape) for part, like in parts]


@contextmanager
def beside_the_network(device: torch.device) -> Iterator[None]:
    """Inside, work runs on a separate CUDA stream, so that publishing does not wait for the next window.

    Only for tensors that the device has finished, and for results that are fetched within.
    """
    stream = _side_stream(device) if device.type == "cuda" and torch.cuda.is_available() else None
    with torch.cuda.stream(stream):
        yield


@lru_cache(maxsize=8)
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return urgent_stream(device)


def urgent_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream of higher priority for short work in parallel with the network.

    The thread blocks of streams of equal priority run in order of arrival: short work would wait behind an
    attention kernel with thousands of blocks.  With a higher priority (a lower number) it gets the next free
    place.
    """
    return torch.cuda.Stream(device, priority=-1)

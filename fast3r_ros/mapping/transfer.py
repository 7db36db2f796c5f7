"""From the network's device to the host: one copy for all that is needed together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def to_host(*tensors: Tensor) -> list[np.ndarray]:
    """Arrays of the same content; from a GPU their bytes come in one copy, whatever their number.

    On the CPU the arrays share the tensors' memory.
    """
    if tensors[0].device.type == "cpu":
        return [tensor.numpy() for tensor in tensors]
    # pinned memory is scarce: it is not kept, as each part is a copy
    return [part.numpy() for part in apart(fetch(together(tensors)), tensors)]


def fetch(tensor: Tensor) -> Tensor:
    """The tensor on the host: itself on the CPU; from a GPU one copy into pinned memory, waited for."""
    if tensor.device.type == "cpu":
        return tensor
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
    return pinned.copy_(tensor)


def together(tensors: Sequence[Tensor]) -> Tensor:
    """The bytes of tensors of any shape and dtype one after the other, as one (N,) uint8 tensor there."""
    return torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors])


def apart(content: Tensor, likes: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of `together`: tensors of the shapes and dtypes of `likes` from (N,) bytes."""
    sizes = [like.numel() * like.element_size() for like in likes]
    parts = zip(content.split(sizes), likes, strict=True)
    # copies of their own, because a part may begin where numbers of its size may not
    return [part.clone().view(like.dtype).view(like.shape) for part, like in parts]


@contextmanager
def beside_the_network(device: torch.device) -> Iterator[None]:
    """What is published goes through a CUDA stream of its own, so that it does not wait for the next window.

    Only for tensors that the device has finished, and for results that are fetched within.
    """
    stream = _side_stream(device) if device.type == "cuda" and torch.cuda.is_available() else None
    with torch.cuda.stream(stream):
        yield


@lru_cache(maxsize=8)
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return urgent_stream(device)


def urgent_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream for short work beside the network's.

    The thread blocks of streams of one priority run in the order in which they came: behind an attention
    kernel with thousands of them, all of which would go first.  With a higher priority (a lower number) they
    take the next place that becomes free.
    """
    return torch.cuda.Stream(device, priority=-1)

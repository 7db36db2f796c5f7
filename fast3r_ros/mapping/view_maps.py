"""A view's maps on the network's device, and their transfer to the host in few copies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fast3r_ros.mapping.config import PointsConfig
from fast3r_ros.mapping.points import valid_points


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
def on_side_stream(device: torch.device) -> Iterator[None]:
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


Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class HostMaps:
    """points: (h, w, 3) float32 in the view's camera frame, in map scale.  confidence: (h, w) float32.
    valid: (h, w) bool.
    """

    points: Float32
    confidence: Float32
    valid: NDArray[np.bool_]


@dataclass(frozen=True)
class ViewMaps:
    """Finished tensors on the network's device.

    points: (h, w, 3) float32 in the view's camera frame, in the network's unit.  confidence: (h, w) float32.
    scale: map units per unit of the points.  filters: decide which points are valid.  known: (h, w) bool,
    their result if already known.
    """

    points: Tensor
    confidence: Tensor
    scale: float = 1.0
    filters: PointsConfig = field(default_factory=PointsConfig)
    known: Tensor | None = None

    @staticmethod
    def of_arrays(points: Float32, confidence: Float32, valid: NDArray[np.bool_]) -> ViewMaps:
        """Maps on the host and in map scale."""
        known = torch.from_numpy(valid)
        return ViewMaps(torch.from_numpy(points), torch.from_numpy(confidence), known=known)

    def scaled(self, factor: float) -> ViewMaps:
        """The same view in a map rescaled by `factor`."""
        return replace(self, scale=self.scale * factor, known=self.__dict__.get("valid", self.known))

    @cached_property
    def valid(self) -> Tensor:
        """(h, w) bool, the points that pass the filters; computed on first use."""
        if self.known is not None:
            return self.known
        return valid_points(self.points, self.confidence, self.filters)

    @cached_property
    def on_host(self) -> HostMaps:
        """Copies for the host, made on first use by one copy from the device."""
        with on_side_stream(self.points.device):
            return HostMaps(*to_host(self.points * self.scale, self.confidence, self.valid))

    def own_copy(self) -> ViewMaps:
        """The maps on the host, in map scale.

        The network's tensors may share memory with those of other views, so store this copy for long-term
        use.
        """
        host = self.on_host
        return ViewMaps.of_arrays(host.points.copy(), host.confidence.copy(), host.valid.copy())

    def depth_image(self) -> Float32:
        """(h, w) depth along the optical axis in map scale, NaN if invalid (REP-118); one device copy."""
        with on_side_stream(self.points.device):
            return fetch(self.depth()).numpy()

    def confidence_image(self) -> Float32:
        """(h, w) confidence; one copy from the device."""
        with on_side_stream(self.points.device):
            return fetch(self.confidence).numpy()

    def depth(self) -> Tensor:
        """`depth_image` on the device."""
        depth = self.points[..., 2] * self.scale
        return torch.where(self.valid & (depth > 0), depth, torch.nan)


def mean_values(views: Sequence[ViewMaps]) -> list[tuple[float, float]]:
    """Mean confidence and share of valid pixels of each view; one copy from the device for all."""
    if not views:
        return []
    with on_side_stream(views[0].points.device):
        means = torch.stack([map.float().mean() for view in views for map in (view.confidence, view.valid)])
        return [(float(confidence), float(valid)) for confidence, valid in fetch(means.view(-1, 2))]

"""A view's pixels on the network's device, and copies of them for the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fast3r_ros.mapping.config import PointsConfig
from fast3r_ros.mapping.points import valid_points
from fast3r_ros.mapping.transfer import beside_the_network, fetch, to_host

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
        with beside_the_network(self.points.device):
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
        with beside_the_network(self.points.device):
            return fetch(self.depth()).numpy()

    def confidence_image(self) -> Float32:
        """(h, w) confidence; one copy from the device."""
        with beside_the_network(self.points.device):
            return fetch(self.confidence).numpy()

    def depth(self) -> Tensor:
        """`depth_image` on the device."""
        depth = self.points[..., 2] * self.scale
        return torch.where(self.valid & (depth > 0), depth, torch.nan)


def mean_values(views: Sequence[ViewMaps]) -> list[tuple[float, float]]:
    """Mean confidence and share of valid pixels of each view; one copy from the device for all."""
    if not views:
        return []
    with beside_the_network(views[0].points.device):
        means = torch.stack([map.float().mean() for view in views for map in (view.confidence, view.valid)])
        return [(float(confidence), float(valid)) for confidence, valid in fetch(means.view(-1, 2))]

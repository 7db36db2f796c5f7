"""A network in separate steps, for one pass over hundreds of views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch

from fast3r_ros.mapping.data import EncodedView, Frame, Reconstruction, WindowNetwork
from fast3r_ros.mapping.network import PreparedFrame


@runtime_checkable
class ManyViewNetwork(Protocol):
    """The interface of a network for one pass; `fast3r_ros.mapping.network.Fast3RNetwork` has it."""

    def prepare(self, frame: Frame) -> PreparedFrame:
        """Resize one frame.  Raises UserError for an unusable image."""
        ...

    def encode_prepared(self, frames: Sequence[PreparedFrame]) -> list[EncodedView]:
        """Encode frames of one size."""
        ...

    def fuse(self, views: Sequence[EncodedView]) -> Any:
        """One pass of the fusion transformer; view 0 defines the `window` frame."""
        ...

    def pointmaps(self, features: Any, views: Sequence[int]) -> Reconstruction:
        """The pointmaps of some views of a pass."""
        ...

    def local_pointmaps(self, features: Any, views: Sequence[int]) -> Reconstruction:
        """Like `pointmaps`, without the global maps."""
        ...


@runtime_checkable
class HasSafer(Protocol):
    """A `ManyViewNetwork` that may repeat a pass in a precision of larger range."""

    def overflows(self, result: Reconstruction) -> bool:
        """Whether some maps are not finite and `safer` offers another precision."""
        ...

    def safer(self, views: Sequence[EncodedView]) -> tuple[ManyViewNetwork, list[EncodedView]]:
        """The network in that precision, and the views encoded by it."""
        ...


def in_parts(network: WindowNetwork | ManyViewNetwork) -> ManyViewNetwork:
    """The network itself, or a wrapper whose pass computes and stores the pointmaps of all views at once."""
    return network if isinstance(network, ManyViewNetwork) else _Whole(network)


@dataclass(frozen=True)
class _EncodedFrame(PreparedFrame):
    view: EncodedView


class _Whole:
    """Any `WindowNetwork` as a `ManyViewNetwork`; its fused features are the pointmaps."""

    def __init__(self, network: WindowNetwork) -> None:
        self._network = network

    def prepare(self, frame: Frame) -> PreparedFrame:
        view = self._network.encode(frame)
        pixels = torch.from_numpy(view.image)
        return _EncodedFrame(pixels, view.network_from_image, view.intrinsics, view)

    def encode_prepared(self, frames: Sequence[PreparedFrame]) -> list[EncodedView]:
        return [frame.view for frame in frames if isinstance(frame, _EncodedFrame)]

    def fuse(self, views: Sequence[EncodedView]) -> Reconstruction:
        return self._network.reconstruct(views)

    def pointmaps(self, features: Reconstruction, views: Sequence[int]) -> Reconstruction:
        return some_views(features, views)

    def local_pointmaps(self, features: Reconstruction, views: Sequence[int]) -> Reconstruction:
        return replace(some_views(features, views), points_global=(), confidence_global=())


def some_views(maps: Reconstruction, chosen: Sequence[int]) -> Reconstruction:
    """The maps of some views."""
    lists = ([each[i] for i in chosen] if len(each) else () for each in map_lists(maps))
    poses, cameras = (
        None if each is None else each[list(chosen)] for each in (maps.window_from_camera, maps.intrinsics)
    )
    return Reconstruction(*lists, window_from_camera=poses, intrinsics=cameras, metric=maps.metric)


def map_lists(maps: Reconstruction) -> list[Sequence[torch.Tensor]]:
    """The four lists of maps."""
    return [maps.points_global, maps.confidence_global, maps.points_local, maps.confidence_local]

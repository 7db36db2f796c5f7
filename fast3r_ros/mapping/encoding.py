"""Frames to encoded views, many at a time where the network can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.data import EncodedView, Frame, WindowNetwork


@runtime_checkable
class EncodesTogether(Protocol):
    """What a `WindowNetwork` may offer beside `encode`, as `Fast3RNetwork` does."""

    def encode_all(self, frames: Sequence[Frame]) -> list[EncodedView | UserError]:
        """As `encode` for each frame; for one that cannot be used the error stands in its place."""
        ...


def encode_all(network: WindowNetwork, frames: Sequence[Frame]) -> list[EncodedView | UserError]:
    """Each frame's encoded view, or why that frame cannot be used.

    On a GPU pictures that are encoded together cost little more than one, which leaves most of it idle.
    """
    if isinstance(network, EncodesTogether):
        return network.encode_all(frames)
    return [_encode(network, frame) for frame in frames]


def _encode(network: WindowNetwork, frame: Frame) -> EncodedView | UserError:
    try:
        return network.encode(frame)
    except UserError as error:
        return error

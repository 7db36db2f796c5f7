"""Frames to encoded views, many at a time if the network supports it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.data import EncodedView, Float64, Frame, Reconstruction, WindowNetwork


@runtime_checkable
class EncodesTogether(Protocol):
    """An optional extension of `WindowNetwork`; `Fast3RNetwork` has it."""

    def encode_all(self, frames: Sequence[Frame]) -> list[EncodedView | UserError]:
        """Like `encode` for each frame; an unusable frame gives its error instead."""
        ...


def encode_all(network: WindowNetwork, frames: Sequence[Frame]) -> list[EncodedView | UserError]:
    """Each frame's encoded view, or the error of an unusable frame.

    On a GPU, encoding several images together takes little more time than one, which leaves most of it idle.
    """
    if isinstance(network, EncodesTogether):
        encoded = network.encode_all(frames)
    else:
        encoded = [_encode(network, frame) for frame in frames]
    return [_with_ignored(frame, view) for frame, view in zip(frames, encoded, strict=True)]


def without_ignored(views: Sequence[EncodedView], maps: Reconstruction) -> Reconstruction:
    """The maps with confidence 0 at ignored pixels.

    That is below any network's confidence, and excludes them from every fit and from the map.
    """
    if all(view.ignored is None for view in views):
        return maps

    def cleared(confidence: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [
            values
            if view.ignored is None
            else values.masked_fill(torch.from_numpy(view.ignored).to(values.device), 0.0)
            for view, values in zip(views, confidence, strict=True)
        ]

    return replace(
        maps,
        confidence_global=cleared(maps.confidence_global),
        confidence_local=cleared(maps.confidence_local),
    )


def _with_ignored(frame: Frame, view: EncodedView | UserError) -> EncodedView | UserError:
    if frame.ignored is None or isinstance(view, UserError):
        return view
    return replace(view, ignored=_resampled(frame.ignored, view.network_from_image, view.image.shape[:2]))


def _resampled(
    ignored: NDArray[np.bool_], network_from_image: Float64, size: tuple[int, ...]
) -> NDArray[np.bool_]:
    """A mask (H, W) at network size: a pixel is ignored if any image pixel that it covers is."""
    height, width = size
    corners = np.stack(np.meshgrid(np.arange(width + 1.0), np.arange(height + 1.0)), axis=-1)
    image_from_network = np.linalg.inv(network_from_image)
    places = corners @ image_from_network[:2, :2].T + image_from_network[:2, 2]
    ends = np.stack([places[:-1, :-1], places[1:, 1:]])
    low, high = np.floor(ends.min(axis=0)).astype(int), np.ceil(ends.max(axis=0)).astype(int)
    sums = np.pad(ignored.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))  # summed-area table
    limit = np.array([ignored.shape[1], ignored.shape[0]])
    (left, top), (right, bottom) = (np.moveaxis(each.clip(0, limit), -1, 0) for each in (low, high))
    return np.asarray(sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left] > 0)


def _encode(network: WindowNetwork, frame: Frame) -> EncodedView | UserError:
    try:
        return network.encode(frame)
    except UserError as error:
        return error

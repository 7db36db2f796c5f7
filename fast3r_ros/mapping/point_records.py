"""Points as PointCloud2 records, assembled on the points' device.

A record is 20 bytes: x, y, z, rgb (0x00RRGGBB in the bits of a float32, as in PCL and RViz) and
confidence, each 4 bytes in the machine's byte order.
"""

from __future__ import annotations

import array

import numpy as np
import torch
from torch import Tensor

from fast3r_ros.mapping.data import Cloud, ViewEstimate
from fast3r_ros.mapping.view_maps import fetch, on_side_stream

WORDS = 5  # 4-byte words per record
_RGB, _CONFIDENCE = 3, 4


def cloud_bytes(cloud: Cloud) -> array.array:
    """The records of a cloud on the host, filled in place in one pass.

    array.array is the only type that a uint8[] field accepts without checking each byte.
    """
    data = array.array("B", b"\0") * (4 * WORDS * len(cloud.points))
    if data:
        words = torch.frombuffer(data, dtype=torch.int32).view(-1, WORDS)
        points, colors, confidence = (
            torch.from_numpy(np.ascontiguousarray(values))
            for values in (cloud.points, cloud.colors, cloud.confidence)
        )
        fill_records(words, points, colors, confidence)
    return data


def view_bytes(view: ViewEstimate) -> array.array:
    """The records of a view's valid points in its camera frame, in map scale; one copy from the device."""
    with on_side_stream(view.maps.points.device):
        words = fetch(view_records(view)).numpy()
    data = array.array("B")
    data.frombytes(words[: words[-1, 0]].reshape(-1).view(np.uint8).data)
    return data


def view_records(view: ViewEstimate) -> Tensor:
    """The records in the form of `compact`, on the device of the view's maps."""
    maps = view.maps
    points = maps.points.flatten(0, 1) * maps.scale
    colors = torch.from_numpy(view.image).to(points.device).flatten(0, 1)
    words = torch.empty((len(points), WORDS), dtype=torch.int32, device=points.device)
    fill_records(words, points, colors, maps.confidence.flatten())
    return compact(words, maps.valid.flatten())


def fill_records(words: Tensor, points: Tensor, colors: Tensor, confidence: Tensor) -> None:
    """Write N records into (N, 5) int32.

    points: (N, 3) float32.  colors: (N, 3) uint8 RGB.  confidence: (N,) float32.  All on one device.
    """
    floats = words.view(torch.float32)
    floats[:, :_RGB] = points
    floats[:, _CONFIDENCE] = confidence
    red, green, blue = colors.unbind(1)
    words[:, _RGB] = red.to(torch.int32).mul_(256).add_(green).mul_(256).add_(blue)


def compact(records: Tensor, valid: Tensor) -> Tensor:
    """The valid (N,) of records (N, 5), in order, with their number as the first word of row N.

    The result always has N + 1 rows, so that the device need not be synchronised for the count.
    """
    place = torch.where(valid, valid.cumsum(0) - 1, len(records))
    result = records.new_zeros(len(records) + 1, records.shape[1])
    result.index_copy_(0, place, records)  # the others fall into the last row
    result[-1] = valid.sum()
    return result

"""The filters of a view's points, computed on the points' device."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from fast3r_ros.geometry.robust_similarity import ascending
from fast3r_ros.mapping.config import PointsConfig

_SAMPLE = 2048  # number of pixels used for quantiles


def valid_points(points_camera: Tensor, confidence: Tensor, config: PointsConfig) -> Tensor:
    """The points that are finite, in front of the camera, confident, not at a depth edge and not far away.

    Confidence 0, which no network outputs, marks ignored pixels.

    points_camera: (h, w, 3) in the view's own camera frame, any scale.  confidence: (h, w).  Returns (h, w).
    The far limit also removes the sky, which networks place far away or give a low confidence.
    Does not synchronise with the device.
    """
    x, y, depth = points_camera.unbind(-1)
    depth = depth.contiguous()
    usable = torch.isfinite(x + y + depth + confidence) & (depth > 0) & (confidence > 0)
    sample, there = _spread_sample(usable.flatten())
    trust = confidence.flatten()[sample]
    threshold = _ranked(trust, there, config.drop_share).clamp_min(config.min_confidence)
    # the sky may fill most of a view, but not of its more confident half
    confident = there & (trust >= _ranked(trust, there, 0.5))
    far = config.max_depth_ratio * _ranked(depth.flatten()[sample], confident, 0.5)
    return usable & (confidence >= threshold) & (depth < far) & ~depth_edges(depth, usable, config.edge_ratio)


def _spread_sample(usable: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of every n-th usable one of (N,) pixels, and which of them are valid.

    The tensors have the length needed when all pixels are usable.
    """
    step = max(1, len(usable) // _SAMPLE)
    ranks = torch.arange(1, len(usable) + 1, step, dtype=torch.int32, device=usable.device)
    seen = usable.cumsum(0, dtype=torch.int32)
    return torch.searchsorted(seen, ranks).clamp_max(len(usable) - 1), ranks <= seen[-1]


def _ranked(values: Tensor, there: Tensor, share: float) -> Tensor:
    """The quantile `share` (1,) of the valid ones of (N,) values; infinite without any."""
    rank = (share * there.sum().double()).round().long().clamp_min(1) - 1
    values = torch.where(there, values, torch.inf)
    return values.gather(0, ascending(values).gather(0, rank[None]))


def depth_edges(depth: Tensor, usable: Tensor, ratio: float) -> Tensor:
    """Pixels whose usable 3 x 3 neighbourhood spans more than `ratio` times their depth.

    depth, usable: (h, w).
    """
    farthest = _highest_neighbour(torch.where(usable, depth, -torch.inf))
    nearest = -_highest_neighbour(torch.where(usable, -depth, -torch.inf))
    return usable & (farthest - nearest > ratio * depth)


def _highest_neighbour(values: Tensor) -> Tensor:
    """The largest of every 3 x 3 neighbourhood of (h, w); on the CPU much faster than pooling."""
    framed = pad(values, (1, 1, 1, 1), value=-torch.inf)
    along = torch.maximum(torch.maximum(framed[:, :-2], framed[:, 1:-1]), framed[:, 2:])
    return torch.maximum(torch.maximum(along[:-2], along[1:-1]), along[2:])


def typical_confidence(confidence: Tensor) -> Tensor:
    """The median of (h, w), of a few thousand evenly spread pixels that are not ignored; 0 without any."""
    stride = max(2, round((confidence.numel() / _SAMPLE) ** 0.5))
    sample = confidence[::stride, ::stride]
    return torch.where(sample > 0, sample, torch.nan).nanmedian().nan_to_num(0.0)


@lru_cache(maxsize=16)
def grid_pixels(height: int, width: int, most: int) -> NDArray[np.int32]:
    """Flat pixel numbers of the densest regular grid of at most `most` pixels; shared by all keyframes."""
    stride = 1
    while -(-height // stride) * -(-width // stride) > most:
        stride += 1
    rows, columns = (np.arange(min(stride // 2, (n - 1) % stride), n, stride) for n in (height, width))
    pixels = (rows[:, None] * width + columns).ravel().astype(np.int32)
    pixels.setflags(write=False)
    return pixels

"""What a source of frames is, and which of its frames are taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from fast3r_ros.mapping.data import Float64, Frame


@dataclass(frozen=True)
class SkippedFrame:
    """A frame that could not be read: its file name or number, and why."""

    name: str
    reason: str


class Source(Protocol):
    """A finite sequence of frames.

    name: what was opened, for people.  paths: the files and folders that are read.  rate_hz: mean frames per
    second.  skipped: the frames that the iterations so far could not read.  truth: stamp in ns -> (4, 4)
    `world_from_camera`, None where there is no ground truth.
    """

    name: str
    paths: tuple[Path, ...]
    rate_hz: float
    skipped: list[SkippedFrame]
    truth: Mapping[int, Float64] | None

    def __len__(self) -> int:
        """Number of frames; for a video it is what the container claims."""
        ...

    def __iter__(self) -> Iterator[Frame]:
        """Every frame that can be read, in order; the others are noted in `skipped`."""
        ...

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Only the frames with these increasing indices, the others are not decoded."""
        ...


def choose_indices(
    count: int, source_rate_hz: float, *, rate_hz: float | None = None, max_views: int | None = None
) -> list[int]:
    """Which of `count` frames to take for at most `rate_hz` frames per second and `max_views` frames.

    Both thin the source evenly, so that its whole length is covered.  Indices increase strictly.
    """
    indices = np.arange(count)
    if rate_hz is not None and 0 < rate_hz < source_rate_hz:
        step = source_rate_hz / rate_hz
        indices = np.unique(np.floor(np.arange(0.0, count, step)).astype(int))
    if max_views is not None and len(indices) > max_views:
        chosen = np.linspace(0, len(indices) - 1, max_views).round().astype(int)
        indices = indices[np.unique(chosen)]
    return [int(index) for index in indices]

"""The interface of a source of frames, and the choice of its frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from fast3r_ros.mapping.data import Float64, Frame


@dataclass(frozen=True)
class SkippedFrame:
    """A frame that could not be read: its file name or number, and the reason."""

    name: str
    reason: str


class Source(Protocol):
    """A finite sequence of frames.

    name: the user's name of the source.  paths: the files and folders that are read.  stamps_ns: of all
    frames, if known before reading.  rate_hz: mean frames per second.  skipped: the frames that the
    iterations so far could not read.  truth: stamp in ns -> (4, 4) `world_from_camera`, None without ground
    truth.  synthetic: whether the images are rendered like those the demo model was trained on.
    """

    name: str
    paths: tuple[Path, ...]
    stamps_ns: Sequence[int] | None
    rate_hz: float
    skipped: list[SkippedFrame]
    truth: Mapping[int, Float64] | None
    synthetic: bool

    def __len__(self) -> int:
        """Number of frames."""
        ...

    def __iter__(self) -> Iterator[Frame]:
        """Every readable frame, in order; the others are noted in `skipped`."""
        ...

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Only the frames with these increasing indices; the others are not decoded."""
        ...

    def frame_name(self, stamp_ns: int) -> str:
        """The name of the frame with this stamp in the source: the file's name, or its number."""
        ...


def choose_indices(
    count: int,
    source_rate_hz: float,
    *,
    rate_hz: float | None = None,
    max_views: int | None = None,
    stamps_ns: Sequence[int] | None = None,
) -> list[int]:
    """Indices of at most `max_views` of `count` frames, at most `rate_hz` per second.

    Both limits thin the source evenly over its whole length.  The rate uses `stamps_ns`, ascending, if known,
    so that a video of variable rate is thinned by time.  Indices increase.
    """
    indices = np.arange(count)
    if rate_hz is not None and rate_hz > 0 and stamps_ns is not None and count > 1:
        slots = np.floor((np.asarray(stamps_ns) - stamps_ns[0]) * 1e-9 * rate_hz + 1e-6)
        indices = np.unique(slots, return_index=True)[1]
    elif rate_hz is not None and 0 < rate_hz < source_rate_hz:
        step = source_rate_hz / rate_hz
        indices = np.unique(np.floor(np.arange(0.0, count, step)).astype(int))
    if max_views is not None and len(indices) > max_views:
        chosen = np.linspace(0, len(indices) - 1, max_views).round().astype(int)
        indices = indices[np.unique(chosen)]
    return [int(index) for index in indices]

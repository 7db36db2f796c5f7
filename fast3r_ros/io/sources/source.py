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

    name: what was opened, for people.  paths: the files and folders that are read.  stamps_ns: of all frames,
    where they are known before these are read.  rate_hz: mean frames per second.  skipped: the frames that
    the iterations so far could not read.  truth: stamp in ns -> (4, 4) `world_from_camera`, None where there
    is no ground truth.  synthetic: whether the images are rendered, as those that the demo model knows.
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
        """Every frame that can be read, in order; the others are noted in `skipped`."""
        ...

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Only the frames with these increasing indices, the others are not decoded."""
        ...

    def frame_name(self, stamp_ns: int) -> str:
        """What the frame of a stamp is called in the source: the file's name, or its number."""
        ...


def choose_indices(
    count: int,
    source_rate_hz: float,
    *,
    rate_hz: float | None = None,
    max_views: int | None = None,
    stamps_ns: Sequence[int] | None = None,
) -> list[int]:
    """Which of `count` frames to take for at most `rate_hz` frames per second and `max_views` frames.

    Both thin the source evenly, so that its whole length is covered; the rate by `stamps_ns`, ascending,
    where they are known, so that a video of variable rate is thinned by its times.  Indices increase.
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

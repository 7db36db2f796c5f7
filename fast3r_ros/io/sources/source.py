"""What a source of frames is, how one is opened from a word, and which of its frames are taken."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.data import Float64, Frame

KINDS = "a video, a folder or glob of images, a .txt list of images, a rosbag2, or the word synthetic"


@dataclass(frozen=True)
class SkippedFrame:
    """A frame that could not be read: its file name or number, and why."""

    name: str
    reason: str


class Source(Protocol):
    """A finite sequence of frames.

    name: what was opened, for people.  rate_hz: mean frames per second.  skipped: the frames that the
    iterations so far could not read.  truth: stamp in ns -> (4, 4) `world_from_camera`, None where there is
    no ground truth.
    """

    name: str
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


def open_source(text: str | Path, *, topic: str | None = None, rate_hz: float | None = None) -> Source:
    """Open what `text` names: one of `KINDS`.

    topic: the image topic of a rosbag2, needed when it has several.  rate_hz: frames per second of image
    files, which carry no time of their own (default 10).
    Raises UserError when there is no such source, or when it holds no frame.
    """
    text = str(text)
    path = Path(text).expanduser()
    if text == "synthetic" or text.startswith("synthetic:"):
        from fast3r_ros.io.sources.synthetic import SyntheticSource

        return SyntheticSource.demo(text.partition(":")[2])
    if not path.exists():
        if any(character in text for character in "*?["):
            from fast3r_ros.io.sources.images import ImageFiles

            return ImageFiles.from_glob(text, rate_hz)
        raise UserError(f"no such source: {text}; give {KINDS}")
    try:
        return _open_existing(path, topic, rate_hz)
    except PermissionError as error:
        raise UserError(f"no permission to read {error.filename or path}") from error


def _open_existing(path: Path, topic: str | None, rate_hz: float | None) -> Source:
    from fast3r_ros.io.sources.images import IMAGE_SUFFIXES, ImageFiles

    if is_bag(path):
        from fast3r_ros.io.sources.rosbag import RosBag

        return RosBag(path, topic)
    if path.is_dir():
        return ImageFiles.from_folder(path, rate_hz)
    suffix = path.suffix.lower()
    if suffix in (".txt", ".lst"):
        return ImageFiles.from_list(path, rate_hz)
    if suffix in IMAGE_SUFFIXES:
        return ImageFiles([path], str(path), rate_hz)
    from fast3r_ros.io.sources.video import VideoFile

    return VideoFile(path)


def is_bag(path: Path) -> bool:
    """Whether a path looks like a ROS bag: a .mcap, .db3 or .bag file, or a folder that holds one."""
    if path.is_dir():
        folder = glob.escape(str(path))
        return (path / "metadata.yaml").is_file() or bool(
            glob.glob(f"{folder}/*.mcap") + glob.glob(f"{folder}/*.db3")
        )
    return path.suffix.lower() in (".mcap", ".db3", ".bag")


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

"""Pictures in memory, or a list of files, as a source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fast3r_ros.errors import UserError
from fast3r_ros.io.sources.images import DEFAULT_RATE_HZ
from fast3r_ros.io.sources.source import SkippedFrame
from fast3r_ros.mapping.data import Float64, Frame
from fast3r_ros.pictures import Picture, as_rgb


class Pictures:
    """Pictures in the given order, each read on demand.  See `Source`.

    Unlike in a folder, a picture that cannot be read is a UserError: the caller named it explicitly.
    """

    def __init__(self, pictures: Sequence[Picture]):
        if not len(pictures):
            raise UserError("no images were given; give paths, PIL images or arrays")
        self._pictures = list(pictures)
        self.name = f"{len(pictures)} images"
        self.paths: tuple[Path, ...] = tuple(Path(each) for each in pictures if isinstance(each, (str, Path)))
        self.rate_hz = DEFAULT_RATE_HZ
        self.stamps_ns: Sequence[int] | None = [self._stamp(index) for index in range(len(pictures))]
        self.skipped: list[SkippedFrame] = []
        self.truth: Mapping[int, Float64] | None = None
        self.synthetic = False

    def _stamp(self, index: int) -> int:
        return round(index * 1e9 / self.rate_hz)

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._pictures)

    def __iter__(self) -> Iterator[Frame]:
        """Every picture; see `Source`."""
        return self.frames(range(len(self)))

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """The chosen pictures; see `Source`."""
        for index in indices:
            try:
                image = as_rgb(self._pictures[index])
            except UserError as error:
                raise UserError(f"image {index}: {error}") from error
            yield Frame(self._stamp(index), "camera", image)

    def frame_name(self, stamp_ns: int) -> str:
        """The path of the picture, or `image N`, counted from 0."""
        index = round(stamp_ns * self.rate_hz / 1e9)
        picture = self._pictures[index]
        return str(picture) if isinstance(picture, (str, Path)) else f"image {index}"

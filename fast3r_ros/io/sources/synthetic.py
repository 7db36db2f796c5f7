"""The built-in walk through a rendered room as a source, with ground truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fast3r_ros.errors import UserError
from fast3r_ros.io.sources.source import SkippedFrame
from fast3r_ros.mapping.data import Float64, Frame
from fast3r_ros.synthetic.sequence import demo_sequence


class SyntheticSource:
    """The sequence that `make demo` maps; `seconds` shortens or lengthens it.  See `Source`."""

    def __init__(self, seconds: str = ""):
        try:
            self._sequence = demo_sequence(float(seconds)) if seconds else demo_sequence()
        except ValueError as error:
            raise UserError(f"synthetic:{seconds} is no length in seconds; give synthetic:12") from error
        if not len(self._sequence):
            raise UserError(f"synthetic:{seconds} has no frames; give more seconds")
        self.name = "synthetic"
        self.rate_hz = self._sequence.rate
        self.skipped: list[SkippedFrame] = []
        self.truth: Mapping[int, Float64] | None = {
            self._sequence.stamp_ns(index): world_from_camera
            for index, world_from_camera in enumerate(self._sequence.world_from_camera)
        }

    def __len__(self) -> int:
        """Number of frames."""
        return len(self._sequence)

    def __iter__(self) -> Iterator[Frame]:
        """Every frame; see `Source`."""
        return self.frames(range(len(self)))

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """The chosen frames, rendered one by one; see `Source`."""
        return (self._sequence[index] for index in indices)

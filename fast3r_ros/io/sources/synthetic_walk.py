"""The built-in walk through a rendered room as a source, with ground truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fast3r_ros.errors import UserError
from fast3r_ros.io.sources.source import SkippedFrame
from fast3r_ros.mapping.data import Float64, Frame
from fast3r_ros.synthetic.sequence import SyntheticSequence, demo_sequence


class SyntheticSource:
    """Frames of a synthetic sequence, rendered on demand.  See `Source`."""

    def __init__(self, sequence: SyntheticSequence):
        self._sequence = sequence
        self.name = "synthetic"
        self.synthetic = True
        self.paths: tuple[Path, ...] = ()
        self.rate_hz = sequence.rate
        self.stamps_ns: Sequence[int] | None = [sequence.stamp_ns(index) for index in range(len(sequence))]
        self.skipped: list[SkippedFrame] = []
        self.truth: Mapping[int, Float64] | None = {
            sequence.stamp_ns(index): world_from_camera
            for index, world_from_camera in enumerate(sequence.world_from_camera)
        }

    @classmethod
    def demo(cls, seconds: str = "") -> SyntheticSource:
        """The walk that `make demo` maps; `seconds` shortens it.  Raises UserError for an invalid length."""
        try:
            sequence = demo_sequence(float(seconds)) if seconds else demo_sequence()
        except ValueError as error:
            raise UserError(f"synthetic:{seconds} is no length in seconds; give synthetic:12") from error
        if len(sequence) < 2:
            raise UserError(f"synthetic:{seconds} is too short; give a second or more")
        return cls(sequence)

    def __len__(self) -> int:
        """Number of frames."""
        return len(self._sequence)

    def __iter__(self) -> Iterator[Frame]:
        """Every frame; see `Source`."""
        return self.frames(range(len(self)))

    def frame_name(self, stamp_ns: int) -> str:
        """`frame N`, counted from 0."""
        return f"frame {round((stamp_ns - self._sequence.start_ns) * self.rate_hz / 1e9)}"

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """The chosen frames, rendered one by one; see `Source`."""
        return (self._sequence[index] for index in indices)

"""A video file as a source, through OpenCV."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2

from fast3r_ros.errors import UserError
from fast3r_ros.io.sources.source import SkippedFrame
from fast3r_ros.mapping.data import Float64, Frame

# FFmpeg writes its complaints about a bad file to the terminal; ours says it in one line.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


class VideoFile:
    """The frames of a video, upright as its rotation tag says, stamped with their presentation times.

    Decoded one by one, so memory does not grow with the length.  See `Source`.
    """

    def __init__(self, path: Path):
        self.name = str(path)
        self.paths = (path,)
        self.skipped: list[SkippedFrame] = []
        self.truth: Mapping[int, Float64] | None = None
        with path.open("rb"):  # tells a missing permission from a file that is no video
            pass
        capture = self._open()
        self.rate_hz = capture.get(cv2.CAP_PROP_FPS)
        if not 0 < self.rate_hz < 1e4:
            self.rate_hz = 30.0
        if not capture.grab():
            raise UserError(f"the video {path} has no frames")
        self._count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if self._count <= 0:  # some containers do not say
            self._count = 1
            while capture.grab():
                self._count += 1
        capture.release()

    def _open(self) -> cv2.VideoCapture:
        previous = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            capture = cv2.VideoCapture(self.name, cv2.CAP_FFMPEG)
        finally:
            cv2.utils.logging.setLogLevel(previous)
        if not capture.isOpened():
            raise UserError(f"{self.name} is not a video that can be read")
        return capture

    def __len__(self) -> int:
        """Number of frames that the container claims."""
        return self._count

    def __iter__(self) -> Iterator[Frame]:
        """Every frame; see `Source`."""
        return self.frames(range(len(self)))

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """The chosen frames; see `Source`.  The others are stepped over without being converted."""
        capture = self._open()
        position = -1
        last_stamp_ns = -1
        try:
            for index in indices:
                grabbed = True
                while position < index and grabbed:
                    grabbed = capture.grab()
                    position += 1
                if not grabbed:
                    break
                stamp_ns = round(capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
                decoded, image = capture.retrieve()
                if not decoded:
                    self.skipped.append(SkippedFrame(f"frame {index}", "cannot be decoded"))
                    continue
                if stamp_ns <= last_stamp_ns:  # no usable times in the container
                    stamp_ns = round(index * 1e9 / self.rate_hz)
                last_stamp_ns = stamp_ns
                yield Frame(stamp_ns, "camera", cv2.cvtColor(image, cv2.COLOR_BGR2RGB))  # type: ignore[arg-type]
        finally:
            capture.release()

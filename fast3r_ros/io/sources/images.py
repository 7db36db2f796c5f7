"""Image files as a source: a folder, a glob, or a list file."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fast3r_ros.errors import UserError
from fast3r_ros.io.sources.source import SkippedFrame
from fast3r_ros.mapping.data import Float64, Frame, UInt8

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
DEFAULT_RATE_HZ = 10.0


class ImageFiles:
    """Image files in the given order.

    stamps_ns: the images' times; without them frame i gets i / rate_hz seconds.  paths: what holds them,
    the files themselves by default.  See `Source`.
    """

    def __init__(
        self,
        files: Sequence[Path],
        name: str,
        rate_hz: float | None = None,
        stamps_ns: Sequence[int] | None = None,
        paths: Sequence[Path] | None = None,
    ):
        if not files:
            raise UserError(f"no images in {name}; looked for {' '.join(IMAGE_SUFFIXES)}")
        self.name = name
        self.paths = tuple(files if paths is None else paths)
        self.skipped: list[SkippedFrame] = []
        self.truth: Mapping[int, Float64] | None = None
        self._files = list(files)
        self.rate_hz = rate_hz or DEFAULT_RATE_HZ
        if stamps_ns is None:
            self._stamps_ns = [round(index * 1e9 / self.rate_hz) for index in range(len(files))]
        else:
            self._stamps_ns = list(stamps_ns)
            duration_s = (max(stamps_ns) - min(stamps_ns)) / 1e9
            if duration_s > 0:
                self.rate_hz = (len(files) - 1) / duration_s

    @classmethod
    def from_folder(cls, folder: Path, rate_hz: float | None = None) -> ImageFiles:
        """The images directly in a folder, in natural order (2 before 10)."""
        files = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
        return cls(sorted(files, key=natural_order), str(folder), rate_hz, paths=[folder])

    @classmethod
    def from_glob(cls, pattern: str, rate_hz: float | None = None) -> ImageFiles:
        """The images that a shell pattern matches (`**` crosses folders), in natural order."""
        files = [Path(name) for name in glob.glob(pattern, recursive=True)]
        files = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
        return cls(sorted(files, key=natural_order), pattern, rate_hz)

    @classmethod
    def from_list(cls, list_file: Path, rate_hz: float | None = None) -> ImageFiles:
        """The images that a text file names, one per line, relative to the file; `#` starts a comment.

        A line may begin with the image's time in seconds, as in the TUM RGB-D sets' `rgb.txt`.
        """
        try:
            lines = list_file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{list_file} is not a text file; give a list with one image per line") from error
        entries = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
        timed = [re.fullmatch(r"(\d+)\.(\d{1,9})\s+(\S.*)", entry) for entry in entries]
        if entries and all(timed):
            matches = [match for match in timed if match]
            stamps_ns = [int(match[1]) * 10**9 + int(match[2].ljust(9, "0")) for match in matches]
            files = [list_file.parent / match[3] for match in matches]
            return cls(files, str(list_file), rate_hz, stamps_ns)
        return cls([list_file.parent / entry for entry in entries], str(list_file), rate_hz)

    def __len__(self) -> int:
        """Number of files."""
        return len(self._files)

    def __iter__(self) -> Iterator[Frame]:
        """Every readable image as a frame; see `Source`."""
        return self.frames(range(len(self)))

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """The chosen images; see `Source`.  Raises UserError when none of them can be read."""
        read = 0
        failed: list[SkippedFrame] = []
        for index in indices:
            try:
                image = read_image(self._files[index])
            except UserError as error:
                failed.append(SkippedFrame(str(self._files[index]), str(error)))
                self.skipped.append(failed[-1])
                continue
            read += 1
            yield Frame(self._stamps_ns[index], "camera", image)
        if failed and not read:
            raise UserError(f"none of the {len(failed)} images can be read: {failed[0].reason}")


def read_image(path: Path) -> UInt8:
    """One image file as (H, W, 3) uint8 RGB, turned upright as its EXIF orientation says.

    Raises UserError when the file is missing, no image, or cut short.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits, which PIL's own conversion clips at 255
                gray = np.clip(np.asarray(upright, np.float64) / 257.0, 0, 255).round().astype(np.uint8)
                return np.repeat(gray[:, :, None], 3, axis=2)
            return np.array(upright.convert("RGB"))
    except FileNotFoundError as error:
        raise UserError(f"no such image: {path}") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is not an image that can be read") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def natural_order(path: Path) -> list[tuple[int, int | str]]:
    """Sort key that reads the digits in a path as numbers."""
    parts = re.split(r"(\d+)", str(path))
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts if part]

"""Image files as a source: a folder, a glob, a list file, or a list of paths; and pictures in memory."""

from __future__ import annotations

import codecs
import glob
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from fast3r_ros.errors import UserError
from fast3r_ros.io.sources.source import SkippedFrame
from fast3r_ros.mapping.data import Float64, Frame
from fast3r_ros.pictures import Picture, as_rgb, read_pages

# The still image formats of Pillow; its other formats are documents and video.
_PICTURES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pnm"),
    *(".gif", ".tga", ".jp2", ".j2k", ".avif", ".heic", ".heif", ".hif"),
)
IMAGE_SUFFIXES = tuple(suffix for suffix in _PICTURES if suffix in Image.registered_extensions())
# Photo formats that are not read, with a hint for the user.
_CONVERT = "convert it to JPEG or PNG"
UNREAD_SUFFIXES = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "pip install pillow-heif"),
    **dict.fromkeys((".avif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf"), _CONVERT),
}
DEFAULT_RATE_HZ = 10.0


class ImageFiles:
    """Image files in the given order.

    stamps_ns: the images' times; without them frame i gets i / rate_hz seconds.  paths: the folder or list
    that names the files; default: the files.  See `Source`.
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
        self.paths: tuple[Path, ...] = tuple(files if paths is None else paths)
        self.skipped: list[SkippedFrame] = []
        self.truth: Mapping[int, Float64] | None = None
        self.synthetic = False
        self._files = list(files)
        self.stamps_ns: Sequence[int] | None = None
        self._places: dict[int, int] | None = None  # stamp -> index, built on first use
        self.rate_hz = rate_hz or DEFAULT_RATE_HZ
        if stamps_ns is None:
            self._stamps_ns = [round(index * 1e9 / self.rate_hz) for index in range(len(files))]
        else:
            self._stamps_ns = list(stamps_ns)
            if all(a < b for a, b in pairwise(self._stamps_ns)):
                self.stamps_ns = self._stamps_ns
            duration_s = (max(stamps_ns) - min(stamps_ns)) / 1e9
            if duration_s > 0:
                self.rate_hz = (len(files) - 1) / duration_s

    @classmethod
    def from_folder(cls, folder: Path, rate_hz: float | None = None) -> ImageFiles:
        """The images directly in a folder, in natural order (2 before 10), or by time if names are times.

        Pictures of an unreadable kind are noted in `skipped`.  Raises UserError when there is no image, with
        a hint if subfolders have some.
        """
        found = [path for path in folder.iterdir() if not path.name.startswith(".")]
        files = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()]
        unread = [path for path in found if path.suffix.lower() in UNREAD_SUFFIXES.keys() - {*IMAGE_SUFFIXES}]
        skipped = [
            SkippedFrame(str(path), f"{path.suffix} is not read here; {UNREAD_SUFFIXES[path.suffix.lower()]}")
            for path in sorted(unread, key=natural_order)
        ]
        if not files and skipped:
            raise UserError(
                f"none of the {len(skipped)} pictures in {folder} can be read: {skipped[0].reason}"
            )
        if not files:
            _hint_at_folders(folder)
        source = cls(sorted(files, key=_order(files)), str(folder), rate_hz, paths=[folder])
        source.skipped += skipped
        return source

    @classmethod
    def from_glob(cls, pattern: str, rate_hz: float | None = None) -> ImageFiles:
        """The images that a shell pattern matches (`**` crosses folders), in natural order."""
        folder, name = os.path.split(pattern)
        if os.path.isdir(folder):  # brackets in its name are literal
            pattern = os.path.join(glob.escape(folder), name)
        files = [Path(name) for name in glob.glob(pattern, recursive=True)]
        files = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
        return cls(sorted(files, key=_order(files)), pattern, rate_hz)

    @classmethod
    def from_list(cls, list_file: Path, rate_hz: float | None = None) -> ImageFiles:
        """The images that a text file names, one per line, relative to the file; `#` starts a comment.

        A line may begin with the image's time, in seconds (TUM RGB-D's `rgb.txt`, associations followed by a
        depth image) or in nanoseconds with a comma (EuRoC's data.csv, whose images are in `data`).  Names
        with spaces may be quoted.
        """
        try:
            content = list_file.read_bytes()
            wide = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # written by PowerShell
            lines = content.decode("utf-16" if wide else "utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{list_file} is not a text file; give a list with one image per line") from error
        entries = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
        if list_file.suffix.lower() == ".csv" and entries and not _NAMES_A_PICTURE.search(entries[0].lower()):
            del entries[0]  # column names
        timed = [_TIMED.fullmatch(entry) for entry in entries]
        if entries and all(timed):
            matches = [match for match in timed if match]
            files = [_listed(list_file, match[4]) for match in matches]
            return cls(files, str(list_file), rate_hz, [_stamp(match) for match in matches])
        return cls([_listed(list_file, entry) for entry in entries], str(list_file), rate_hz)

    def __len__(self) -> int:
        """Number of files."""
        return len(self._files)

    def __iter__(self) -> Iterator[Frame]:
        """Every readable image as a frame; see `Source`."""
        return self.frames(range(len(self)))

    def frame_name(self, stamp_ns: int) -> str:
        """The path of the image."""
        if self._places is None:
            self._places = {stamp: place for place, stamp in enumerate(self._stamps_ns)}
        return str(self._files[self._places[stamp_ns]])

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """The chosen images; see `Source`.  Raises UserError when none of them can be read."""
        read = 0
        failed: list[SkippedFrame] = []
        for index in indices:
            try:
                image, pages = read_pages(self._files[index])
            except UserError as error:
                failed.append(SkippedFrame(str(self._files[index]), str(error)))
                self.skipped.append(failed[-1])
                continue
            read += 1
            if pages > 1:
                text = f"only the first of its {pages} pages is used"
                self.skipped.append(SkippedFrame(str(self._files[index]), text))
            yield Frame(self._stamps_ns[index], "camera", image)
        if failed and not read:
            raise UserError(f"none of the {len(failed)} images can be read: {failed[0].reason}")


def _order(files: Sequence[Path]) -> Callable[[Path], Any]:
    """The sort key of files: by time where all names are decimal numbers, else natural."""
    if files and all(re.fullmatch(r"\d+\.\d+", path.stem) for path in files):
        return lambda path: (str(path.parent), float(path.stem))
    return natural_order


def _hint_at_folders(folder: Path) -> None:
    """Raises UserError when a folder has no images itself but has some up to three folders below."""
    for inner in sorted(
        path for level in ("*", "*/*", "*/*/*") for path in folder.glob(level) if path.is_dir()
    ):
        count = sum(path.suffix.lower() in IMAGE_SUFFIXES for path in inner.iterdir())
        if count:
            hint = f"give that folder, or a pattern such as '{folder}/**/*.jpg'"
            raise UserError(f"no images in {folder} itself, but {count} in {inner}: {hint}")


# seconds with a fraction, or digits alone (seconds up to 10 of them, else nanoseconds), then the name
_TIMED = re.compile(r"(\d+)(?:\.(\d{1,9}))?(\s*,\s*|\s+)(\S.*)")
_NAMES_A_PICTURE = re.compile("|".join(re.escape(suffix) for suffix in (*IMAGE_SUFFIXES, *UNREAD_SUFFIXES)))


def _stamp(match: re.Match[str]) -> int:
    """Nanoseconds of a line matched by `_TIMED`."""
    if match[2] is None and len(match[1]) > 10:
        return int(match[1])
    return int(match[1]) * 10**9 + int((match[2] or "0").ljust(9, "0"))


def _listed(list_file: Path, name: str) -> Path:
    """The file that a line names: quoted, the first of an association, or below EuRoC's `data`."""
    name = name.strip()
    if name[:1] in "\"'" and name[-1:] == name[:1]:
        name = name[1:-1]
    folders, names = (list_file.parent, list_file.parent / "data"), [name, name.split()[0]]
    names += [each.replace("\\", "/") for each in names if "\\" in each]
    candidates = [folder / each for each in names for folder in folders]
    return next((path for path in candidates if path.exists()), candidates[0])


def natural_order(path: Path) -> list[tuple[int, int | str]]:
    """Sort key that reads the digits in a path as numbers."""
    parts = re.split(r"(\d+)", str(path))
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts if part]


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

"""The original images of the keyframes as files, for training by other tools."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import cv2
from PIL import Image

from fast3r_ros.errors import UserError
from fast3r_ros.files import whole_file, writable
from fast3r_ros.io.cameras import CameraRecord
from fast3r_ros.io.sources import Source
from fast3r_ros.io.sources.images import ImageFiles
from fast3r_ros.mapping.data import UInt8
from fast3r_ros.pictures import read_picture

FOLDER = "images"
LISTED = re.compile(rf"{FOLDER}/[^/]+")  # photos of a run, as listed in its report
_AT_NETWORK_SIZE = re.compile(r"\d{6,}\.(jpg|png)")
_JPEG_QUALITY = 95  # for frames of videos and bags
_ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
_PLAIN_FORMATS = ("JPEG", "MPO", "PNG")  # readable by every tool


def plan_photos(records: Sequence[CameraRecord], source: Source, directory: Path) -> dict[str, str]:
    """View name -> file name in `images` of its original; only for views whose original is known.

    A file keeps its name if it is free and no image at network size has it.  White space and folders are
    removed: tools split the lines of COLMAP's images.txt and drop folders.
    """
    planned: dict[str, str] = {}  # original -> planned name
    for record in records:
        if record.source is None or record.source.name in planned:
            continue
        path = Path(record.source.name)
        if isinstance(source, ImageFiles):
            name = path.name if _is_plain(path) else f"{path.stem}.png"
        else:
            number = next(iter(re.findall(r"\d+", record.source.name)), record.name)
            name = f"frame_{number.zfill(6)}.jpg"
        for choice in _choices(re.sub(r"\s+", "_", name), re.sub(r"\s+", "_", path.parent.name)):
            free = choice not in planned.values() and not os.path.lexists(directory / FOLDER / choice)
            if free and not _AT_NETWORK_SIZE.fullmatch(choice):
                planned[record.source.name] = choice
                break
    return {each.name: planned[each.source.name] for each in records if each.source is not None}


def _choices(name: str, folder: str) -> Iterator[str]:
    yield name
    yield f"{folder or 'photo'}_{name}"
    yield from (f"photo{number}_{name}" for number in range(2, 1 << 30))


def write_photos(
    records: Sequence[CameraRecord], source: Source, directory: Path, names: dict[str, str]
) -> None:
    """Write the originals of the views, upright and without lens distortion, with the names of `plan_photos`.

    Image files are linked, or copied where linking is impossible.  Files that other tools show differently
    (rotated by EXIF, 16 bits, HEIC …) are written as PNG, frames of videos and bags as JPEG.
    Raises UserError when an image cannot be read again or written.
    """
    folder = directory / FOLDER
    if not isinstance(source, ImageFiles):
        wanted = {record.stamp_ns: names[record.name] for record in records if record.name in names}
        stamps = source.stamps_ns
        indices = range(len(source)) if stamps is None else [i for i, s in enumerate(stamps) if s in wanted]
        reported = len(source.skipped)
        for frame in source.frames(indices):
            if frame.stamp_ns in wanted:
                _write(folder / wanted[frame.stamp_ns], frame.image)
        del source.skipped[reported:]  # damaged frames were reported when they were mapped
        return
    originals = {names[record.name]: record.source.name for record in records if record.source is not None}
    for name, original in originals.items():
        if Path(name).suffix == Path(original).suffix and _is_plain(Path(original)):
            _link(Path(original), folder / name)
        else:
            _write(folder / name, read_picture(Path(original)))


def _is_plain(path: Path) -> bool:
    """Whether every tool shows the file as the mapper saw it: upright 8-bit colours in a common format."""
    try:
        with Image.open(path) as image:
            upright = image.getexif().get(_ORIENTATION, 1) in (0, 1)
            named = path.suffix.lower() in (".jpg", ".jpeg", ".png")
            return upright and named and image.format in _PLAIN_FORMATS and image.mode in ("RGB", "RGBA")
    except Exception:  # Pillow raises many types; the reader of the pixels reports the problem
        return False


def _link(original: Path, path: Path) -> None:
    """A hard link to a file, or a copy on another disk.  Neither replaces an existing file."""
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):
            os.link(original.resolve(), path)
            return
        with whole_file(path) as temporary:
            shutil.copyfile(original, temporary)


def _write(path: Path, image: UInt8) -> None:
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if path.suffix == ".jpg" else []
    done, encoded = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)
    if not done:
        raise UserError(f"cannot write {path}: an image of {image.shape[1]}x{image.shape[0]} pixels")
    with whole_file(path) as temporary:
        temporary.write_bytes(encoded.tobytes())

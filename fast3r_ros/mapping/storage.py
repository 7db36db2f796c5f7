"""A map on disk: a directory with `map.json` and the array file named in it.

Saving writes a new array file, then replaces `map.json` atomically, then deletes the old array file: after a
kill at any moment, the directory holds either the old or the new map, complete.  Reading is bounded by the
files' own sizes, and no part of a map is used before all of it has passed `map_schema.check`.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import struct
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fast3r_ros.errors import UserError
from fast3r_ros.files import machine_memory, one_line, open_regular, read_json, writable
from fast3r_ros.mapping.map_schema import (
    SavedMap,
    arrays_of,
    check,
    check_layout,
    index_of,
    restore,
)

__all__ = ["SavedMap", "enclosing_map", "read_map", "write_map"]

FORMAT = "fast3r_ros map"
VERSION = 1
INDEX = "map.json"
# shares of this machine's memory: larger maps could not be used, and reading them would end the process
_ARRAYS_SHARE, _INDEX_SHARE = 2, 64
_DIRECTORY_BYTES = 1 << 16  # size limit of a zip directory with our few entries
_ZIP_END, _ZIP64_END = b"PK\x05\x06", b"PK\x06\x07"


def write_map(directory: Path, saved: SavedMap) -> None:
    """Save into a directory, which is created if needed.

    Raises UserError when it cannot be written, holds something else or lies inside another map; the previous
    content then stays unchanged.
    """
    if directory.exists() and not _may_replace(directory):
        raise UserError(f"{directory} exists and is not a map; give another name (nothing was overwritten)")
    outer = enclosing_map(directory)
    if outer is not None:
        raise UserError(f"{directory} lies inside the map {outer}; give a name outside of it")
    content, columns = index_of(saved), arrays_of(saved)
    try:
        check(content, columns)
    except ValueError as error:
        raise UserError(
            f"the map is damaged and was not saved to {directory}: {one_line(error)}; reset the map"
        ) from error
    arrays = directory / f"arrays-{secrets.token_hex(4)}.npz"
    temporary = directory / f"map-{secrets.token_hex(4)}.tmp"
    made = _missing(directory)
    try:
        with writable(directory):
            directory.mkdir(parents=True, exist_ok=True)
            with arrays.open("wb") as file:
                np.savez(file, allow_pickle=False, **columns)
                _sync(file)
            head = {
                "format": FORMAT,
                "version": VERSION,
                "arrays": arrays.name,
                "bytes": arrays.stat().st_size,
            }
            with temporary.open("w", encoding="utf-8") as text:
                json.dump({**head, **content}, text, indent=1)
                _sync(text)
            os.replace(temporary, directory / INDEX)
    except BaseException:
        for path in (arrays, temporary):
            with suppress(OSError):
                path.unlink()
        for path in made:
            with suppress(OSError):
                path.rmdir()
        raise
    with suppress(OSError):  # the map is saved; the old file is removed by the next save
        _sync_directory(directory)
        for old in [*directory.glob("arrays-*.npz"), *directory.glob("map-*.tmp")]:
            if old != arrays:
                old.unlink()


def read_map(directory: Path) -> SavedMap:
    """Load a saved map.  Raises UserError for a missing map and for truncated, damaged or malicious files."""
    index = directory / INDEX
    if not os.path.lexists(index):
        raise UserError(f"{directory} holds no map: there is no {INDEX}")
    content = read_json(index, machine_memory() // _INDEX_SHARE)
    try:
        _check_format(index, content)
        name, keyframes = content.get("arrays"), content.get("keyframes")
        if not isinstance(name, str) or not _ARRAYS.fullmatch(name) or not isinstance(keyframes, list):
            raise ValueError(f"{INDEX} lists no arrays")
        path = directory / name
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != content.get("bytes"):
                raise UserError(f"{path} has {size} bytes, fewer than were saved: it is truncated")
            if size > machine_memory() // _ARRAYS_SHARE:
                raise UserError(f"{path} has {size >> 20} MiB, too many for this machine's memory")
            arrays = _read_arrays(file, size, len(keyframes))
        check(content, arrays)
        return restore(content, arrays)
    except MemoryError as error:
        raise UserError(f"the map in {directory} does not fit into memory") from error
    except UserError:
        raise
    except Exception as error:  # untrusted files: zip and numpy raise many types
        raise UserError(f"the map in {directory} is damaged: {one_line(error)}") from error


def _check_format(index: Path, content: Any) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{index} is not a map of fast3r_ros")
    version = content.get("version")
    if version != VERSION:
        raise UserError(
            f"{index} has format version {version!r:.40}, this program reads {VERSION}; "
            "use the version of fast3r_ros that wrote it"
        )


def enclosing_map(path: Path) -> Path | None:
    """The saved map that contains a path, None if there is none."""
    return next((parent for parent in path.absolute().parents if (parent / INDEX).is_file()), None)


def _read_arrays(file: BinaryIO, size: int, keyframes: int) -> dict[str, NDArray[Any]]:
    """The arrays of an npz file of `size` bytes; headers are checked before reading."""
    file.seek(max(0, size - 42))
    end = file.read()
    if end[20:24] != _ZIP_END or struct.unpack("<I", end[32:36])[0] > _DIRECTORY_BYTES:
        raise ValueError("its array file is not in the saved format")
    if end[:4] == _ZIP64_END and size < 1 << 32:
        raise ValueError("its array file is not in the saved format")
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        plain = all(
            e.compress_type == zipfile.ZIP_STORED and e.file_size == e.compress_size for e in entries.values()
        )
        if len(entries) != len(archive.infolist()) or not plain:
            raise ValueError("its arrays are compressed or duplicate")
        if sum(entry.file_size for entry in entries.values()) > size:
            raise ValueError("its arrays claim more bytes than the file has")
        headers = {name: _read_header(archive, entry) for name, entry in entries.items()}
        check_layout({name: (dtype, shape) for name, (dtype, shape, _) in headers.items()}, keyframes)
        for name, (dtype, shape, start) in headers.items():
            content = archive.read(entries[name])  # verifies the checksum
            arrays[name] = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return arrays


def _read_header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> tuple[str, tuple[int, ...], int]:
    """(dtype, shape, bytes of the header) of an array, after checking the length of its data."""
    with archive.open(entry) as stream:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError(f"{entry.filename} has an unknown version")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        start = stream.tell()
    values = 1
    for side in shape:
        values *= side  # Python integers: a header may claim any shape
    if fortran or dtype.hasobject or start + values * dtype.itemsize != entry.file_size:
        raise ValueError(f"{entry.filename} claims {shape} of {dtype}, which does not match its data")
    return dtype.str, shape, start


_ARRAYS = re.compile(r"arrays-[0-9a-f]+\.npz")
_OURS = re.compile(rf"map\.json|{_ARRAYS.pattern}|map-[0-9a-f]+\.tmp")


def _may_replace(directory: Path) -> bool:
    """Whether a directory holds only a map or the remains of a killed save."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else [""]
    return all(_OURS.fullmatch(name) for name in names)


def _missing(directory: Path) -> list[Path]:
    """The folders to create for this one, innermost first."""
    made = []
    while not directory.exists():
        made.append(directory)
        directory = directory.parent
    return made


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    """Make a rename in a directory durable, before the replaced file is deleted."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

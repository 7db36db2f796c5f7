"""Atomic writing, bounded reading of untrusted files, and a one-line error when either fails."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from fast3r_ros.errors import UserError


@contextmanager
def whole_file(path: str | Path, *, durable: bool = False) -> Iterator[Path]:
    """A temporary path next to `path` to write to; it replaces `path` when the block succeeds.

    A reader sees the old file or the new one, never a part.  durable: also after a power failure.  Raises
    UserError when the disk is full or the folder is not writable; the partial new file is removed.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        with writable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if durable:
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def writable(path: str | Path) -> Iterator[None]:
    """Turns OSError (disk full, no permission) into a one-line UserError about `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"cannot write {path}: the disk is full; free some space or choose another"
            ) from error
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def open_regular(path: str | Path) -> BinaryIO:
    """A regular file, opened for reading bytes.

    Raises OSError for any other kind: reading a pipe could block forever, and a device has no end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return os.fdopen(descriptor, "rb")


def read_text(path: str | Path, most: int) -> str:
    """The text of a regular UTF-8 file of at most `most` bytes.  Raises UserError for any other."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            text = file.read(size).decode("utf-8") if size <= most else ""
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:  # a zero byte in the name, or invalid UTF-8
        raise UserError(f"cannot read {path}: {one_line(error)}") from error
    if size > most:
        raise UserError(f"cannot read {path}: it is larger than {most:,} bytes, the limit for its kind")
    return text


def read_json(path: str | Path, most: int) -> Any:
    """The content of a JSON file of at most `most` bytes.

    Raises UserError when it cannot be read or repeats a key.
    """
    text = read_text(path, most)
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except RecursionError as error:
        raise UserError(f"{path} cannot be read: it is nested too deeply") from error
    except ValueError as error:
        raise UserError(f"{path} cannot be read: it is not JSON ({one_line(error)})") from error


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of a JSON text, for `json.loads`.

    Raises ValueError for a repeated key: JSON readers differ in which value they take.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:60]!r} occurs twice")
    return found


def one_line(error: object, most: int = 300) -> str:
    """An error's message on one line of at most `most` characters; the error's type if it has no message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[: most - 1] + "…"


def machine_memory() -> int:
    """This machine's memory in bytes; sizes that files claim are checked against it."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

"""Files that are either whole or not there, and one clear line when they cannot be written."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fast3r_ros.errors import UserError


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the place of `path` when the block ends well.

    A reader sees the old file or the new one, never a part.  Raises UserError when the disk is full or the
    folder may not be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        with writable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def writable(path: str | Path) -> Iterator[None]:
    """Turns what the system says of a full disk or a missing permission into one line about `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"cannot write {path}: the disk is full; free some space or choose another"
            ) from error
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error

"""DDS domains of tests that run at the same time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path
from typing import IO

_claimed: dict[int, tuple[int, IO[str]]] = {}


def domain(number: int) -> int:
    """A DDS domain for one test module, unique among concurrent runs of the suite by a locked file."""
    for offset in range(100 if number not in _claimed else 0):
        candidate = 1 + (os.getpid() * 7 + number + offset) % 100
        lock = Path(tempfile.gettempdir(), f"fast3r_test_domain_{candidate}").open("a")  # noqa: SIM115
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _claimed[number] = candidate, lock
            break
        lock.close()
    assert number in _claimed, "all DDS domains are taken by other runs of the tests"
    return _claimed[number][0]

"""DDS domains of tests that run at the same time."""

from __future__ import annotations

import contextlib
import os
import socket

_claimed: dict[int, tuple[int, socket.socket]] = {}


def domain(number: int) -> int:
    """A DDS domain for one test module, unique among concurrent runs of the suite.

    It is claimed by an abstract socket, which everybody sees who would hear its nodes: other containers and
    changed roots of the same network, too, whose files are not ours.
    """
    for offset in range(100 if number not in _claimed else 0):
        candidate = 1 + (os.getpid() * 7 + number + offset) % 100
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with contextlib.suppress(OSError):
            claim.bind(f"\0fast3r_test_domain_{candidate}")
            _claimed[number] = candidate, claim
            break
        claim.close()
    assert number in _claimed, "all DDS domains are taken by other runs of the tests"
    return _claimed[number][0]

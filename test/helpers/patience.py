"""Waiting for events, on a machine that may be busy."""

from __future__ import annotations

import time
from collections.abc import Callable

# Ends a test that hangs, and is no measure of anything: a crowded machine may take a minute to start a node.
HANG_SECONDS = 300.0


def wait_until(condition: Callable[[], object], what: str, pause: float = 0.02) -> None:
    """Wait until a condition holds.  pause: seconds between two looks."""
    limit = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < limit, f"waited {HANG_SECONDS:.0f} s in vain for {what}"
        time.sleep(pause)

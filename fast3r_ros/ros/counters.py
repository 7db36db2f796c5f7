"""Counts and times for ~/status and /diagnostics, safe to update from any thread."""

from __future__ import annotations

import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

CALLBACK_SAMPLES = 2000
LOST = "images lost in transport"  # sent, but never received; counted as a problem


class Counters:
    """Frames received and dropped by reason, other problems by reason, and durations of image callbacks.

    A frame counts as received once and as dropped at most once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callback_seconds: deque[float] = deque(maxlen=CALLBACK_SAMPLES)
        self.reset()

    def reset(self) -> None:
        """Reset the counts; the callback times stay."""
        with self._lock:
            self._received = 0
            self._drops: Counter[str] = Counter()
            self._problems: Counter[str] = Counter()
            self._last_error = ""

    def restart(self) -> None:
        """Reset problems and errors; frame counts continue, because some frames are still being processed."""
        with self._lock:
            self._problems = Counter()
            self._last_error = ""

    def received(self) -> None:
        """An image message has arrived."""
        with self._lock:
            self._received += 1

    def dropped(self, reason: str) -> None:
        """A frame was dropped."""
        with self._lock:
            self._drops[reason] += 1

    def problem(self, reason: str, count: int = 1) -> None:
        """Something other than a received frame was ignored."""
        with self._lock:
            self._problems[reason] += count

    def error(self, text: str) -> None:
        """Record an error for the user."""
        with self._lock:
            self._last_error = text

    @contextmanager
    def timed_callback(self) -> Iterator[None]:
        """Measure one image callback."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._callback_seconds.append(time.perf_counter() - start)

    def callback_times(self) -> tuple[float, float]:
        """(99th percentile, maximum) of the newest callbacks, in seconds; zeros before the first."""
        samples = list(self._callback_seconds)
        if not samples:
            return 0.0, 0.0
        return float(np.percentile(samples, 99)), max(samples)

    def snapshot(self) -> tuple[int, dict[str, int], dict[str, int], str]:
        """(received, drops, problems, newest error) at one moment."""
        with self._lock:
            return self._received, dict(self._drops), dict(self._problems), self._last_error


class Guard:
    """Keeps exceptions of callbacks from ending a thread or the node.

    A failure is counted as the problem "internal error"; its place and kind are logged once.
    """

    def __init__(self, counters: Counters, logger: Any) -> None:
        self._counters, self._logger = counters, logger
        self._logged: set[tuple[str, type[BaseException]]] = set()
        self._closed = False

    def close(self) -> None:
        """The node is being torn down: callbacks that fail without their publisher are ignored."""
        self._closed = True

    def run(self, where: str, action: Callable[[], Any]) -> bool:
        """Run an action; False when it failed.  where: its name, for the log."""
        try:
            action()
        except Exception as error:
            self.failed(where, error)
            return False
        return True

    def failed(self, where: str, error: Exception) -> None:
        """Count a caught exception, and log it if it is the first of its kind."""
        if self._closed:
            return
        text = f"internal error ({where}): {error!r}"
        self._counters.problem("internal error")
        self._counters.error(text)
        if (where, type(error)) not in self._logged:
            self._logged.add((where, type(error)))
            trace = "".join(traceback.format_exception(error))
            self._logger.error(f"{text}; more of this kind are only counted\n{trace}")

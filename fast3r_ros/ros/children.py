"""Child processes that end with their parent, even if it is killed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


class Child:
    """One program with its output in a file; leaving the `with` block stops it.

    It runs in its own session, so that Ctrl-C in a terminal reaches only the parent, which ends it in order.
    The kernel kills it when the parent dies.  Start it from the main thread: the kernel watches the starting
    thread.
    """

    def __init__(self, name: str, command: Sequence[str | Path], environ: Mapping[str, str], log: Path):
        self.name = name
        self.log = log
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=dict(environ),
                start_new_session=True,
                preexec_fn=_in_child,
            )

    @property
    def status(self) -> int | None:
        """The exit status, None while it runs."""
        return self._process.poll()

    def last_line(self) -> str:
        """Its last output line, without the prefix of the ROS logger."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].rsplit("]: ", 1)[-1] if lines else f"{self.name} printed nothing"

    def ask_to_stop(self) -> None:
        """Send SIGTERM; returns at once."""
        if self.status is None:
            self._process.terminate()

    def stop(self, grace: float = 2.0) -> None:
        """Ask it to stop, and after `grace` seconds kill it and its children."""
        self.ask_to_stop()
        deadline = time.monotonic() + grace
        while self.status is None and time.monotonic() < deadline:
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _in_child() -> None:
    """Between fork and exec: die with the parent, and restore ignored signals."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)

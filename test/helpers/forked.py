"""Programs that start at once: forked from a server process that has imported PyTorch and ROS.

A start as a separate interpreter costs seconds of processor time, which dozens of nodes pay.  What a program
does is the same.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODULES = ("fast3r_ros.ros.replay_node", "fast3r_ros.ros.mapping_node")
SCRIPTS = ("double_node", "faulty_node", "ros_fuzz")  # of this folder


def can_fork(command: Sequence[str]) -> bool:
    """Whether a command is Python with one of the preloaded programs."""
    python, *words = command
    known = words[1] in MODULES if words[0] == "-m" else Path(words[0]).stem in SCRIPTS
    return python == sys.executable and known


class Forked:
    """Has what a test uses of `subprocess.Popen`.  Both output streams go to a file."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], cwd: Path, output: int
    ) -> None:
        self.args = list(command)
        context = multiprocessing.get_context("forkserver")
        _start_server()
        path = f"/proc/{os.getpid()}/fd/{output}"
        self._process = context.Process(
            target=_run, args=(self.args, dict(environment), str(cwd), path), daemon=True
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """The exit status, None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status.  Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _start_server() -> None:
    """Start the server, if it does not run; it inherits what counts when PyTorch is imported."""
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "PYTHONPATH")}
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE), before["PYTHONPATH"] or ""])
    os.environ.update(OMP_NUM_THREADS="1", PYTHONPATH=path)
    try:
        forkserver.set_forkserver_preload([*MODULES, *SCRIPTS, "forked"])
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _end_with_tests() -> None:
    """A killed test run must not leave nodes in a domain that the next one uses."""
    tests = multiprocessing.parent_process()
    assert tests is not None
    tests.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _run(command: list[str], environment: dict[str, str], cwd: str, output: str) -> None:
    """In the new process: become the program."""
    threading.Thread(target=_end_with_tests, name="end_with_tests", daemon=True).start()
    os.setsid()
    os.chdir(cwd)
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [each for each in environment["PYTHONPATH"].split(os.pathsep) if each not in sys.path]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _, *words = command
    if words[0] == "-m":
        sys.argv = words[1:]
        importlib.import_module(words[1]).main()
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")

"""The `fast3r` command.

One module per sub-command, each with `add_arguments(parser)` and `run(arguments) -> exit status`.  A module
is imported only when its sub-command runs, so `fast3r --help` is fast and the core needs no optional package.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import Any, NoReturn, TextIO

from fast3r_ros import __version__
from fast3r_ros.cli import interrupt
from fast3r_ros.errors import UserError

# name, module, one line of help
COMMANDS = (
    ("reconstruct", "fast3r_ros.cli.reconstruct", "map a video, an image folder or a rosbag2"),
    ("view", "fast3r_ros.cli.view", "show a map in the browser"),
    ("convert", "fast3r_ros.cli.convert", "write a result in another format"),
    ("info", "fast3r_ros.cli.info", "describe a checkpoint, a map, a bag or a video"),
    ("golden", "fast3r_ros.cli.golden", "check the network against a folder of golden cases"),
    ("benchmark", "fast3r_ros.cli.benchmark", "measure and print one JSON document"),
    ("evaluate", "fast3r_ros.cli.evaluate", "measure a model's accuracy against ground truth"),
    ("train", "fast3r_ros.cli.train", "train a model"),
)


class _Parser(argparse.ArgumentParser):
    """Reports a usage error in one line."""

    def error(self, message: str) -> NoReturn:
        """End the process with status 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, Callable[[argparse.Namespace], int]]:
    """The parsed arguments and the `run` of a sub-command; a usage error ends the process."""
    parser = _Parser(prog="fast3r", description="Multi-view 3D mapping with Fast3R.")
    parser.add_argument("--version", action="version", version=f"fast3r_ros {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    runners = {}
    for name, module_name, text in COMMANDS:
        subparser = subparsers.add_parser(name, help=text, description=text)
        if name == chosen:
            module = importlib.import_module(module_name)
            module.add_arguments(subparser)
            runners[name] = module.run
    parsed = parser.parse_args(arguments)
    return parsed, runners[parsed.command]


class _Output:
    """A standard stream whose failure does not end the work: output it does not accept is lost.

    failure: the number of the first error, 0 for none.
    """

    def __init__(self, stream: TextIO | None) -> None:
        # reopen a closed stream's descriptor, so that no other file gets its number
        self._stream: TextIO = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115
        self.failure = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Like any text stream."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Like any text stream."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Discard the remaining output; otherwise Python would try to write it again at exit."""
        self.failure = self.failure or error.errno or errno.EIO
        with suppress(OSError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit status (0 good, 1 a check failed, 2 usage error, 130 Ctrl-C).

    The work continues when output can no longer be written.  The status is then 2 for a full disk, and the
    work's own status when the reader of a pipe has closed it.
    """
    output, errors = _Output(sys.stdout), _Output(sys.stderr)
    with redirect_stdout(output), redirect_stderr(errors):
        status = _interruptible(list(sys.argv[1:] if arguments is None else arguments))
        output.flush()
        if output.failure not in (0, errno.EPIPE):
            print(f"fast3r: cannot write the output: {os.strerror(output.failure)}", file=sys.stderr)
            status = status or 2
        errors.flush()
    return status


def _interruptible(arguments: list[str]) -> int:
    """`_run`; the status after Ctrl-C is the same wherever it arrives."""
    try:
        with interrupt.watched() as ctrl_c:
            status = _run(arguments)
            return interrupt.STATUS if ctrl_c.pressed else status
    except KeyboardInterrupt:
        return interrupt.STATUS


def _run(arguments: list[str]) -> int:
    parsed, run = parse(arguments)
    try:
        return int(run(parsed))
    except UserError as error:
        print(f"fast3r {parsed.command}: {error}", file=sys.stderr)
        return 2

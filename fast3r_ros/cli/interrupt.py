"""The process of a command: Ctrl-C ends it with status 130, and torchrun may start it several times."""

from __future__ import annotations

import _thread
import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import FrameType

from fast3r_ros.errors import UserError

STATUS = 130  # exit status after Ctrl-C, as in shells
_AGAIN_S = 0.05  # between two checks for the end of the import


class _CtrlC:
    """pressed: SIGINT came.  held: the first SIGINT is only recorded.  waiting: for an import to end."""

    pressed = held = waiting = False
    timer: threading.Timer | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The handler of SIGINT, also called again after waiting."""
        known = self.pressed and not self.waiting
        self.pressed, self.waiting = True, False
        if self.held and not known:
            print("stopping: writing the results; press Ctrl-C again to skip them", file=sys.stderr)
            return
        if _importing(frame):
            self.waiting = True
            self.timer = threading.Timer(_AGAIN_S, _thread.interrupt_main)
            self.timer.daemon = True
            self.timer.start()
            return
        raise KeyboardInterrupt


_ctrl_c = _CtrlC()


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


@contextmanager
def watched() -> Iterator[_CtrlC]:
    """Inside, SIGINT raises KeyboardInterrupt in the main thread, after the running import if there is one.

    Yields the object whose `pressed` reports SIGINT.  Where SIGINT has another handler, or in another thread,
    nothing changes.
    """
    ours = threading.current_thread() is threading.main_thread()
    _ctrl_c.pressed = _ctrl_c.held = _ctrl_c.waiting = False
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield _ctrl_c
        return
    signal.signal(signal.SIGINT, _ctrl_c)
    try:
        yield _ctrl_c
    finally:
        if _ctrl_c.timer is not None:
            _ctrl_c.timer.cancel()
            _ctrl_c.timer.join()
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def held() -> Iterator[None]:
    """Inside, the first Ctrl-C is only recorded; the second one interrupts."""
    _ctrl_c.held = True
    try:
        yield
    finally:
        _ctrl_c.held = False


def expected() -> None:
    """Record that Ctrl-C is the normal end of this command."""
    _ctrl_c.pressed = False


def run_on_ranks(arguments: argparse.Namespace, work: Callable[[argparse.Namespace, bool], int]) -> int:
    """`work(arguments, first)` on every process; only the first prints.

    Raises UserError outside torchrun.
    """
    import torch.distributed as dist  # imported late, as most commands need no PyTorch

    from fast3r_ros.model.speed.parallel import join_processes

    arguments.device = join_processes(arguments.device)
    try:
        if dist.get_rank() == 0:
            return work(arguments, True)
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            return work(arguments, False)
    except UserError:
        if dist.get_rank() == 0:
            raise
        return 2  # the first process reports the error
    finally:
        dist.destroy_process_group()

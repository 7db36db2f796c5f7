"""How a node's process starts and ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

import rclpy
from rclpy.exceptions import InvalidHandle
from rclpy.executors import Executor
from rclpy.signals import SignalHandlerOptions

GIL_SECONDS = 0.001  # Python's usual 5 ms would make callbacks wait for the other threads


def begin(arguments: Sequence[str] | None) -> threading.Event:
    """Initialise rclpy; the event is set by SIGINT and SIGTERM.

    rclpy's own handlers would invalidate everything under the threads that still publish; so the node ends in
    order first.
    """
    sys.setswitchinterval(GIL_SECONDS)
    words = list(sys.argv if arguments is None else arguments)
    rclpy.init(args=words, signal_handler_options=SignalHandlerOptions.NO)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


def spin_until(stop: threading.Event, executor: Executor) -> threading.Thread:
    """Spin on a thread of its own.

    A callback's exception ends it with a traceback, except after `stop`: then the executor is being taken
    apart.  That somebody destroyed a subscription or publisher while the executor was about to look at it is
    no reason to end: rclpy raises InvalidHandle then, and the next look goes without it.
    """

    def spin() -> None:
        while not stop.is_set():
            try:
                executor.spin()
            except InvalidHandle:
                continue
            except Exception:
                if not stop.is_set():
                    raise
            return

    thread = threading.Thread(target=spin, name="fast3r_executor", daemon=True)
    thread.start()
    return thread


def leave(status: int) -> NoReturn:
    """End the process at once.

    Threads in native code (a pass of the network, the middleware) cannot be interrupted: Python would wait
    for them or crash in them, and takes a second or more to take PyTorch apart.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

"""Start and end of a node's process."""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import rclpy
import rclpy.logging
from rclpy.exceptions import InvalidHandle
from rclpy.executors import Executor
from rclpy.signals import SignalHandlerOptions

from fast3r_ros.files import one_line

FAILURE_SECONDS = 0.01  # pause after a callback's failure, so that a broken executor does not spin
SHARED_MEMORY = Path("/dev/shm")
GIL_SECONDS = 0.001  # Python's usual 5 ms would make callbacks wait for the other threads


def begin(arguments: Sequence[str] | None) -> threading.Event:
    """Initialise rclpy; the event is set by SIGINT and SIGTERM.

    rclpy's own handlers would invalidate everything used by threads that still publish, so the node first
    ends in order.  Ends the process with status 2 and one line for arguments that rcl cannot read, such as a
    missing or damaged parameter file.  If no log file can be created, it continues without one, after one
    line.
    """
    sys.setswitchinterval(GIL_SECONDS)
    words = list(sys.argv if arguments is None else arguments)
    program = Path(words[0]).stem
    use_network_without_shared_memory(program)
    try:
        rclpy.init(
            args=words + arguments_without_log_file(program), signal_handler_options=SignalHandlerOptions.NO
        )
    except (RuntimeError, ValueError) as error:  # RuntimeError includes rclpy's RCLError
        _tell(f"{program}: {one_line(error)}")
        leave(2)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


def use_network_without_shared_memory(program: str) -> None:
    """Make Fast DDS use only UDP if shared memory is not writable, as in a container without /dev/shm.

    It would fall back by itself, after about forty lines of errors.
    """
    if os.access(SHARED_MEMORY, os.W_OK):
        return
    _tell(
        f"{program}: {SHARED_MEMORY} is missing or read-only: messages go over UDP, and large images may be "
        "lost (docker run --shm-size=512m, or --ipc=host)"
    )
    for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):  # config/fastdds.xml
        os.environ.pop(name, None)
    os.environ["FASTDDS_BUILTIN_TRANSPORTS"] = "UDPv4"


def arguments_without_log_file(program: str) -> list[str]:
    """Arguments for rclpy.init that disable the log file if rcl cannot create one; otherwise none."""
    places = {"ROS_LOG_DIR": "", "ROS_HOME": "log", "HOME": ".ros/log"}
    known = [os.path.join(os.environ[name], rest) for name, rest in places.items() if os.environ.get(name)]
    folder = os.path.expanduser([*known, "~/.ros/log"][0])
    try:
        if not known:
            raise OSError(errno.ENOENT, "HOME is not set")
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        _tell(f"{program}: no log file in {folder}: {error.strerror}; set ROS_LOG_DIR to another folder")
        return ["--ros-args", "--disable-external-lib-logs"]
    return []


def _tell(line: str) -> None:
    """A line on standard error, wherever that goes."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def spin_until(
    stop: threading.Event, executor: Executor, on_error: Callable[[Exception], None] | None = None
) -> threading.Thread:
    """Spin on a separate thread until `stop`.

    Exceptions of callbacks, ours or rclpy's, do not end it: they go to on_error(error), or to the log.  rclpy
    raises InvalidHandle when a subscription or publisher is destroyed just before the executor uses it; that
    is not an error.
    """

    def report(error: Exception) -> None:
        if stop.is_set():  # the executor is being shut down
            return
        if on_error is not None:
            on_error(error)
        else:
            rclpy.logging.get_logger("executor").error(f"a callback failed: {error!r}")

    def spin() -> None:
        while not stop.is_set():
            try:
                executor.spin()
            except InvalidHandle:
                continue
            except Exception as error:
                report(error)
                stop.wait(FAILURE_SECONDS)
                continue
            return

    thread = threading.Thread(target=spin, name="fast3r_executor", daemon=True)
    thread.start()
    return thread


def leave_within(seconds: float, status: int) -> None:
    """End the process after `seconds`, even if threads still wait."""

    def end() -> None:
        time.sleep(seconds)
        leave(status)

    threading.Thread(target=end, name="fast3r_leave", daemon=True).start()


def leave(status: int) -> NoReturn:
    """End the process at once.

    Threads in native code (a pass of the network, the middleware) cannot be interrupted: Python would wait
    for them or crash in them, and needs a second or more to shut down PyTorch.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # the disk may be full
            stream.flush()
    os._exit(status)

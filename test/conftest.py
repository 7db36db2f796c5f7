"""For all tests: helper modules, a small network, Ctrl-C that reaches programs, examples without a deadline.

A shell starts background jobs with SIGINT ignored, and a program hands that on to those it starts: tests
of Ctrl-C would fail because of where they run.  A signal that is handled here is back at its default in
every program started from here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fast3r_ros.model import Fast3R

# importlib mode does not find modules next to the tests
sys.path.insert(0, str(Path(__file__).parent / "helpers"))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

with suppress(ImportError):  # `colcon test` runs without it
    from hypothesis import settings

    settings.register_profile("any_machine", deadline=None)
    settings.load_profile("any_machine")


LONG = ("viewer", "cli", "benchmark", "training", "mapping")  # folders of the longest tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first, so that all processes of a parallel run end at about the same time."""
    items.sort(key=lambda item: item.path.parent.name not in LONG)  # keeps the order otherwise


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: quicker for small tensors, and sums of more threads are rounded differently."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def network() -> Fast3R:
    """Random weights, for images of 64x48 pixels; not to be changed."""
    from small_model import small_model

    return small_model()


@pytest.fixture(scope="session")
def model_directory(network: Fast3R, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checkpoint folder of `network`."""
    directory = tmp_path_factory.mktemp("model")
    network.save_pretrained(directory)
    return str(directory)


# Imports once; every kill is of a child of its own, before a file operation that differs from the last one.
KILLER = """
import os, signal, sys, traceback
FILES = {"open", "write", "flush", "close", "fsync", "mkdir", "replace", "rename", "unlink", "rmdir"}
exec(sys.argv[1])
def in_a_child(do, most):
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        found = os.read(reader, 99)
        os.close(reader)
        return int(found or 0), os.waitpid(child, 0)[1]
    seen, last = 0, ""
    def count(frame, event, called):
        nonlocal seen, last
        if event == "c_call" and called.__name__ in FILES and not isinstance(called.__self__, (str, bytes)):
            on_console = called.__self__ is sys.stdout or called.__self__ is sys.stderr  # depends on time
            if called.__name__ != last and not on_console:
                last, seen = called.__name__, seen + 1
                if seen == most:
                    os.kill(os.getpid(), signal.SIGKILL)
    try:
        sys.setprofile(count)
        do()
        sys.setprofile(None)
        os.write(writer, str(seen).encode())
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
total, status = in_a_child(rehearse, 0)
print(status, total, flush=True)
for place in map(int, sys.stdin):
    print(in_a_child(work, place)[1], flush=True)
"""
Kills = Callable[..., Iterator[bool]]


@pytest.fixture
def kills() -> Kills:
    """Kills a program with SIGKILL while it works, at moments that do not depend on time.

    kills(program, shares, *arguments): the program defines rehearse() and work(), and finds its arguments in
    sys.argv[2:].  For every share, work() is run in a process of its own, which is killed after that share of
    the file operations of rehearse(), or before each of them without shares; then yields whether the kill
    came before the end.
    """

    def run(program: str, shares: Sequence[float] | None, *arguments: object) -> Iterator[bool]:
        path = os.pathsep.join([os.getcwd(), *sys.path])
        with subprocess.Popen(
            [sys.executable, "-c", KILLER, program, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            text=True,
            bufsize=1,
        ) as driver:
            assert driver.stdin is not None
            assert driver.stdout is not None
            status, total = map(int, driver.stdout.readline().split())
            assert status == 0, f"the rehearsal failed: {status}"
            assert total > 3
            places = range(1, total + 1) if shares is None else [1 + int(share * total) for share in shares]
            for place in places:
                driver.stdin.write(f"{place}\n")
                status = int(driver.stdout.readline())
                assert status in (0, signal.SIGKILL), f"the work failed: {status}"
                yield status == signal.SIGKILL

    return run

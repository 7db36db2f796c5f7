"""Real nodes as separate processes and a listener in the test process, in their own DDS domain."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from fast3r_ros.ros.process import spin_until

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DOUBLE = [sys.executable, str(HERE / "double_node.py")]
REPLAY = [sys.executable, "-m", "fast3r_ros.ros.replay_node"]
MAPPING = [sys.executable, "-m", "fast3r_ros.ros.mapping_node"]
NODE = "/fast3r_mapping"
HANG_SECONDS = 240.0

_claimed: dict[int, tuple[int, IO[str]]] = {}


def domain(number: int) -> int:
    """A DDS domain for one test module, unique among concurrent runs of the suite by a locked file."""
    for offset in range(100 if number not in _claimed else 0):
        candidate = 1 + (os.getpid() * 7 + number + offset) % 100
        lock = Path(tempfile.gettempdir(), f"fast3r_test_domain_{candidate}").open("a")  # noqa: SIM115
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _claimed[number] = candidate, lock
            break
        lock.close()
    assert number in _claimed, "all DDS domains are taken by other runs of the tests"
    return _claimed[number][0]


def arguments(parameters: dict[str, Any], remappings: dict[str, str] | None = None) -> list[str]:
    """--ros-args for a program."""
    words = ["--ros-args"]
    for name, value in parameters.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        words += ["-p", f"{name}:={text}"]
    for name, topic in (remappings or {}).items():
        words += ["-r", f"{name}:={topic}"]
    return words


def constants(values: dict[str, Any]) -> list[str]:
    """Settings that are not parameters of the node, for double_node.py; placed before `arguments`."""
    return [f"{name}={value}" for name, value in values.items()]


class Program:
    """A process with its output in a file; `stop` ends it like Ctrl-C."""

    def __init__(self, command: list[str], domain_id: int) -> None:
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115  lives as long as the process
        environment = {
            **os.environ,
            "ROS_DOMAIN_ID": str(domain_id),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")]),
        }
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def output(self) -> str:
        self._output.seek(0)
        return self._output.read()

    def wait(self, timeout: float) -> int:
        return self.process.wait(timeout)

    def stop(self, number: int = signal.SIGINT) -> tuple[int, float]:
        """Signal the process; (exit status, seconds it took).

        It is killed after a minute, far more than the three seconds that it needs on an idle machine.
        """
        start = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            status = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            status = self.process.wait()
        return status, time.monotonic() - start

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def memory_mb(self) -> float:
        """Resident memory."""
        return _status(self.pid, "VmRSS") / 1024

    def threads(self) -> int:
        return _status(self.pid, "Threads")


def _status(pid: int, key: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise KeyError(key)


class Listener:
    """A node in the test process that stores received messages."""

    def __init__(self, domain_id: int) -> None:
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        self._context = Context()
        rclpy.init(context=self._context, domain_id=domain_id)
        self.node: Node = rclpy.create_node("listener", context=self._context)
        self.heard: dict[str, list[Any]] = defaultdict(list)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._stop = threading.Event()
        # continues when a test destroys a subscription that the executor is about to use
        self._thread = spin_until(self._stop, self._executor)

    def listen(self, kind: Any, topic: str, latched: bool = False) -> None:
        durability = DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE
        self.node.create_subscription(
            kind, topic, self.heard[topic].append, QoSProfile(depth=200, durability=durability)
        )

    def connected(self, publisher: Any) -> bool:
        """Whether every subscription of a publisher's topic is reliable and gets its messages.

        The node subscribes best effort until it has seen that the publisher is reliable.
        """
        found = self.node.get_subscriptions_info_by_topic(publisher.topic_name)
        reliable = [each.qos_profile.reliability == ReliabilityPolicy.RELIABLE for each in found]
        return bool(found) and all(reliable) and publisher.get_subscription_count() >= len(found)

    def connect(self, *publishers: Any) -> None:
        """Wait until the node has adapted its subscriptions to these publishers; then no message is lost."""
        for publisher in publishers:
            topic = publisher.topic_name
            wait_until(lambda publisher=publisher: self.connected(publisher), 60, f"subscriptions of {topic}")

    def call(self, kind: Any, service: str, timeout: float = 30.0, **fields: Any) -> Any:
        client = self.node.create_client(kind, service)
        try:
            assert client.wait_for_service(timeout), f"no service {service}"
            future = client.call_async(kind.Request(**fields))
            wait_until(future.done, timeout, f"an answer from {service}")
            return future.result()
        finally:
            self.node.destroy_client(client)

    def newest(self, topic: str) -> Any:
        return self.heard[topic][-1]

    def later(self, topic: str) -> Any:
        """The newest message on a topic, made after this call: the first to come may be older."""
        heard = self.heard[topic]
        count = len(heard)
        wait_until(lambda: len(heard) > count + 1, 60, f"two messages on {topic}")
        return heard[-1]

    def wait_for(self, topic: str, condition: Callable[[Any], bool], timeout: float = 30.0) -> Any:
        """The first message from now on, or the newest so far, that fulfils a condition."""
        start = max(0, len(self.heard[topic]) - 1)
        found: list[Any] = []

        def look() -> bool:
            found.extend(message for message in self.heard[topic][start:] if condition(message))
            return bool(found)

        wait_until(look, timeout, f"a message on {topic}")
        return found[0]

    def close(self) -> None:
        self._stop.set()
        self._executor.shutdown()
        self._thread.join(5)
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)


def crowding() -> float:
    """Waiting processes per processor, at least 1: limits in seconds are for an idle machine."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def wait_until(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Wait until a condition holds.  The limit only ends a test that hangs; a busy machine stays below it."""
    timeout = max(timeout, HANG_SECONDS)
    limit = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < limit, f"timeout: waited {timeout:.0f} s for {what}"
        time.sleep(0.02)


@contextlib.contextmanager
def running(*programs: Program) -> Iterator[None]:
    """Stops the programs in every case; their output is shown when a test fails."""
    try:
        yield
    except BaseException:
        for program in programs:
            print(f"--- output of {program.process.args}\n{program.output()}")
        raise
    finally:
        for program in programs:
            program.stop()
            program.kill()

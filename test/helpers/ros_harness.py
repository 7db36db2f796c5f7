"""Real nodes as separate processes and a listener in the test process, in their own DDS domain."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import rclpy
from domains import domain  # noqa: F401  for the tests of nodes
from forked import Forked, can_fork
from patience import HANG_SECONDS, wait_until
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile

from fast3r_ros.ros.process import spin_until

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DOUBLE = [sys.executable, str(HERE / "double_node.py")]
REPLAY = [sys.executable, "-m", "fast3r_ros.ros.replay_node"]
MAPPING = [sys.executable, "-m", "fast3r_ros.ros.mapping_node"]
NODE = "/fast3r_mapping"


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
        self.process: subprocess.Popen[bytes] | Forked
        if can_fork(command):
            self.process = Forked(command, environment, ROOT, self._output.fileno())
        else:
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

    def wait(self) -> int:
        """The exit status, when the process has ended by itself."""
        return self.process.wait(HANG_SECONDS)

    def stop(self, number: int = signal.SIGINT) -> int:
        """Signal the process; the exit status.  One that does not end is killed: -9."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(HANG_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.wait()

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

    def connected(self, publisher: Any, adapts: bool = True) -> bool:
        """Whether every subscription of a publisher's topic gets its messages, at least another node's.

        adapts: the node's subscription of images, masks and depth is best effort until the node has seen that
        the publisher is reliable; it is then created again.
        """
        found = self.node.get_subscriptions_info_by_topic(publisher.topic_name)
        others = [each for each in found if each.node_name != self.node.get_name()]
        offered = publisher.qos_profile.reliability
        fits = [each.qos_profile.reliability == offered for each in others] if adapts else [True]
        return bool(others) and all(fits) and publisher.get_subscription_count() >= len(found)

    def connect(self, *publishers: Any, adapts: bool = True) -> None:
        """Wait until publishers are `connected`; from then on nothing that they send reliably is lost."""
        for publisher in publishers:
            wait_until(
                lambda publisher=publisher: self.connected(publisher, adapts),
                f"a subscription of {publisher.topic_name}",
            )

    def call(self, kind: Any, service: str, **fields: Any) -> Any:
        client = self.node.create_client(kind, service)
        try:
            assert client.wait_for_service(HANG_SECONDS), f"no service {service}"
            future = client.call_async(kind.Request(**fields))
            wait_until(future.done, f"an answer from {service}")
            return future.result()
        finally:
            self.node.destroy_client(client)

    def newest(self, topic: str) -> Any:
        """The newest message; waits for the first one."""
        wait_until(lambda: len(self.heard[topic]) > 0, f"a message on {topic}")
        return self.heard[topic][-1]

    def later(self, topic: str) -> Any:
        """The newest message on a topic, made after this call: the first to come may be older."""
        heard = self.heard[topic]
        count = len(heard)
        wait_until(lambda: len(heard) > count + 1, f"two messages on {topic}")
        return heard[-1]

    def wait_for(self, topic: str, condition: Callable[[Any], bool]) -> Any:
        """The first message from now on, or the newest so far, that fulfils a condition."""
        heard, found = self.heard[topic], []
        seen = max(0, len(heard) - 1)

        def look() -> bool:
            nonlocal seen
            new = heard[seen:]
            seen += len(new)
            found.extend(message for message in new if condition(message))
            return bool(found)

        wait_until(look, f"a message on {topic}")
        return found[0]

    def close(self) -> None:
        self._stop.set()
        self._executor.shutdown()
        self._thread.join(HANG_SECONDS)
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)


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

"""The demo: a source is mapped by the node, in processes that end with this one, even if it is killed."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import rclpy
from ament_index_python.packages import get_package_prefix
from rclpy.client import Client
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from tqdm import tqdm

from fast3r_ros.demo_model import REAL_MODEL, caveat
from fast3r_ros.errors import UserError
from fast3r_ros.io.cameras import write_trajectory
from fast3r_ros.io.pipeline import RESULTS
from fast3r_ros.io.preview import write_preview
from fast3r_ros.io.run_report import PROGRAM, REPORT, claim_folder, list_files, versions, write_report
from fast3r_ros.io.sources import Source, open_source
from fast3r_ros.model.checkpoint import locate
from fast3r_ros.msg import MappingStatus
from fast3r_ros.networks.loading import DEFAULT, NetworkOptions, load_network, split_model
from fast3r_ros.ros.demo_listener import NODE, DemoListener, numbers, parts, summary, unit
from fast3r_ros.srv import SaveMap

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


START_SECONDS = 120.0  # for loading the model
SILENCE_SECONDS = 30.0  # without any image
LAST_IMAGES_SECONDS = 1.0  # for images in transport when the replay node has ended
REST_SECONDS = 60.0  # for mapping the rest after the source has ended
STOPPED = 130  # exit status after a stop signal, as in shells
READY = (MappingStatus.WAITING, MappingStatus.MAPPING, MappingStatus.LOST)


class StopSignal:
    """Handles Ctrl-C and SIGTERM: at once, or later while `deferred`, when there are processes to stop.

    An exception from a signal handler can hit any library's clean-up, which then prints a traceback.
    """

    def __init__(self) -> None:
        self.deferred = False
        self.received = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        self.received = True
        if not self.deferred:
            os.write(2, b"\nstopped\n")
            os._exit(STOPPED)


class Demo:
    """One run: the listener, its executor, and the child processes.  Leaving the `with` block ends them.

    Raises KeyboardInterrupt after a stop signal.
    """

    def __init__(self, model: str, source: Source, source_name: str, output: Path, stop: StopSignal) -> None:
        self.source = source
        self.output = output
        self._stop = stop
        self._model, self._source_name = model, source_name
        self._children: list[Child] = []

    def __enter__(self) -> Demo:
        self._stop.deferred = True
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        self.listener = DemoListener()
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.listener)
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.ask_to_stop()
        for child in self._children:
            child.stop()
        self._executor.shutdown(timeout_sec=0.5)  # before its context ends, to avoid an error in Jazzy
        rclpy.shutdown()
        self._stop.deferred = False
        if self._stop.received:
            raise KeyboardInterrupt

    def start_mapping(self) -> None:
        """Start the mapping node and wait until it is ready for images."""
        parameters = {
            "model": quoted(self._model),
            "map_directory": quoted(str(self.output)),
            "output.path_length": "1000000",
        }
        mapping = self._start("mapping_node", parameters)
        self._spin_until(
            lambda: self.listener.status is not None and self.listener.status.state in READY,
            START_SECONDS,
            f"the mapping node was not ready after {START_SECONDS:.0f} s; see {mapping.log}",
        )

    def play(self) -> int:
        """Play the source in real time and show progress; returns the number of images received."""
        # Present stamps, as from a camera driver, make latencies meaningful.
        options = {"source": quoted(self._source_name), "restamp": "true", "ground_truth": "true"}
        options["subscribers"] = "2"  # the mapping node and the listener
        replay = self._start("replay_node", options)
        self._spin_until(
            lambda: bool(self.listener.images), SILENCE_SECONDS, "the replay node sent no images"
        )
        quiet = not sys.stdout.isatty()
        with tqdm(total=len(self.source), unit="frame", mininterval=5.0 if quiet else 0.2, ncols=100) as bar:
            ended = math.inf
            while time.monotonic() < ended + LAST_IMAGES_SECONDS:
                self._spin()
                if replay.status is not None:
                    ended = min(ended, time.monotonic())
                bar.set_postfix_str(self._progress(), refresh=False)
                bar.update(len(self.listener.images) - bar.n)
        return len(self.listener.images)

    def finish(self) -> MappingStatus:
        """Wait until everything is mapped, save the map, and return the last status."""
        client: Client = self.listener.create_client(SaveMap, f"{NODE}/save_map")
        answer = client.call_async(SaveMap.Request(name="map.ply", overwrite=True))
        self._spin_until(answer.done, REST_SECONDS, "the mapping node did not save the map")
        response = answer.result()
        empty = self.listener.status is not None and not self.listener.status.map_points
        if response is None or not (response.success or empty):  # the summary reports an empty map
            raise UserError(f"no map was saved: {response.message if response else 'no answer'}")
        deadline = time.monotonic() + 3.0  # the last path and map are sent at a limited rate
        while time.monotonic() < deadline:
            self._spin()
        status = self.listener.status
        assert status is not None, "start_mapping has waited for one"
        return status

    def _start(self, program: str, parameters: Mapping[str, str]) -> Child:
        path = Path(get_package_prefix("fast3r_ros"), "lib", "fast3r_ros", program)
        command: list[str | Path] = [path, "--ros-args"]
        for name, value in parameters.items():
            command += ["-p", f"{name}:={value}"]
        child = Child(program, command, os.environ, self.output / f"{program}.log")
        self._children.append(child)
        return child

    def _spin(self) -> None:
        self._executor.spin_once(timeout_sec=0.1)
        if self._stop.received:
            raise KeyboardInterrupt
        mapping = self._children[0]
        status = self.listener.status
        if status is not None and status.state == MappingStatus.ERROR:
            raise UserError(f"the mapping node cannot run: {status.last_error}")
        for child in self._children:
            if child.status or (child is mapping and child.status is not None):
                raise UserError(f"{child.name} stopped: {child.last_line()}")

    def _spin_until(self, done: Callable[[], bool], seconds: float, failure: str) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                raise UserError(failure)
            self._spin()

    def _progress(self) -> str:
        status = self.listener.status
        return f"{status.windows} windows, {status.map_points:,} points" if status else ""


def run(model: str, source_name: str, output: Path, stop: StopSignal) -> None:
    """Run the demo.  Raises UserError for unusable arguments, and KeyboardInterrupt when stopped."""
    source = open_source(source_name)
    next(iter(source.frames([0])), None)  # reports an unreadable source now
    fetch(model)
    claim_folder(output, source.paths, RESULTS)
    use_private_domain()
    command = shlex.join(["make", "demo", f"SOURCE={source_name}", f"MODEL={REAL_MODEL}"])
    warning = caveat(model, source.synthetic, command)
    if warning:
        print(warning)
    print(f"Playing {source.name}: {len(source)} frames at {source.rate_hz:.1f} Hz, model {model}")
    print(f"ROS_DOMAIN_ID={os.environ['ROS_DOMAIN_ID']} on this machine only, for rviz2 in another terminal")
    with Demo(model, source, source_name, output, stop) as demo:
        demo.start_mapping()
        sent = demo.play()
        status = demo.finish()
    listener = demo.listener
    write_trajectory(output / "trajectory.txt", listener.trajectory())
    write_preview(
        output / "preview.png",
        cloud=listener.map(),
        trajectory=listener.trajectory(),
        views=listener.views(),
        numbers=numbers(listener, status, sent),
        title=Path(source.name).name,
        truth=listener.truth or None,
        unit=unit(status),
        parts=parts(listener, status),
        caveat=warning,
    )
    print()
    for label, line in {**summary(listener, status, sent), "model": describe(model)}.items():
        print(f"{label:<12}{line}")
    content = {"program": PROGRAM, "complete": True, "stopped": "", "frames": sent, "source": source.name}
    content["caveat"] = warning
    files = list_files(output, RESULTS)
    write_report(output / REPORT, {**content, "model": model, "versions": versions(), "files": files})
    print(f"{'written':<12}{output}/map.ply, trajectory.txt, preview.png")
    if warning:
        print(warning)


def fetch(model: str) -> None:
    """Download a model of the hub, which may take longer than a node's timeout.  Raises UserError."""
    network, checkpoint = split_model(model)
    if network == DEFAULT:
        locate(checkpoint)
    else:
        load_network(model, NetworkOptions(device="cpu"))


def describe(model: str) -> str:
    """The model's name and, if its folder has it, its measured quality."""
    network, checkpoint = split_model(model)
    config = locate(checkpoint).config if network == DEFAULT else None
    quality = config.with_name("quality.json") if config else None
    if quality is None or not quality.is_file():
        return f"{model}; its quality has not been measured"
    return f"{model}; {json.loads(quality.read_text())['summary']}"


def use_private_domain() -> None:
    """Keep the demo's topics on this machine and, unless ROS_DOMAIN_ID is set, separate from others here."""
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"


def quoted(text: str) -> str:
    """Text as a YAML string for a parameter on the command line, so that 007 stays a name."""
    return json.dumps(text, ensure_ascii=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status (2: wrong use, 130: stopped by a signal)."""
    parser = argparse.ArgumentParser(prog="demo", description="Map a source with the real nodes over DDS.")
    parser.add_argument("--source", default="synthetic", help="video, image folder or rosbag2")
    parser.add_argument(
        "--model", default="demo", help="demo, a checkpoint folder, a hub name or name:checkpoint"
    )
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for the results")
    parsed = parser.parse_args(arguments)
    stop = StopSignal()
    try:
        run(parsed.model, parsed.source or "synthetic", parsed.output.resolve(), stop)
    except UserError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())

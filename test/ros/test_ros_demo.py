"""`make demo` from end to end, with real processes: files, output and stopping."""

import os
import signal
import subprocess
import uuid
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

from domains import domain
from patience import HANG_SECONDS, wait_until
from PIL import Image

from fast3r_ros.io.ply import read_ply
from fast3r_ros.ros.demo import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
MARK = "FAST3R_TEST_RUN"


class Demo:
    """One `make demo` in its own process group, like in a terminal."""

    def __init__(self, *variables, make="demo"):
        self.mark = uuid.uuid4().hex
        environ = {**os.environ, MARK: self.mark, "ROS_DOMAIN_ID": str(domain(80)), "OMP_NUM_THREADS": "2"}
        environ.pop("MAKEFLAGS", None)
        self.process = subprocess.Popen(
            ["make", make, *variables],
            cwd=ROOT,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def press_ctrl_c(self):
        """Send Ctrl-C like a terminal; returns the output once everything has ended."""
        os.killpg(self.process.pid, signal.SIGINT)
        output, _ = self.process.communicate(timeout=HANG_SECONDS)
        wait_until(lambda: not self.alive(), "the end of every process")
        return output

    def alive(self):
        """Command lines of this run's processes that are still alive."""
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"{MARK}={self.mark}".encode() in environ.read_bytes():
                    found.append((environ.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue  # it has ended, or is not ours
        return found


def log_of(output):
    """The log of a demo's mapping node."""
    log = output / "mapping_node.log"
    return log.read_text() if log.exists() else ""


def test_the_demo_ends_by_itself_and_leaves_map_trajectory_and_picture(tmp_path):
    demo = Demo("SOURCE=synthetic:8", f"OUTPUT={tmp_path}")
    output, _ = demo.process.communicate(timeout=HANG_SECONDS)
    assert demo.process.returncode == 0, output
    assert not demo.alive()
    lines = dict(line.split(maxsplit=1) for line in output.splitlines() if line[:1].islower())
    assert {
        "frames",
        "windows",
        "map",
        "published",
        "trajectory",
        "latency",
        "model",
        "written",
    } <= lines.keys()
    played, received = (int(part.split()[0]) for part in lines["frames"].split(", ")[:2])
    assert played == 80
    assert 0.8 * played < received <= played  # a busy machine loses some
    assert int(lines["windows"].split()[0]) >= 1
    assert "RMSE" in lines["trajectory"]
    for part in lines["published"].split(" at ")[0].split(", "):
        good, total = part.split()[0].split("/")
        assert good == total != "0", lines["published"]
    assert len(read_ply(tmp_path / "map.ply").points) == int(lines["map"].split()[0].replace(",", ""))
    trajectory = np.loadtxt(tmp_path / "trajectory.txt")
    assert len(trajectory) >= 3
    assert trajectory.shape[1] == 8
    assert Image.open(tmp_path / "preview.png").width == 1600


@pytest.mark.parametrize(
    "moment", ["make", "setup_environment", "fast3r_ros.ros.demo", "loaded in", "images on", "broadcasting"]
)
def test_ctrl_c_stops_everything(moment, tmp_path):
    """At moments from the first process to the first window, found in its command lines or the node's log."""
    demo = Demo(f"OUTPUT={tmp_path}")

    def come():
        assert demo.process.poll() is None, "the demo has ended before"
        return any(moment in each for each in [*demo.alive(), log_of(tmp_path)])

    wait_until(come, moment)
    output = demo.press_ctrl_c()
    assert "Traceback" not in output
    assert demo.process.returncode != 0


def test_killing_the_demo_leaves_no_node_behind(tmp_path):
    environ = {**os.environ, MARK: uuid.uuid4().hex, "ROS_DOMAIN_ID": str(domain(80))}
    command = ["python", "-m", "fast3r_ros.ros.demo", "--output", tmp_path]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL)
    wait_until(lambda: "loaded in" in log_of(tmp_path), "the node's start")
    process.kill()
    process.wait()
    watched = Demo.__new__(Demo)
    watched.mark = environ[MARK]
    wait_until(lambda: not watched.alive(), "the end of every process")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--source", "/no/such/file.mp4"), "/no/such/file.mp4"),
        (("--source", "{tmp}/text.mp4"), "text.mp4"),
        (("--source", "{tmp}/empty"), "empty"),
        (("--model", "no-such-model"), "no-such-model"),
        (("--model", "{tmp}/empty"), "empty"),
        (("--output", "/proc/nowhere"), "/proc/nowhere"),
    ],
)
def test_a_usage_error_gives_one_line(arguments, part, tmp_path, monkeypatch, capfd):
    (tmp_path / "text.mp4").write_text("this is no video\n")
    (tmp_path / "empty").mkdir()
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    for name, value in (("ROS_DOMAIN_ID", domain(80)), ("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")):
        monkeypatch.setenv(name, str(value))  # which the demo sets, too
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert main(["--output", str(tmp_path / "out"), *arguments]) == 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    output, errors = capfd.readouterr()
    assert part in errors
    assert len(errors.splitlines()) == 1, errors
    assert output == ""

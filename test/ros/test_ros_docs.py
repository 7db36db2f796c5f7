"""The documented requests to a running node, without ROS's command line tools."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy", reason="ROS is not installed here")

from patience import HANG_SECONDS, wait_until
from rcl_interfaces.msg import Parameter, ParameterValue
from rcl_interfaces.srv import SetParameters
from ros_harness import NODE, domain
from walk_session import Session

from fast3r_ros.io.ply import read_ply
from fast3r_ros.synthetic.sequence import demo_sequence

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
REQUESTS = re.compile(r"^ros2 ((?:topic|service|param) .*)$", re.M)
REQUEST_WORD = r'"[^"]*"|\S+'


def apart() -> dict[str, str]:
    """Environment of a demo that is separate from the session's node."""
    return {**os.environ, "ROS_DOMAIN_ID": str(domain(71))}


def requests() -> list[list[str]]:
    """The words after `ros2` of every documented request."""
    lines = (line for page in PAGES for line in REQUESTS.findall(page.read_text(encoding="utf-8")))
    return [re.findall(REQUEST_WORD, line) for line in lines]


def ask(session: Session, what: str, verb: str, name: str, *words: str) -> Any:
    """The result of `ros2 WHAT VERB NAME WORDS…`."""
    if (what, verb) == ("topic", "echo"):
        heard = session.listener.heard[name]
        count = len(heard)
        wait_until(lambda: len(heard) > count, f"a message on {name}")
        return heard[-1]
    if (what, verb) == ("service", "call"):
        package, _, kind = words[0].split("/")
        fields = yaml.safe_load(words[1].strip('"'))
        return session.listener.call(getattr(import_module(f"{package}.srv"), kind), name, **fields)
    assert (what, verb) == ("param", "set"), f"say here how `ros2 {what} {verb}` is asked"
    parameter = Parameter(name=words[0], value=ParameterValue(type=3, double_value=float(words[1])))
    return session.listener.call(SetParameters, f"{name}/set_parameters", parameters=[parameter]).results[0]


def test_documented_calls_to_the_node_work(session: Session) -> None:
    (session.directory / "room.ply").unlink(missing_ok=True)  # of another test
    answers = {words[1]: ask(session, *words) for words in requests()}
    assert answers["echo"].frames_received > 0
    assert answers["call"].success, answers["call"].message
    assert len(read_ply(answers["call"].path).points) == answers["call"].points
    assert answers["set"].successful, answers["set"].reason
    assert ask(session, "param", "set", NODE, "keyframes.motion", "0.06").successful  # as it was


def test_the_demo_maps_a_video(tmp_path: Path) -> None:
    path = tmp_path / "walk.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (160, 120))
    for frame in demo_sequence(2.0, width=160, height=120):
        writer.write(np.ascontiguousarray(frame.image[:, :, ::-1]))
    writer.release()
    command = ["make", "demo", f"SOURCE={path}", f"OUTPUT={tmp_path / 'out'}"]
    done = subprocess.run(
        command, cwd=ROOT, env=apart(), capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    frames = re.search(r"^frames +20 played, (\d+) received", done.stdout, re.M)
    assert frames is not None, done.stdout
    assert int(frames[1]) > 15  # a busy machine loses some
    assert (tmp_path / "out" / "preview.png").is_file()


def test_the_benchmark_of_the_node() -> None:
    """A short run: its values are meaningless, but every measurement exists."""
    command = [sys.executable, "-m", "fast3r_ros", "benchmark", "node", "--dds", "--seconds", "0.2"]
    done = subprocess.run(
        command, cwd=ROOT, env=apart(), capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["node"]["images_received"] > 0
    assert [each["sent"] > 0 for each in document["delivery"]] == [True] * 4

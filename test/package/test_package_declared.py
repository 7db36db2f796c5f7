"""The programs start with only the dependencies declared in package.xml."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("rclpy", reason="ROS is not installed here")

import rclpy
from declarations import KEYS, declared
from domains import domain
from fast3r_ros.msg import MappingStatus
from patience import HANG_SECONDS
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Environment of a process that can import only the dependencies declared in package.xml."""
    blocker = tmp_path / "blocker"
    blocker.mkdir()
    shutil.copy(ROOT / "test" / "helpers" / "only_declared.py", blocker / "sitecustomize.py")
    names = declared("depend", "exec_depend") - {"tf2_ros_py"} | {"tf2_ros"}
    names = {KEYS.get(name, name) for name in names} | {f"ros-{name.replace('_', '-')}" for name in names}
    names |= {"fast3r_ros"}
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(blocker), os.environ.get("PYTHONPATH", "")]),
        "DECLARED": " ".join(sorted(names)),
        "ROS_DOMAIN_ID": str(domain(93)),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def run(environ: dict[str, str], module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(
        command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=HANG_SECONDS
    )


def test_undeclared_packages_are_blocked(environ: dict[str, str]) -> None:
    for name in (
        "rosbags",
        "safetensors",
        "plyfile",
        "trimesh",
        "huggingface_hub",
        "evo",
        "viser",
        "hypothesis",
    ):
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"], env=environ, capture_output=True, text=True
        )
        assert "package.xml does not declare it" in done.stderr, name


def test_the_mapping_node_starts_with_the_declared_dependencies(environ: dict[str, str]) -> None:
    context = Context()
    rclpy.init(context=context, domain_id=int(environ["ROS_DOMAIN_ID"]))
    command = [sys.executable, "-m", "fast3r_ros.ros.mapping_node"]
    process = subprocess.Popen(
        command, env=environ, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    states: list[int] = []
    try:
        node = rclpy.create_node("declared", context=context)
        node.create_subscription(
            MappingStatus, "/fast3r_mapping/status", lambda status: states.append(status.state), 10
        )
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        end = time.monotonic() + HANG_SECONDS
        while MappingStatus.WAITING not in states and process.poll() is None and time.monotonic() < end:
            executor.spin_once(timeout_sec=0.5)
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=HANG_SECONDS)
        rclpy.shutdown(context=context)
    assert MappingStatus.WAITING in states, output
    limits = re.findall(
        r"only knows synthetic rooms.*\n.*ros2 launch fast3r_ros mapping.launch.py model:=", output
    )
    assert len(limits) == 2, output  # first and last


def test_the_replay_node_plays_with_the_declared_dependencies(
    environ: dict[str, str], images: Path, tmp_path: Path
) -> None:
    play = ["--ros-args", "-p", "wait_for_subscriber:=0.0", "-p"]
    done = run(environ, "fast3r_ros.ros.replay_node", *play, f"source:={images}")
    assert done.returncode == 0, done.stderr
    (tmp_path / "walk.mcap").write_bytes(b"\x89MCAP0\r\n")
    done = run(environ, "fast3r_ros.ros.replay_node", *play, f"source:={tmp_path / 'walk.mcap'}")
    assert done.returncode == 2
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    assert "mcap: pip install mcap" in line


def test_the_demo_starts_with_the_declared_dependencies(
    environ: dict[str, str], images: Path, tmp_path: Path
) -> None:
    done = run(environ, "fast3r_ros.ros.demo", "--source", str(images), "--output", str(tmp_path / "output"))
    assert (tmp_path / "output" / "preview.png").is_file(), done.stdout + done.stderr  # all of its steps
    assert "2 played, 2 received" in done.stdout
    lines = re.findall(r"only knows synthetic rooms.*\n  make demo SOURCE=(\S+) MODEL=\S+/\S+\n", done.stdout)
    assert lines == [str(images)] * 2, done.stdout  # first and last

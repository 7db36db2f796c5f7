"""Installation on a robot: docs/robot.md, the Dockerfile and the devcontainer, other Pythons, CMake."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
STEPS = r"^(rosdep install|python3 -m venv|touch|\. \.venv|\. /opt|pip install|colcon build)"
REMOVED = {  # what newer ament or CMake no longer has
    "ament_target_dependencies",
    "ament_export_interfaces",
    "rosidl_target_interfaces",
    "get_executable_path",
    "FindPythonInterp",
    "FindPythonLibs",
    "PythonInterp",
    "PythonLibs",
    "exec_program",
}


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile: its word and its text, comments and ends of lines removed."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def steps(commands: list[str]) -> list[str]:
    """The commands that install, as words, in alphabetical order."""
    texts = [command.replace('"', "").strip() for command in commands]
    return sorted(text for text in texts if re.search(STEPS, text))


def test_the_dockerfile_follows_the_documentation() -> None:
    arguments = dict(rest.split("=", 1) for word, rest in instructions() if word == "ARG")
    commands = [part for word, rest in instructions() if word == "RUN" for part in rest.split("&&")]
    for name, value in arguments.items():
        if name != "ROS_DISTRO":
            commands = [each.replace(f'"${name}"', value) for each in commands]
    page = (ROOT / "docs" / "robot.md").read_text()
    (block,) = re.findall(r"```text\n(sudo apt install python3-venv.*?)```", page, re.DOTALL)
    assert steps(commands) == steps([line.split("  #")[0] for line in block.splitlines()])
    assert len(steps(commands)) == 7


def test_the_container_runs_the_node_as_a_user() -> None:
    assert ("ARG", "ROS_DISTRO=jazzy") in instructions()
    assert ("FROM", "ros:${ROS_DISTRO} AS workspace") in instructions()
    (user,) = [rest for word, rest in instructions() if word == "USER"]
    assert int(user) > 0
    (entry,) = [json.loads(rest) for word, rest in instructions() if word == "ENTRYPOINT"]
    assert entry[:2] == ["/bin/bash", "-c"]
    assert shlex.split(entry[2])[-2:] == ["/ros_ws/install/fast3r_ros/lib/fast3r_ros/mapping_node", "$@"]


def test_a_linter_finds_nothing_in_the_dockerfile() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    assert linter.exists(), "pip install -r requirements/test.txt"
    done = subprocess.run([linter, "--no-color", "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_devcontainer_is_a_stage_of_the_dockerfile() -> None:
    settings = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert (ROOT / ".devcontainer" / settings["build"]["dockerfile"]).samefile(ROOT / "Dockerfile")
    stages = [rest.split(" AS ")[1] for word, rest in instructions() if word == "FROM"]
    assert settings["build"]["target"] in stages


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_the_sources_compile_on(version: str) -> None:
    python = shutil.which(f"python{version}")
    code = """
import sys, pathlib, warnings
warnings.simplefilter("error")
assert sys.version_info[:2] == tuple(map(int, sys.argv[1].split(".")))
for folder in ("fast3r_ros", "launch", "scripts"):
    for path in pathlib.Path(folder).rglob("*.py"):
        compile(path.read_text(encoding="utf-8"), path, "exec")
"""
    probe = python and subprocess.run([python, "-c", ""], capture_output=True, cwd=ROOT).returncode == 0
    if not probe:
        pytest.skip(f"Python {version} is not installed here")
    done = subprocess.run([python, "-c", code, version], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_cmake_uses_nothing_that_was_removed() -> None:
    for path in (ROOT / "CMakeLists.txt", ROOT / "interfaces" / "tf2_msgs" / "CMakeLists.txt"):
        text = path.read_text()
        assert not [name for name in REMOVED if name in text], path
        (oldest,) = re.findall(r"cmake_minimum_required\(VERSION (\d+)\.(\d+)\)", text)
        assert tuple(map(int, oldest)) >= (3, 10), f"{path}: CMake 4 does not take what is older"

"""Wrong use of the set-up gets one clear line and exit status 2."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "setup_environment.py"


def run_setup(*arguments, **variables):
    environ = {name: value for name, value in os.environ.items() if name in ("HOME", "LANG", "PATH")}
    environ.update(variables)
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, cwd=ROOT)


def assert_one_line(result, *parts):
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    for part in parts:
        assert part in result.stderr


@pytest.mark.parametrize("distro", ["humble", "iron", "foxy"])
def test_a_sourced_distribution_that_is_too_old(distro):
    assert_one_line(run_setup(ROS_DISTRO=distro, ROS_VERSION="2"), distro, "too old", "Jazzy")


def test_ros_1_is_too_old():
    assert_one_line(run_setup(ROS_DISTRO="noetic", ROS_VERSION="1"), "noetic", "too old")


def test_a_distribution_that_contradicts_the_sourced_one():
    assert_one_line(run_setup("--distro", "jazzy", ROS_DISTRO="kilted"), "jazzy", "kilted")


def test_a_distribution_that_pypi_does_not_have():
    assert_one_line(run_setup("--distro", "rolling"), "rolling", "kilted or jazzy")


@pytest.mark.parametrize("missing", ["g++", "make"])
def test_a_missing_compiler(missing, tmp_path):
    for program in {"g++", "make", "bash"} - {missing}:
        (tmp_path / program).symlink_to(shutil.which(program))
    assert_one_line(run_setup(PATH=str(tmp_path)), missing, "apt install")


@pytest.mark.parametrize(
    ("arguments", "variables", "suffix"),
    [
        ((), {}, ""),
        (("--distro", "kilted"), {}, ""),
        (("--distro", "jazzy"), {}, "-jazzy"),
        ((), {"ROS_DISTRO": "kilted"}, "-kilted-system"),
        (("--distro", "jazzy"), {"ROS_DISTRO": "jazzy"}, "-jazzy-system"),
    ],
)
def test_each_environment_has_folders_of_its_own(arguments, variables, suffix):
    result = run_setup("--print-suffix", *arguments, **variables)
    assert (result.returncode, result.stdout) == (0, f"{suffix}\n")

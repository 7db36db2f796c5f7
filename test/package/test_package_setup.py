"""A usage error of the set-up gives one clear line and exit status 2."""

import os
import runpy
import shutil
import subprocess
import sys
import venv
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
    assert_one_line(run_setup("--distro", "rolling"), "rolling", "jazzy or kilted")


@pytest.mark.parametrize("missing", ["g++", "make"])
def test_a_missing_compiler(missing, tmp_path):
    for program in {"g++", "make", "bash"} - {missing}:
        (tmp_path / program).symlink_to(shutil.which(program))
    assert_one_line(run_setup(PATH=str(tmp_path)), missing, "apt install")


@pytest.mark.parametrize(
    ("arguments", "variables", "suffix"),
    [
        ((), {}, ""),
        (("--distro", "kilted"), {}, "-kilted"),
        (("--distro", "jazzy"), {}, ""),
        ((), {"ROS_DISTRO": "kilted"}, "-kilted-system"),
        (("--distro", "jazzy"), {"ROS_DISTRO": "jazzy"}, "-jazzy-system"),
    ],
)
def test_each_environment_has_its_own_folders(arguments, variables, suffix):
    result = run_setup("--print-suffix", *arguments, **variables)
    assert (result.returncode, result.stdout) == (0, f"{suffix}\n")


@pytest.mark.parametrize("name", ["a b", "it's", 'a"b', "a(b)", "a;b", "a$b", "a:b"])
def test_a_folder_name_that_breaks_tools_is_rejected_at_once(name, tmp_path):
    scripts = tmp_path / name / "scripts"
    scripts.mkdir(parents=True)
    copy = shutil.copy(SCRIPT, scripts)
    result = subprocess.run([sys.executable, copy], capture_output=True, text=True, cwd="/")
    assert_one_line(result, repr(str(tmp_path / name)), "move it")
    assert [path.name for path in scripts.parent.iterdir()] == ["scripts"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "log").touch()  # no permission stops root, but a file where a folder is wanted does
    copy = shutil.copy(SCRIPT, tmp_path / "scripts")
    result = subprocess.run([sys.executable, copy], capture_output=True, text=True, cwd="/")
    assert_one_line(result, str(tmp_path / "log"))


def test_an_environment_that_was_moved_is_noticed(tmp_path):
    setup = runpy.run_path(str(SCRIPT))
    venv.create(tmp_path / "old" / ".venv", with_pip=False)
    (tmp_path / "link").symlink_to(tmp_path / "old" / ".venv")
    assert not setup["was_moved"](tmp_path / "old" / ".venv")
    assert not setup["was_moved"](tmp_path / "link")
    assert not setup["was_moved"](tmp_path / "none")
    (tmp_path / "old").rename(tmp_path / "new")
    assert setup["was_moved"](tmp_path / "new" / ".venv")


def test_the_wheels_of_two_distributions_are_not_mixed(tmp_path, monkeypatch):
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    setup = runpy.run_path(str(SCRIPT))
    stamps = tmp_path / ".venv" / "installed-requirements"
    stamps.mkdir(parents=True)
    jazzy = setup["choose_environment"]("jazzy")
    assert not setup["holds_other_ros"](tmp_path / ".venv", jazzy)
    (stamps / "ros-jazzy-0123").touch()
    assert not setup["holds_other_ros"](tmp_path / ".venv", jazzy)
    (stamps / "ros-kilted-0123").touch()
    assert setup["holds_other_ros"](tmp_path / ".venv", jazzy)


class NotedLog:
    """Notes what would be run."""

    def __init__(self):
        self.commands = []

    def run(self, title, command, environ=None):
        self.commands.append(list(map(str, command)))


@pytest.mark.parametrize(
    ("purpose", "model", "installed"),
    [("demo", "da3:small", True), ("demo", "demo", False), ("demo", "da3", False), ("demo", "toy:x", False)],
)
def test_the_package_of_a_network_is_installed_once_and_alone(purpose, model, installed, tmp_path):
    setup = runpy.run_path(str(SCRIPT))
    environment = setup["Environment"]("jazzy", False, "")
    (tmp_path / ".venv" / "installed-requirements").mkdir(parents=True)
    setup["install_networks"].__globals__["ROOT"] = tmp_path
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    log = NotedLog()
    for _ in range(2):
        setup["install_networks"](environment, purpose, model, log)
    ends = [command[-4:] for command in log.commands]
    wanted = ["--no-compile", "--no-deps", "-r", str(tmp_path / "requirements" / "da3.txt")]
    assert ends == ([wanted] if installed else [])


def test_the_index_of_pytorch_can_be_named(monkeypatch):
    monkeypatch.setenv("TORCH_INDEX", "https://example.com/simple")
    assert runpy.run_path(str(SCRIPT))["torch_index"]() == "https://example.com/simple"


def test_a_missing_interpreter_is_named():
    command = ["make", "--no-print-directory", "setup", "PYTHON=python9.9"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert [line for line in result.stderr.splitlines() if not line.startswith("make")] == [
        "fast3r_ros: there is no program python9.9 here (PYTHON=… names the interpreter)"
    ]

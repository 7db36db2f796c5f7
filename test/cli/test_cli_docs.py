"""The documentation: it builds without a warning, its links lead somewhere, and its commands are run."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rosbags.rosbag2 import Writer
from rosbags.typesys import Stores, get_typestore

from fast3r_ros.cli import main, parse
from fast3r_ros.io.sources import open_source
from fast3r_ros.model.checkpoint import DEMO_DIRECTORY
from fast3r_ros.synthetic.sequence import demo_sequence

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> Iterator[str]:
    """The fenced code blocks of a page in one language."""
    yield from re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def shown_commands() -> list[str]:
    """Every `$ fast3r …` line of the `console` blocks, in the order of the pages, each once."""
    lines = [
        line.removeprefix("$ ")
        for page in PAGES
        for block in blocks(page, "console")
        for line in block.splitlines()
    ]
    return list(dict.fromkeys(lines))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, video):
    """A folder with the files that the documentation talks about."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copy(video, folder / "walk.mp4")  # FFmpeg goes by the content, not by the name
    (folder / "photos").mkdir()
    for index, frame in enumerate(open_source(video)):
        Image.fromarray(frame.image).save(folder / "photos" / f"{index}.png")
    write_bag(folder / "walk_bag")
    return folder


def write_bag(path: Path) -> None:
    """A bag with /camera/image_raw, written by rosbags."""
    store = get_typestore(Stores.ROS2_JAZZY)
    kind = "sensor_msgs/msg/Image"
    with Writer(path, version=9) as writer:
        connection = writer.add_connection("/camera/image_raw", kind, typestore=store)
        for frame in demo_sequence(2.0, width=112, height=80):
            stamp = store.types["builtin_interfaces/msg/Time"](
                frame.stamp_ns // 10**9, frame.stamp_ns % 10**9
            )
            header = store.types["std_msgs/msg/Header"](stamp, "camera")
            pixels = np.ascontiguousarray(frame.image).reshape(-1)
            message = store.types[kind](header, 80, 112, "rgb8", 0, 336, pixels)
            writer.write(connection, frame.stamp_ns, store.serialize_cdr(message, kind))


@pytest.mark.parametrize("command", shown_commands())
def test_shown_command_runs(folder, small_model, command, monkeypatch, capsys):
    program, *arguments = shlex.split(command)
    assert program == "fast3r", f"{command}: show programs of others in a bash block"
    if not (DEMO_DIRECTORY / "config.json").is_file():
        if "demo" in arguments:
            pytest.skip("the demo model is not in this tree: it has not been trained yet")
        if arguments[0] == "reconstruct":
            arguments += ["--model", str(small_model)]
    if arguments[0] == "reconstruct":
        # whether the model understands the scene is not the documentation's concern
        arguments += ["--set", "registration.min_view_share=0", "--set", "registration.min_inlier_share=0"]
    monkeypatch.chdir(folder)
    if arguments[0] == "convert" and not (folder / "walk_map").exists():
        pytest.fail("convert is shown before anything makes walk_map")
    assert main(arguments) == 0, capsys.readouterr().err


# What is added to a command of a `bash` block so that it takes seconds; the last of two equal options counts.
SHORTER = {
    "reconstruct": ["--set", "registration.min_view_share=0", "--set", "registration.min_inlier_share=0"],
    "golden": [],
    "evaluate": ["--scenes", "1", "--views", "2", "4", "--tables", "pose"],
    "benchmark network": ["--model", "demo", "--views", "2", "--size", "64x48", "--runs", "1"],
    "benchmark window": ["--model", "demo", "--views", "3", "--slides", "1", "--size", "64x48"],
    "benchmark acceleration": ["--views", "3", "--runs", "1"],
    "benchmark scale": ["--model", "demo", "--views", "3", "--size", "64x48"],
}
# Part of a command -> why no test of documentation runs it.
NOT_RUN = {
    ".rrd": "needs rerun, which is not installed for the tests; test/io runs it where it is",
    "--parallel": "needs torchrun; test_cli_parallel.py runs it",
    "view ": "waits for a person; test/viewer runs it",
    "jedyang97/": "needs a network connection, and a GPU to be pleasant",
    "--device cuda": "needs a GPU",
    "benchmark report": "needs what other benchmarks printed; test/benchmark runs it",
    "benchmark mapping": "takes minutes; test/mapping runs its scenarios",
    "train ": "takes long; test/training runs it",
}


def bash_lines() -> list[tuple[str, str]]:
    """(page, line without comment) of every line of the `bash` blocks."""
    return [
        (page.name, line.split(" #")[0].strip())
        for page in PAGES
        for block in blocks(page, "bash")
        for line in block.splitlines()
        if line and not line.startswith("#")
    ]


def bash_commands() -> list[str]:
    """The arguments of every `fast3r …` or `python -m fast3r_ros …` in the `bash` blocks, each once."""
    matches = [re.match(r"(?:fast3r|\S+.* -m fast3r_ros) (.*)", line) for _, line in bash_lines()]
    return list(dict.fromkeys(match[1] for match in matches if match))


@pytest.mark.parametrize("command", bash_commands())
def test_command_of_a_bash_block_runs_in_a_short_form(folder, command, monkeypatch, capsys):
    arguments = shlex.split(command)
    parse(arguments)  # ends the test for an argument that does not exist
    reason = next((why for part, why in NOT_RUN.items() if part in command), None)
    if reason is not None:
        pytest.skip(f"fast3r {command}: {reason}; its arguments are parsed")
    shorter = [extra for start, extra in SHORTER.items() if command.startswith(start)]
    assert shorter, f"say in this test how `fast3r {command}` is run, or why not"
    if not (folder / "test" / "golden").exists():
        (folder / "test" / "golden").mkdir(parents=True)
        for name in ("loss", "metric", "pose", "preprocess"):  # without the slow ones
            (folder / "test" / "golden" / name).symlink_to(ROOT / "test" / "golden" / name)
    monkeypatch.chdir(folder)
    assert main([*arguments, *shorter[0]]) == 0, capsys.readouterr().err


def test_what_other_lines_of_bash_blocks_name_exists():
    """They need ROS, a network connection or minutes; but their targets, files and arguments are real."""
    makefile = (ROOT / "Makefile").read_text()
    extras = configparser.ConfigParser()
    extras.read(ROOT / "setup.cfg")
    for page, line in bash_lines():
        for target in re.findall(r"^make (\w+)", line):
            assert re.search(rf"^{target}:", makefile, re.M), f"{page}: {line}"
        for name in re.findall(r" ([A-Z]+)=", line):
            assert re.search(rf"^{name} \?=", makefile, re.M), f"{page}: {line}"
        for extra in re.findall(r"pip install '.*\[(\w+)\]'", line):
            assert extra in extras["options.extras_require"], f"{page}: {line}"
        for launch, given in re.findall(r"ros2 launch fast3r_ros (\S+)(.*)", line):
            text = (ROOT / "launch" / launch).read_text()
            for argument in re.findall(r"(\w+):=", given):
                assert f'"{argument}"' in text, f"{page}: {launch} has no argument {argument}"
        for path in re.findall(
            r"(?:python|pip install -r|pytest -q|--config|^\.) ((?!install)[\w/]+[\w./]*)", line
        ):
            assert (ROOT / path).exists(), f"{page}: {line}"


def test_documentation_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -r requirements/test.txt")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "index.html").is_file()


def test_script_makes_the_pictures(tmp_path, child_environment):
    """Without a browser, which is slow; test/viewer has one."""
    if not (DEMO_DIRECTORY / "config.json").is_file():
        pytest.skip("the demo model is not in this tree: it has not been trained yet")
    script = [sys.executable, ROOT / "docs" / "pictures" / "regenerate.py", "--source", "synthetic:2"]
    environment = {**child_environment, "PATH": str(tmp_path)}
    done = subprocess.run(
        [*script, "--scenes", "1", "--output", tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "viewer.png is left as it is" in done.stdout, done.stderr
    for name in ("demo.png", "more_views.png"):
        with Image.open(tmp_path / name) as picture, Image.open(ROOT / "docs" / "pictures" / name) as shown:
            assert picture.width == shown.width


def test_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)", text) if "://" not in target]
    assert targets
    for target in targets:
        assert (ROOT / target).is_file(), target

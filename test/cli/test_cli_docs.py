"""The documentation: it builds without a warning, its pages exist, and the commands that it shows are run."""

from __future__ import annotations

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

from fast3r_ros.cli import COMMANDS, main
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


def test_commands_that_are_not_run_still_exist():
    """In `bash` blocks, which need ROS, a network or a person, at least sub-commands and files are real."""
    names = {name for name, _, _ in COMMANDS}
    for page in PAGES:
        for block in blocks(page, "bash"):
            for sub_command in re.findall(r"^(?:fast3r|python -m fast3r_ros) (\w+)", block, re.M):
                assert sub_command in names, f"{page.name} shows fast3r {sub_command}"
            for target in re.findall(r"^make (\w+)", block, re.M):
                assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), f"make {target}"
            for launch in re.findall(r"ros2 launch fast3r_ros (\S+)", block):
                assert (ROOT / "launch" / launch).is_file(), f"{page.name} shows {launch}"


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


def test_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)", text) if "://" not in target]
    assert targets
    for target in targets:
        assert (ROOT / target).is_file(), target

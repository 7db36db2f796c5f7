"""The demo model's limit is printed first and last, and in the preview, unless images are rendered."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from patience import HANG_SECONDS

from fast3r_ros.cli import main
from fast3r_ros.demo_model import DEMO_DIRECTORY, REAL_MODEL, is_demo
from fast3r_ros.io import pipeline

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["--max-views", "4", "--rate", "2", "--device", "cpu"]
WARNING = (
    r"the demo model only knows synthetic rooms.*?2\.6 GB.*?FAIR Noncommercial.*?\n"
    r"  (fast3r reconstruct [^\n]*)\n"
)


@pytest.fixture
def caveats(monkeypatch) -> list[str]:
    """The caveats passed to the preview."""
    seen: list[str] = []
    draw = pipeline.write_preview

    def watched(path, **content):
        seen.append(content["caveat"])
        draw(path, **content)

    monkeypatch.setattr(pipeline, "write_preview", watched)
    return seen


def test_a_video_with_the_demo_model_is_warned_of_first_and_last(video, tmp_path, capsys, caveats):
    output = tmp_path / "a map"
    assert main(["reconstruct", str(video), "--output", str(output), *SHORT]) in (0, 1)
    said = capsys.readouterr().out
    lines = re.findall(WARNING, said, re.S)
    assert len(lines) == 2
    assert said.startswith("the demo model")
    assert said.endswith(f"{lines[1]}\n")
    wanted = ["fast3r", "reconstruct", str(video), "--model", REAL_MODEL, "--output", str(output)]
    assert shlex.split(lines[0]) == wanted
    assert caveats == [json.loads((output / "report.json").read_text())["caveat"]]
    assert caveats[0] in said


def test_the_line_that_is_given_can_be_run(video, tmp_path, capsys, small_model, monkeypatch):
    main(["reconstruct", str(video), "--output", str(tmp_path / "a map"), *SHORT])
    words = shlex.split(re.findall(WARNING, capsys.readouterr().out, re.S)[0])
    shutil.copytree(small_model, tmp_path / REAL_MODEL)  # a folder of that name goes before the hub
    monkeypatch.chdir(tmp_path)
    assert main([*words[1:], *SHORT]) in (0, 1)
    assert "demo model" not in capsys.readouterr().out


@pytest.mark.parametrize("source", ["synthetic:2", "video"])
def test_no_warning_for_rendered_images(source, video, small_model, tmp_path, capsys, caveats):
    arguments = [str(video), "--model", str(small_model)] if source == "video" else [source]
    main(["reconstruct", *arguments, "--output", str(tmp_path / "map"), *SHORT])
    assert "only knows" not in capsys.readouterr().out
    assert caveats == [""]


def test_an_error_comes_after_the_warning(tmp_path):
    """Where no image can be read the error is the last line on a terminal, which shows both streams."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.jpg").write_text("not an image")
    shown = io.StringIO()
    with redirect_stdout(shown), redirect_stderr(shown):
        assert main(["reconstruct", str(tmp_path / "images"), "--output", str(tmp_path / "map")]) == 2
    said = shown.getvalue()
    assert said.count("only knows synthetic rooms") == 1
    assert said.rstrip().splitlines()[-1].startswith("fast3r reconstruct: none of the 1 images can be read")


def test_the_folder_of_the_demo_model_is_the_demo_model(small_model):
    assert is_demo("demo")
    assert is_demo(os.path.relpath(DEMO_DIRECTORY))
    assert not is_demo(small_model)


@pytest.mark.slow
def test_view_warns_first_and_last(video, tmp_path):
    pytest.importorskip("viser", reason="viser is not installed: pip install -r requirements/viewer.txt")
    main(["reconstruct", str(video), "--output", str(tmp_path / "map"), *SHORT])
    command = [sys.executable, "-u", "-m", "fast3r_ros", "view", tmp_path / "map", "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        before = []
        for line in iter(process.stdout.readline, ""):
            before.append(line)
            if "cameras: http://127.0.0.1" in line:
                break
        assert "only knows synthetic rooms" in before[0]
        process.send_signal(signal.SIGINT)
        after, _ = process.communicate(timeout=HANG_SECONDS)
    finally:
        process.kill()
    assert "only knows synthetic rooms" in after
    assert after.rstrip().splitlines()[-1].strip().startswith("fast3r reconstruct")

"""`fast3r view` in a separate process: it serves the page and ends silently on Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from patience import HANG_SECONDS

from fast3r_ros.cli import main
from fast3r_ros.io.ply import write_ply
from fast3r_ros.mapping.data import Cloud

pytest.importorskip("viser", reason="viser is not installed: pip install -r requirements/viewer.txt")
ROOT = Path(__file__).resolve().parents[2]


def test_view_serves_a_ply_until_ctrl_c(tmp_path):
    points = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    write_ply(tmp_path / "map.ply", Cloud(points, np.zeros((500, 3), np.uint8), np.ones(500, np.float32)))
    command = [sys.executable, "-u", "-m", "fast3r_ros", "view", tmp_path / "map.ply", "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address = None
        while address is None:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            address = re.search(r"500 points, 0 cameras: (http://127\.0\.0\.1:\d+)", line)
        with urllib.request.urlopen(address[1], timeout=HANG_SECONDS) as page:
            assert b"<html" in page.read()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == 0
        assert "Traceback" not in errors
    finally:
        process.kill()


@pytest.mark.parametrize(
    "content",
    [
        "raise RuntimeError('half\\ninstalled')",
        "x = = 1",
        "ViserServer: int",
        "import nothing_of_this_name",
        "raise OSError('a library is missing')",
    ],
)
def test_a_damaged_viser_gives_a_one_line_error(tmp_path, content):
    (tmp_path / "viser.py").write_text(content)
    write_ply(
        tmp_path / "map.ply", Cloud(*(np.zeros(s, t) for s, t in (((1, 3), "f4"), ((1, 3), "u1"), (1, "f4"))))
    )
    done = subprocess.run(
        [sys.executable, "-m", "fast3r_ros", "view", tmp_path / "map.ply"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "the web viewer needs viser" in line
    assert "pip install" in line


def test_view_of_nothing_gives_a_one_line_error(tmp_path, capsys):
    assert main(["view", str(tmp_path / "nothing")]) == 2
    assert "no such file or folder" in capsys.readouterr().err

"""A source of any length in window mode: memory stays bounded, and Ctrl-C costs only time.

FAST3R_LONG_FRAMES=3000 makes the second test as long as what the documentation promises, with the demo model
on the built-in walk (a quarter of an hour of a core); prints the memory that it saw.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import cycle, islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from fast3r_ros.cli import main
from fast3r_ros.io.pipeline import Progress, begin_results, map_source
from fast3r_ros.io.recorder import Recorder
from fast3r_ros.io.results import read_results
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.synthetic.oracle_network import OracleNetwork
from fast3r_ros.synthetic.sequence import demo_sequence

pytestmark = pytest.mark.slow

FRAMES = 240
CONFIG = {
    "keyframes.motion": 0.0,  # every frame becomes a keyframe
    "keyframes.max_similarity": 1.0,
    "keyframes.sharpness": 0.0,
    "keyframes.contrast": 0.0,
    "loop.background": False,
    "map.memory_mb": 6.0,
}
LONG = int(os.environ.get("FAST3R_LONG_FRAMES", "42"))
SHORT = LONG < 1000
VIEWS = LONG if SHORT else LONG // 7  # written at least
MAP_MB = 30
# Every frame is a keyframe, whatever random weights make of it.
EVERY_FRAME = [
    "--set=keyframes.motion=0",
    "--set=keyframes.max_similarity=1",
    "--set=registration.min_view_share=0",
    "--set=registration.min_inlier_share=0",
]
GROWTH = 50_000  # bytes that a frame may cost when the map is full; without a bound it is 110 kB and more


def resident_bytes(process: int | str = "self") -> int:
    """Memory of a process in RAM."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_does_not_grow_with_the_number_of_frames(tmp_path):
    """After the map has reached its bound, a frame costs little more than its pose.

    Without the bound a frame of this size costs 110 kB.
    """
    sequence = demo_sequence(FRAMES / 10, width=48, height=32)
    mapper = Mapper(OracleNetwork(sequence), MapperConfig.from_flat(CONFIG))
    begin_results(tmp_path)
    memory = []

    def note(_: object) -> None:
        memory.append(resident_bytes())

    map_source(iter(sequence), mapper, Recorder(tmp_path), Progress(), note)
    assert mapper.status().keyframes > 0.9 * FRAMES
    assert mapper.status().map_bytes < 8 * 2**20
    late = np.array(memory[FRAMES // 2 :], float)
    growth = np.polyfit(np.arange(len(late)), late, 1)[0]
    assert growth < GROWTH, f"{growth:.0f} bytes per frame"


@pytest.fixture
def source(tmp_path, video, small_model) -> list[str]:
    """A list that goes through the video again and again, for random weights; or a long walk."""
    if not SHORT:
        return [f"synthetic:{LONG / 10:g}", "--model", "demo", f"--set=map.memory_mb={MAP_MB}"]
    capture = cv2.VideoCapture(str(video))
    names = [f"{index}.png" for index in range(30)]
    for name in names:
        cv2.imwrite(str(tmp_path / name), capture.read()[1])
    (tmp_path / "list.txt").write_text("\n".join(islice(cycle(names), LONG)))
    return [str(tmp_path / "list.txt"), "--model", str(small_model), *EVERY_FRAME]


def watch(process: subprocess.Popen[str], output: Path, until: int) -> dict[int, int]:
    """Memory of a run at every seventh of its views, until it has written so many or has ended."""
    memory: dict[int, int] = {}
    end = time.monotonic() + 120 + LONG
    while process.poll() is None:
        views = len(os.listdir(output / "images")) if (output / "images").is_dir() else 0
        if views and views // (VIEWS // 7) not in memory:
            memory[views // (VIEWS // 7)] = resident_bytes(process.pid)
        if views >= until:
            break
        assert time.monotonic() < end, f"{views} of {until} views after a long time"
        time.sleep(0.05)
    return memory


def test_memory_is_bounded_and_an_interrupted_run_gives_the_same_once_it_is_resumed(
    tmp_path, child_environment, source, capsys
):
    whole, output = tmp_path / "whole", tmp_path / "out"
    arguments = ["reconstruct", *source, "--output"]
    command = [sys.executable, "-m", "fast3r_ros", *arguments]
    options = {"env": child_environment, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, str(whole)], **options) as process:
        memory = watch(process, whole, 2 * LONG)
        assert process.wait(120 + LONG) == 0, process.stderr.read()
    with capsys.disabled():
        print({seventh * VIEWS // 7: f"{used / 1e6:.0f} MB" for seventh, used in memory.items()})
    if not SHORT:  # a few frames do not fill the map
        after_two, latest = memory[min(each for each in memory if each >= 2)], memory[max(memory)]
        assert latest < after_two + MAP_MB * 1e6 + GROWTH * LONG, memory

    with subprocess.Popen([*command, str(output)], **options) as process:
        watch(process, output, VIEWS // 3)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in errors
    report = json.loads((output / "report.json").read_text())
    assert (report["complete"], report["stopped"]) == (False, "interrupted")
    assert 0 < report["frames"] < LONG
    # those of the window that was interrupted may be in the map without their pictures
    assert 0 < len(read_results(output).cameras) <= report["keyframes"]

    capsys.readouterr()
    assert main([*arguments, str(output), "--resume"]) == 0
    assert "starts over from the first frame" in capsys.readouterr().out
    assert json.loads((output / "report.json").read_text())["frames"] == LONG
    files = [path for path in whole.rglob("*") if path.is_file() and path.suffix != ".json"]
    files.remove(whole / "preview.png")  # it tells the time that the network took
    assert len(files) > 3 * VIEWS
    for path in (*files, whole / "cameras.json"):
        assert (output / path.relative_to(whole)).read_bytes() == path.read_bytes(), path.name
    assert main([*arguments, str(output), "--resume"]) == 0
    assert "complete result" in capsys.readouterr().out

"""A source of any length in window mode: memory stays bounded, and Ctrl-C costs only time.

FAST3R_LONG_FRAMES=3000 makes the second test as long as what the documentation promises, with the demo model
on the built-in walk (a quarter of an hour of a core); prints the memory that it saw.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from fast3r_ros.cli import main
from fast3r_ros.io import recorder
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


@pytest.fixture
def watched(monkeypatch) -> Callable[..., dict[int, int]]:
    """watched(arguments, status, until): memory at every seventh of the views; Ctrl-C with view `until`."""
    write = recorder.write_view_images

    def run(arguments: list[str], status: int, until: int | None = None) -> dict[int, int]:
        memory: dict[int, int] = {}
        views = 0

        def written(*things: object) -> None:
            nonlocal views
            write(*things)
            views += 1
            if views % (VIEWS // 7) == 0:
                memory[views // (VIEWS // 7)] = resident_bytes()
            if views == until:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(recorder, "write_view_images", written)
        assert main(arguments) == status
        monkeypatch.setattr(recorder, "write_view_images", write)
        return memory

    return run


def test_memory_is_bounded_and_an_interrupted_run_gives_the_same_once_it_is_resumed(
    tmp_path, source, watched, capsys
):
    whole, output = tmp_path / "whole", tmp_path / "out"
    arguments = ["reconstruct", *source, "--output"]
    memory = watched([*arguments, str(whole)], 0)
    with capsys.disabled():
        print({seventh * VIEWS // 7: f"{used / 1e6:.0f} MB" for seventh, used in memory.items()})
    if not SHORT:  # a few frames do not fill the map
        after_two, latest = memory[min(each for each in memory if each >= 2)], memory[max(memory)]
        assert latest < after_two + MAP_MB * 1e6 + GROWTH * LONG, memory

    watched([*arguments, str(output)], 130, VIEWS // 3)
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

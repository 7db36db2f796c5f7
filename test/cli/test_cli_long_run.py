"""A source of any length: memory stays bounded in window mode."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fast3r_ros.io.offline import Progress, begin_results, map_source
from fast3r_ros.io.recorder import Recorder
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.synthetic.network_double import TrueNetwork
from fast3r_ros.synthetic.sequence import demo_sequence

FRAMES = 240
CONFIG = {
    "keyframes.motion": 0.0,  # every frame becomes a keyframe
    "keyframes.max_similarity": 1.0,
    "keyframes.sharpness": 0.0,
    "keyframes.contrast": 0.0,
    "loop.background": False,
    "map.memory_mb": 6.0,
}


def resident_bytes() -> int:
    """Memory of this process in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_does_not_grow_with_the_number_of_frames(tmp_path):
    """After the map has reached its bound, a frame costs little more than its pose.

    Without the bound a frame of this size costs 110 kB.
    """
    sequence = demo_sequence(FRAMES / 10, width=48, height=32)
    mapper = Mapper(TrueNetwork(sequence), MapperConfig.from_flat(CONFIG))
    begin_results(tmp_path)
    memory = []

    def note(_: object) -> None:
        memory.append(resident_bytes())

    map_source(iter(sequence), mapper, Recorder(tmp_path), Progress(), note)
    assert mapper.status().keyframes > 0.9 * FRAMES
    assert mapper.status().map_bytes < 8 * 2**20
    late = np.array(memory[FRAMES // 2 :], float)
    growth = np.polyfit(np.arange(len(late)), late, 1)[0]
    assert growth < 50_000, f"{growth:.0f} bytes per frame"

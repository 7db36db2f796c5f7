"""A source of any length: memory stays bounded in window mode."""

from __future__ import annotations

import os
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch

from fast3r_ros.io.offline import Progress, begin_results, map_source
from fast3r_ros.io.recorder import Recorder
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import Frame
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.mapping.network import Fast3RNetwork
from fast3r_ros.model import Fast3R, Fast3RConfig
from fast3r_ros.model.config import DecoderConfig, EncoderConfig, HeadConfig
from fast3r_ros.synthetic.sequence import demo_sequence

FRAMES = 320
CONFIG = {
    "keyframes.motion": 0.0,  # every frame becomes a keyframe
    "keyframes.max_similarity": 1.0,
    "keyframes.sharpness": 0.0,
    "keyframes.contrast": 0.0,
    "registration.min_view_share": 0.0,  # random weights never pass the gates
    "registration.min_inlier_share": 0.0,
    "registration.min_view_confidence": 0.0,
    "loop.background": False,
    "map.memory_mb": 2.0,
}


def tiny_network() -> Fast3RNetwork:
    """Random weights, images of 48 x 32 pixels."""
    torch.manual_seed(0)
    config = Fast3RConfig(
        encoder=EncoderConfig(embed_dim=32, depth=1, num_heads=1, img_size=48),
        decoder=DecoderConfig(embed_dim=32, enc_embed_dim=32, depth=10, num_heads=1),
        head=HeadConfig(
            with_local_head=True, dpt_reassemble_dims=(8, 8, 8, 8), dpt_feature_dim=8, dpt_last_dim=8
        ),
    )
    return Fast3RNetwork(Fast3R(config).eval())


def resident_bytes() -> int:
    """Memory of this process in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_does_not_grow_with_the_number_of_frames(tmp_path):
    """After the map has reached its bound, a frame costs a few kilobytes: its pose, not its points.

    Without the bound a frame of this size costs 40 kB.
    """
    pictures = [frame.image for frame in demo_sequence(4.0, width=48, height=32)]
    images = islice(cycle(pictures + pictures[::-1]), FRAMES)
    frames = (Frame(index * 10**8, "camera", image) for index, image in enumerate(images))
    mapper = Mapper(tiny_network(), MapperConfig.from_flat(CONFIG))
    begin_results(tmp_path)
    memory, keyframes = [], []

    def note(_: object) -> None:
        memory.append(resident_bytes())
        keyframes.append(len(mapper.map.keyframes))

    map_source(frames, mapper, Recorder(tmp_path), Progress(), note)
    assert keyframes[-1] > 0.9 * FRAMES
    assert mapper.status().map_bytes < 2.5 * 2**20
    late = np.array(memory[FRAMES // 3 :], float)
    growth = np.polyfit(np.arange(len(late)), late, 1)[0]
    assert growth < 12_000, f"{growth:.0f} bytes per frame"

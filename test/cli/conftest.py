"""A small model with random weights and a short video, enough to run the commands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from patience import HANG_SECONDS

import fast3r_ros.io.sources.video  # noqa: F401 - quiets FFmpeg, which reads its log level once
from fast3r_ros.model import Fast3R, Fast3RConfig
from fast3r_ros.model.network_config import DecoderConfig, EncoderConfig, HeadConfig
from fast3r_ros.synthetic.sequence import demo_sequence

torch.set_num_threads(1)  # small networks are slower with more, above all beside other work
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> Path:
    """A checkpoint folder of a network with 112 x 80 pixel images."""
    torch.manual_seed(0)
    config = Fast3RConfig(
        encoder=EncoderConfig(embed_dim=64, depth=2, num_heads=2, img_size=112),
        decoder=DecoderConfig(embed_dim=64, enc_embed_dim=64, depth=10, num_heads=2),
        head=HeadConfig(
            with_local_head=True, dpt_reassemble_dims=(8, 8, 16, 16), dpt_feature_dim=16, dpt_last_dim=8
        ),
    )
    folder = tmp_path_factory.mktemp("model")
    Fast3R(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def video(tmp_path_factory) -> Path:
    """30 frames of 112 x 80 pixels at 10 Hz, a walk through the demo room."""
    path = tmp_path_factory.mktemp("video") / "walk.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (112, 80))
    for frame in demo_sequence(3.0, width=112, height=80):
        writer.write(np.ascontiguousarray(frame.image[:, :, ::-1]))
    writer.release()
    return path


@pytest.fixture(scope="session")
def child_environment() -> dict[str, str]:
    """The environment of a child process: this source tree, one thread, no display."""
    kept = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def fast3r(child_environment) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python -m fast3r_ros …` in a separate process."""

    def run(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fast3r_ros", *map(str, arguments)]
        return subprocess.run(
            command, cwd=cwd, env=child_environment, capture_output=True, text=True, timeout=HANG_SECONDS
        )

    return run

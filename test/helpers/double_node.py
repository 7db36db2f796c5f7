"""The mapping node with a stand-in network, started by tests as a separate process.

Usage: double_node.py KIND [NAME=VALUE …] [ROS arguments].  NAME is any field of NodeConfig, or `wait`:
seconds that an image waits for its transforms and mask, for tests in which none may be late.  KIND is one of
  SECONDS  disturbed ground truth of the synthetic walk (cameras camera_optical_frame, front, rear), in passes
           of this length
  noise:SECONDS  any images, windows of nonsense, in passes of this length
  keep:FOLDER  as noise, and every received image is saved as FOLDER/<stamp in ns>.npy
  budget:VIEWS   as SECONDS, but windows of more views run out of memory
  fault:SECONDS  as SECONDS, but the first activation fails
"""

import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml

from fast3r_ros.mapping.data import EncodedView, Frame, Reconstruction, WindowNetwork
from fast3r_ros.ros import waiting
from fast3r_ros.ros.inputs import Inputs
from fast3r_ros.ros.mapping_node import main
from fast3r_ros.ros.node_config import NodeConfig
from fast3r_ros.ros.parameters import config_from_values
from fast3r_ros.synthetic.oracle_network import OracleNetwork
from fast3r_ros.synthetic.sequence import demo_sequence

CAMERAS = ("camera_optical_frame", "front", "rear")


def oracle_network() -> OracleNetwork:
    return OracleNetwork([replace(demo_sequence(), camera=name) for name in CAMERAS])


class Slow(WindowNetwork):
    """A network whose passes take a given time and are limited to a number of views."""

    def __init__(self, network: WindowNetwork, seconds: float = 0.0, views: int = 1000) -> None:
        self._network, self._seconds, self._views = network, seconds, views

    def encode(self, frame: Frame) -> EncodedView:
        return self._network.encode(frame)

    def reconstruct(self, views: Sequence[EncodedView]) -> Reconstruction:
        time.sleep(self._seconds)
        if len(views) > self._views:
            raise torch.cuda.OutOfMemoryError(f"a window of {len(views)} views does not fit")
        return self._network.reconstruct(views)


class Noise(WindowNetwork):
    """Accepts any image and returns nonsense.  folder: where images are saved, None: not at all."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def encode(self, frame: Frame) -> EncodedView:
        if self._folder is not None:
            part = self._folder / f"{frame.stamp_ns}.part"
            with part.open("wb") as file:
                np.save(file, frame.image)
            part.rename(part.with_suffix(".npy"))
        small = cv2.resize(frame.image, (64, 48))
        scale = np.diag([64 / frame.image.shape[1], 48 / frame.image.shape[0], 1.0])
        descriptor = np.random.default_rng(frame.stamp_ns).normal(size=64).astype(np.float32)
        return EncodedView(small, scale, None, descriptor / np.linalg.norm(descriptor), None)

    def reconstruct(self, views: Sequence[EncodedView]) -> Reconstruction:
        rng = np.random.default_rng(0)
        points = torch.from_numpy(rng.normal(3, 1, (len(views), 48, 64, 3)).astype(np.float32)).unbind()
        confidence = torch.ones(len(views), 48, 64).unbind()
        return Reconstruction(points, confidence, points, confidence)


def load_network(config: NodeConfig) -> WindowNetwork:
    kind, _, value = sys.argv[1].rpartition(":")
    if kind == "noise":
        return Slow(Noise(), float(value))
    if kind == "keep":
        return Noise(Path(value))
    if kind == "budget":
        return Slow(oracle_network(), views=int(value))
    return Slow(oracle_network(), float(value))


def fail_at_the_first_activation() -> None:
    opened = Inputs.open

    def fail(inputs: Inputs) -> None:
        Inputs.open = opened
        raise RuntimeError("no room for another subscription")

    Inputs.open = fail


if __name__ == "__main__":
    if sys.argv[1].startswith("fault:"):
        fail_at_the_first_activation()
    given = list(itertools.takewhile(lambda word: word != "--ros-args", sys.argv[2:]))
    values = dict(word.split("=", 1) for word in given)
    waiting.WAIT_SECONDS = float(values.pop("wait", waiting.WAIT_SECONDS))
    defaults = config_from_values({name: yaml.safe_load(text) for name, text in values.items()})
    main([sys.argv[0], *sys.argv[2 + len(given) :]], load_network, defaults)

"""The mapping node with a network for any images, whose faults a file switches while the node runs.

Usage: faulty_node.py FILE [ROS arguments].  FILE holds the name of a fault, see `FAULTS`; "slow:SECONDS"
makes passes take that long, or until the file names another fault; "" or no file: none.  The network sees a
bumpy wall from a camera that moves with the images' stamps, so that its windows fit together whatever the
images show.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from bad_results import DISTURBED

from fast3r_ros.mapping import mapper as mapper_module
from fast3r_ros.mapping.data import EncodedView, Frame, Reconstruction, WindowNetwork
from fast3r_ros.mapping.map_builder import MapBuilder
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.ros.camera import Intake
from fast3r_ros.ros.inputs import Inputs
from fast3r_ros.ros.mapping_node import main
from fast3r_ros.ros.outputs import Outputs

HEIGHT, WIDTH, FOCAL = 36, 48, 40.0
LATENT = 64


class Fault:
    """The fault named in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        try:
            return self._path.read_text().strip()
        except OSError:
            return ""

    def slow_down(self) -> None:
        """Take the time of a slow pass."""
        fault, start = str(self), time.monotonic()
        name, _, seconds = fault.partition(":")
        while name == "slow" and str(self) == fault and time.monotonic() - start < float(seconds):
            time.sleep(min(0.02, float(seconds)))

    def fails(self, name: str) -> bool:
        return str(self) == name


def switch(path: Path, fault: str) -> None:
    """Switch on a fault of the node whose file is `path`; the write is atomic."""
    part = path.with_suffix(".part")
    part.write_text(fault)
    part.rename(path)


class Wall(WindowNetwork):
    """A network that sees the wall.  Its tokens are the camera's pose (4, 4) in the world."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
        x, y = (columns + 0.5 - WIDTH / 2) / FOCAL, (rows + 0.5 - HEIGHT / 2) / FOCAL
        self._rays = np.stack([x, y, np.ones_like(x)], axis=-1).astype(np.float32)

    def encode(self, frame: Frame) -> EncodedView:
        if self._fault.fails("encode"):
            raise ValueError("the encoder failed")
        if self._fault.fails("memory of encode"):
            raise torch.cuda.OutOfMemoryError("no memory for the encoder")
        height, width = frame.image.shape[:2]
        pose = world_from_camera(frame.stamp_ns)
        descriptor = np.random.default_rng(round(pose[0, 3] * 5) + 100).normal(size=LATENT)
        descriptor += 0.3 * np.random.default_rng(frame.stamp_ns % 2**32).normal(size=LATENT)
        descriptor /= np.linalg.norm(descriptor)
        if self._fault.fails("descriptor"):
            descriptor[0] = np.nan
        small = np.asarray(cv2.resize(frame.image, (WIDTH, HEIGHT)), np.uint8)
        scale = np.diag([WIDTH / width, HEIGHT / height, 1.0])
        return EncodedView(small, scale, None, descriptor.astype(np.float32), pose)

    def reconstruct(self, views: Sequence[EncodedView]) -> Reconstruction:
        self._fault.slow_down()
        if self._fault.fails("network"):
            raise ZeroDivisionError("the decoder failed")
        if self._fault.fails("memory"):
            raise torch.cuda.OutOfMemoryError(f"no memory for {len(views)} views")
        first_from_world = np.linalg.inv(views[0].tokens)
        everywhere, own = [], []
        for view in views:
            points = self._rays * self._depth(view.tokens)[..., None]
            first_from_camera = first_from_world @ view.tokens
            placed = points @ first_from_camera[:3, :3].T + first_from_camera[:3, 3]
            everywhere.append(torch.from_numpy(placed.astype(np.float32)))
            own.append(torch.from_numpy(points))
        sure = [torch.full((HEIGHT, WIDTH), 5.0) for _ in views]
        result = Reconstruction(everywhere, sure, own, sure)
        disturb = DISTURBED.get(str(self._fault))
        return result if disturb is None else disturb(result)

    def _depth(self, pose: Any) -> Any:
        u, v = (self._rays[..., axis] * 3 + pose[axis, 3] for axis in (0, 1))
        return (3 + 0.3 * np.sin(2 * u) + 0.2 * np.cos(3 * v)).astype(np.float32)


def world_from_camera(stamp_ns: int) -> Any:
    """The camera's pose: back and forth along the wall."""
    seconds = stamp_ns % 10**12 * 1e-9
    pose = np.eye(4)
    pose[0, 3], pose[1, 3] = 0.6 * np.sin(0.4 * seconds), 0.05 * seconds % 1.0
    return pose


# faults of a stage that raises; the name of each is the fault's
RAISING: dict[str, tuple[Any, str]] = {
    "conversion": (Intake, "frame"),
    "selection": (Mapper, "add_frame"),
    "registration": (mapper_module, "track"),
    "fusion": (MapBuilder, "add"),
    "loop": (MapBuilder, "close_loop"),
    "publishing": (Outputs, "_publish_window"),
    "handing over": (Outputs, "window"),
    "adapting": (Inputs, "adapt"),
}
FAULTS = ("encode", "memory of encode", "network", "memory", "descriptor", *DISTURBED, *RAISING)


def make_breakable(fault: Fault) -> None:
    """Make each of `RAISING` raise while its fault is on."""
    for name, (owner, attribute) in RAISING.items():
        setattr(owner, attribute, _breakable(getattr(owner, attribute), name, fault))


def _breakable(function: Callable[..., Any], name: str, fault: Fault) -> Callable[..., Any]:
    def broken(*arguments: Any, **more: Any) -> Any:
        if fault.fails(name):
            raise RuntimeError(f"{name} failed")
        return function(*arguments, **more)

    return broken


if __name__ == "__main__":
    torch.set_num_threads(1)
    the_fault = Fault(Path(sys.argv[1]))
    make_breakable(the_fault)
    main([sys.argv[0], *sys.argv[2:]], lambda config: Wall(the_fault))

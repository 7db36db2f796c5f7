"""Image sequences with ground truth, rendered or recorded, and the sequence of `make demo`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fast3r_ros.mapping.data import Float32, Frame, UInt8
from fast3r_ros.synthetic.render import render
from fast3r_ros.synthetic.rooms import SyntheticScene, ring_scene, room_scene
from fast3r_ros.synthetic.trajectories import room_path, route_path

Float64 = NDArray[np.float64]
DEMO_SEED = 20_000_003  # outside of the seeds that training draws from


@dataclass(frozen=True)
class SyntheticSequence:
    """A camera on a path through a scene; frames are rendered on demand.

    world_from_camera: (F, 4, 4) float64, optical axes, metres.  intrinsics: (3, 3).  Frame i has the stamp
    `start_ns + i * 1e9 / rate`.  Frames carry the exact depth if `with_depth`.
    """

    scene: SyntheticScene
    world_from_camera: Float64
    intrinsics: Float64
    width: int
    height: int
    rate: float = 10.0
    start_ns: int = 1_000_000_000
    camera: str = "camera_optical_frame"
    with_depth: bool = False

    def __len__(self) -> int:
        """The number of frames."""
        return len(self.world_from_camera)

    def __getitem__(self, index: int) -> Frame:
        """Render one frame.  Raises IndexError beyond the end."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"frame {index} of a sequence of {len(self)}")
        index %= len(self)
        view = render(
            self.scene,
            torch.from_numpy(self.world_from_camera[index : index + 1]),
            torch.from_numpy(self.intrinsics),
            self.width,
            self.height,
        )
        return Frame(
            stamp_ns=self.stamp_ns(index),
            camera=self.camera,
            image=view.images[0].numpy(),
            intrinsics=self.intrinsics,
            depth=view.depth[0].numpy() if self.with_depth else None,
        )

    def __iter__(self) -> Iterator[Frame]:
        """All frames in order."""
        return (self[index] for index in range(len(self)))

    def stamp_ns(self, index: int) -> int:
        """The stamp of frame `index` in nanoseconds."""
        return self.start_ns + round(index * 1e9 / self.rate)

    def depth(self, index: int) -> Float32:
        """The exact depth of frame `index`, (h, w) metres, 0 where nothing is hit; rendered each time."""
        depth = replace(self, with_depth=True)[index].depth
        assert depth is not None
        return depth


@dataclass(frozen=True)
class RecordedSequence:
    """Recorded images with measured depth and poses, as input of the stand-in network.

    images: (F, h, w, 3) uint8 RGB.  depths: (F, h, w) metres, 0 where nothing was measured.
    world_from_camera: (F, 4, 4), optical axes, metres.  intrinsics: (3, 3).  Frames carry no depth.
    """

    images: UInt8
    depths: NDArray[np.floating]
    world_from_camera: Float64
    intrinsics: Float64
    rate: float = 10.0
    start_ns: int = 1_000_000_000
    camera: str = "camera_optical_frame"

    @staticmethod
    def read(path: Path, **options: Any) -> RecordedSequence:
        """A NumPy archive of `images`, `depth`, `poses` and `K`; options: rate, start_ns, camera.

        The rotations are projected to SO(3).
        """
        with np.load(path) as archive:
            images, depths, poses, intrinsics = (archive[name] for name in ("images", "depth", "poses", "K"))
        left, _, right = np.linalg.svd(poses[:, :3, :3])
        poses[:, :3, :3] = left @ right
        return RecordedSequence(images, depths, poses, intrinsics, **options)

    @property
    def width(self) -> int:
        """Pixels per row."""
        return self.images.shape[2]

    @property
    def height(self) -> int:
        """Rows."""
        return self.images.shape[1]

    def __len__(self) -> int:
        """The number of frames."""
        return len(self.images)

    def __getitem__(self, index: int) -> Frame:
        """One frame.  Raises IndexError beyond the end."""
        return Frame(self.stamp_ns(index % len(self)), self.camera, self.images[index], self.intrinsics)

    def __iter__(self) -> Iterator[Frame]:
        """All frames in order."""
        return (self[index] for index in range(len(self)))

    def stamp_ns(self, index: int) -> int:
        """The stamp of frame `index` in nanoseconds."""
        return self.start_ns + round(index * 1e9 / self.rate)

    def depth(self, index: int) -> Float32:
        """The measured depth of frame `index`, (h, w) metres."""
        return np.asarray(self.depths[index], np.float32)

    def part(self, indices: Sequence[int], **changes: Any) -> RecordedSequence:
        """Some of the frames, in this order, as a separate sequence with its own stamps."""
        chosen = {name: getattr(self, name)[indices] for name in ("images", "depths", "world_from_camera")}
        return replace(self, **chosen, **changes)


def pinhole(width: int, height: int, horizontal_fov: float) -> Float64:
    """(3, 3) intrinsics with square pixels and the principal point in the middle; the angle in radians."""
    focal = width / 2 / np.tan(horizontal_fov / 2)
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])


def demo_sequence(
    seconds: float = 12.0, rate: float = 10.0, width: int = 320, height: int = 240, with_depth: bool = False
) -> SyntheticSequence:
    """The short walk through one furnished room that `make demo` maps; not one of the training scenes."""
    scene = room_scene(DEMO_SEED, size=(5.5, 4.5, 2.6), painted=True)
    path = room_path(scene, round(seconds * rate), seed=1, speed=0.3 / rate)
    intrinsics = pinhole(width, height, np.deg2rad(70))
    return SyntheticSequence(scene, path, intrinsics, width, height, rate, with_depth=with_depth)


def loop_sequence(
    frames: int = 600,
    length: float = 60.0,
    width: int = 224,
    height: int = 160,
    seed: int = 0,
    laps: float = 1.0,
    rate: float = 10.0,
    with_depth: bool = True,
) -> SyntheticSequence:
    """A walk of about `length` metres per lap through a ring of ten rooms, back to where it started."""
    scene = ring_scene(seed, route_length=length)
    path = route_path(scene, frames, seed=seed, laps=laps)
    intrinsics = pinhole(width, height, np.deg2rad(70))
    return SyntheticSequence(scene, path, intrinsics, width, height, rate, with_depth=with_depth)

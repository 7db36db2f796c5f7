"""Training samples from recorded sequences with ground truth, in the formats of `datasets`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from fast3r_ros.datasets import PosedFrame, PosedSequence, open_dataset
from fast3r_ros.datasets.posed import sample_depth
from fast3r_ros.errors import UserError
from fast3r_ros.geometry.intrinsics import transform_intrinsics
from fast3r_ros.mapping.data import Float32, Float64, UInt8


@dataclass(frozen=True)
class RecordedViews:
    """V views of one sequence.  images: (V, H, W, 3) uint8 RGB.  depth: (V, H, W) metres, 0 where unknown.

    intrinsics: (V, 3, 3).  world_from_camera: (V, 4, 4).  Pixel centres at integer + 0.5.
    """

    images: UInt8
    depth: Float32
    intrinsics: Float64
    world_from_camera: Float64


@lru_cache(maxsize=16)
def recorded_sequences(dataset: str, root: str) -> tuple[PosedSequence, ...]:
    """The sequences with depth of a dataset; opened once.  Raises UserError when there are none."""
    with_depth = [
        PosedSequence(
            sequence.name, tuple(frame for frame in sequence.frames if frame.read_depth is not None)
        )
        for sequence in open_dataset(dataset, Path(root))
    ]
    sequences = tuple(sequence for sequence in with_depth if sequence.frames)
    if not sequences:
        raise UserError(f"{root} holds no depth maps, so it cannot be used for training")
    return sequences


def recorded_views(
    sequences: tuple[PosedSequence, ...],
    views: int,
    window: int,
    width: int,
    height: int,
    rng: np.random.Generator,
) -> RecordedViews:
    """`views` different frames in random order from a window of `window` frames of a random sequence.

    Every image is scaled to cover width x height and cropped around its centre.  If every sequence is shorter
    than `views` (Habitat has five views per place), frames are repeated, as in the release.
    Raises UserError when no sequence has two frames, or a file cannot be read.
    """
    long_enough = [sequence for sequence in sequences if len(sequence.frames) >= views]
    long_enough = long_enough or [sequence for sequence in sequences if len(sequence.frames) >= 2]
    if not long_enough:
        raise UserError("no recorded sequence has two frames with depth")
    frames = long_enough[int(rng.integers(len(long_enough)))].frames
    span = min(max(window, views), len(frames))
    first = int(rng.integers(len(frames) - span + 1))
    order = rng.permutation(span)
    chosen = [frames[first + int(order[number % span])] for number in range(views)]
    images, depths, intrinsics = zip(*(_fit(frame, width, height) for frame in chosen), strict=True)
    poses = np.stack([frame.world_from_camera for frame in chosen])
    return RecordedViews(np.stack(images), np.stack(depths), np.stack(intrinsics), poses)


def _fit(frame: PosedFrame, width: int, height: int) -> tuple[UInt8, Float32, Float64]:
    """One frame's image, depth and intrinsics at training size."""
    assert frame.read_depth is not None
    image, depth = frame.read_image(), frame.read_depth()
    scale = max(width / image.shape[1], height / image.shape[0])
    left, top = (scale * image.shape[1] - width) / 2, (scale * image.shape[0] - height) / 2
    fitted_from_image = np.array([[scale, 0.0, -left], [0.0, scale, -top], [0.0, 0.0, 1.0]])
    size = max(width, round(scale * image.shape[1])), max(height, round(scale * image.shape[0]))
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    x, y = (size[0] - width) // 2, (size[1] - height) // 2
    return (
        resized[y : y + height, x : x + width].astype(np.uint8),
        sample_depth(depth, image.shape, fitted_from_image, (height, width)),
        transform_intrinsics(fitted_from_image, frame.intrinsics),
    )

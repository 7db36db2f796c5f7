"""The views of one evaluation sample at network size, with their ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fast3r_ros.datasets.posed import PosedFrame, PosedSequence, sample_depth
from fast3r_ros.errors import UserError
from fast3r_ros.geometry.intrinsics import pixel_rays, transform_intrinsics
from fast3r_ros.geometry.rigid import transform_points
from fast3r_ros.mapping.data import Float32, Float64, UInt8
from fast3r_ros.model.preprocess import prepare_image


@dataclass(frozen=True)
class Views:
    """V views of equal size (h, w) at network size.

    images: (V, h, w, 3) uint8 RGB.  intrinsics: (V, 3, 3) at this size.  world_from_camera: (V, 4, 4)
    float64, metres.  depth: (V, h, w) float32 z in metres, 0 where unknown; None when the dataset has none.
    """

    images: UInt8
    intrinsics: Float64
    world_from_camera: Float64
    depth: Float32 | None

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(V, h, w): pixels whose depth is known."""
        return np.zeros(self.images.shape[:3], bool) if self.depth is None else self.depth > 0

    def part(self, chosen: Sequence[int]) -> Views:
        """Some of the views."""
        index = list(chosen)
        depth = None if self.depth is None else self.depth[index]
        return Views(self.images[index], self.intrinsics[index], self.world_from_camera[index], depth)

    def points_world(self) -> Float32:
        """(V, h, w, 3) float32 true points in the world; the camera's position where the depth is unknown."""
        assert self.depth is not None
        height, width = self.depth.shape[1:]
        points = [
            transform_points(pose, pixel_rays(matrix, height, width) * depth[..., None])
            for pose, matrix, depth in zip(self.world_from_camera, self.intrinsics, self.depth, strict=True)
        ]
        return np.stack(points).astype(np.float32)


def spread_frames(sequence: PosedSequence, count: int, max_gap: int | None = None) -> list[int]:
    """Indices of `count` frames, evenly spread from the first, at most `max_gap` frames apart.

    Without `max_gap` the last frame is included.  Raises UserError when the sequence is shorter.
    """
    available = len(sequence.frames)
    if available < count:
        raise UserError(f"{sequence.name} has {available} frames with a pose, {count} views are needed")
    last = available - 1 if max_gap is None else min(available - 1, max_gap * (count - 1))
    return [int(number) for number in np.linspace(0, last, count).round()]


def read_views(frames: Sequence[PosedFrame], long_side: int) -> Views:
    """Read, resize and crop; the depth is sampled at the nearest pixel.

    Raises UserError when a file cannot be read or the views have different sizes.
    """
    images = [frame.read_image() for frame in frames]
    prepared = [prepare_image(image, long_side) for image in images]
    sizes = {view.pixels.shape for view in prepared}
    if len(sizes) != 1:
        raise UserError(f"the images of one sample have different sizes at the network: {sorted(sizes)}")
    transforms = [view.pixel_transform for view in prepared]
    depths = [
        sample_depth(frame.read_depth(), image.shape, transform, prepared[0].pixels.shape[:2])
        for frame, image, transform in zip(frames, images, transforms, strict=True)
        if frame.read_depth is not None
    ]
    return Views(
        np.stack([view.pixels for view in prepared]),
        np.stack(
            [transform_intrinsics(t, frame.intrinsics) for t, frame in zip(transforms, frames, strict=True)]
        ),
        np.stack([frame.world_from_camera for frame in frames]),
        np.stack(depths) if len(depths) == len(frames) else None,
    )

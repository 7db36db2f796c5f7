"""The views of one evaluation sample at network size, with their truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fast3r_ros.errors import UserError
from fast3r_ros.evaluation.datasets.posed import PosedFrame, PosedSequence
from fast3r_ros.geometry.intrinsics import pixel_rays, transform_intrinsics
from fast3r_ros.geometry.rigid import transform_points
from fast3r_ros.mapping.data import Float32, Float64, UInt8
from fast3r_ros.model.preprocess import prepare_image


@dataclass(frozen=True)
class Views:
    """V views of equal size (h, w) as the network sees them.

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

    def points_world(self) -> Float32:
        """(V, h, w, 3) float32 true points in the world; the camera's own place where the depth is
        unknown.
        """
        assert self.depth is not None
        height, width = self.depth.shape[1:]
        points = [
            transform_points(pose, pixel_rays(matrix, height, width) * depth[..., None])
            for pose, matrix, depth in zip(self.world_from_camera, self.intrinsics, self.depth, strict=True)
        ]
        return np.stack(points).astype(np.float32)


def spread_views(sequence: PosedSequence, count: int, max_gap: int | None = None) -> list[PosedFrame]:
    """`count` frames spread evenly from the first on, at most `max_gap` frames apart.

    Raises UserError when the sequence is shorter.
    """
    available = len(sequence.frames)
    if available < count:
        raise UserError(f"{sequence.name} has {available} frames with a pose, {count} views were asked for")
    last = available - 1 if max_gap is None else min(available - 1, max_gap * (count - 1))
    chosen = np.linspace(0, last, count).round().astype(int)
    return [sequence.frames[index] for index in chosen]


def read_views(frames: Sequence[PosedFrame], long_side: int) -> Views:
    """Read, resize and crop; the depth is sampled at the nearest pixel.

    Raises UserError when a file cannot be read or the views come out in different sizes.
    """
    prepared = [prepare_image(frame.read_image(), long_side) for frame in frames]
    sizes = {view.pixels.shape for view in prepared}
    if len(sizes) != 1:
        raise UserError(f"the images of one sample have different sizes at the network: {sorted(sizes)}")
    depths = [
        _depth_at_network(frame, view.pixel_transform, view.pixels.shape[:2], long_side)
        for frame, view in zip(frames, prepared, strict=True)
    ]
    known = [depth for depth in depths if depth is not None]
    return Views(
        np.stack([view.pixels for view in prepared]),
        np.stack(
            [
                transform_intrinsics(view.pixel_transform, frame.intrinsics)
                for view, frame in zip(prepared, frames, strict=True)
            ]
        ),
        np.stack([frame.world_from_camera for frame in frames]),
        np.stack(known) if len(known) == len(depths) else None,
    )


def _depth_at_network(
    frame: PosedFrame, network_from_image: Float64, shape: tuple[int, ...], long_side: int
) -> Float32 | None:
    """(h, w) depth; the depth map may have another size than the image but sees the same."""
    if frame.read_depth is None:
        return None
    depth, image_shape = frame.read_depth(), frame.read_image().shape
    rows, columns = (
        _source_pixels(shape[axis], network_from_image[1 - axis], image_shape[axis], depth.shape[axis])
        for axis in (0, 1)
    )
    return depth[np.ix_(rows, columns)]


def _source_pixels(count: int, transform_row: Float64, image_size: int, depth_size: int) -> NDArray[np.int64]:
    """Depth rows (or columns) under the centres of `count` network rows (or columns)."""
    scale = transform_row[:2].sum()  # one of the two is zero: the transform has no rotation
    in_image = (np.arange(count) + 0.5 - transform_row[2]) / scale
    return np.clip(np.floor(in_image * depth_size / image_size), 0, depth_size - 1).astype(np.int64)

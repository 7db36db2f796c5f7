"""Weights and inputs of the golden cases, made by recipe from a name (test/golden/README.md)."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fast3r_ros.geometry.rigid import inverse, rigid_matrix, transform_points
from fast3r_ros.geometry.rotation import matrix_from_quaternion
from fast3r_ros.model.types import Pointmap, ViewPrediction
from fast3r_ros.training.losses import GroundTruth

Array = NDArray[Any]


def generator(name: str) -> np.random.Generator:
    """The random generator for a name."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode("utf-8"))))


def weights(shapes: Mapping[str, Sequence[int]], aliases: Mapping[str, str]) -> dict[str, Tensor]:
    """A full state dict, float32; `aliases` maps the second name of a tensor to its first."""
    return {key: _weight(aliases.get(key, key), tuple(shape)) for key, shape in shapes.items()}


def _weight(key: str, shape: tuple[int, ...]) -> Tensor:
    values = generator(key).standard_normal(shape)
    if key.endswith(".bias"):
        values = 0.02 * values
    elif len(shape) == 1:
        values = 1 + 0.05 * values
    else:
        values = values / np.sqrt(np.prod(shape[1:]))
    if key.endswith("dpt.head.4.weight"):
        values = values * 0.15
    return torch.from_numpy(values.astype(np.float32))


def views(case: str, batch: int, sizes: Iterable[Sequence[int]]) -> list[Tensor]:
    """The input images of a forward case, one (batch, 3, H, W) tensor in [-1, 1] per (H, W)."""
    return [
        torch.from_numpy(
            np.stack([_view(f"{case}/{sample}/image/{number}", *size) for sample in range(batch)])
        )
        for number, size in enumerate(sizes)
    ]


def _view(name: str, height: int, width: int) -> Array:
    source = generator(name)
    frequency, phase = source.uniform(-3, 3, (3, 2)), source.uniform(0, 2 * np.pi, 3)
    noise = source.standard_normal((3, height, width))
    waves = _waves(height, width, frequency, phase)
    return np.clip(0.7 * np.moveaxis(waves, -1, 0) + 0.2 * noise, -1, 1).astype(np.float32)


def picture(width: int, height: int) -> NDArray[np.uint8]:
    """The source image of a preprocessing case, (H, W, 3) uint8 RGB."""
    source = generator(f"preprocess/{width}x{height}")
    frequency, phase = source.uniform(-6, 6, (3, 2)), source.uniform(0, 2 * np.pi, 3)
    noise = source.standard_normal((height, width, 3))
    values = 127.5 + 90 * _waves(height, width, frequency, phase) + 12 * noise
    return np.round(np.clip(values, 0, 255)).astype(np.uint8)


def _waves(height: int, width: int, frequency: Array, phase: Array) -> Array:
    """(H, W, 3) sines of the position in the image, one plane per colour."""
    x = (np.arange(width) + 0.5)[None, :, None] / width
    y = (np.arange(height) + 0.5)[:, None, None] / height
    return np.sin(2 * np.pi * (frequency[:, 0] * x + frequency[:, 1] * y) + phase)


def camera_pose(source: np.random.Generator) -> Array:
    """A random world_from_camera, (4, 4) float64."""
    quaternion = source.standard_normal(4)  # w first
    return rigid_matrix(matrix_from_quaternion(np.roll(quaternion, -1)), 0.5 * source.standard_normal(3))


def posed_view(case: Mapping[str, Any]) -> tuple[Array, Array, Array]:
    """World points, points in the camera, both (1, H, W, 3), and confidences (1, H, W) of a pose case.

    float32; the pixel centres of this recipe are at integer coordinates.
    """
    source = generator("pose/" + case["name"])
    world_from_camera = camera_pose(source)
    height, width, focal = case["height"], case["width"], case["focal"]
    v, u = np.mgrid[:height, :width].astype(np.float64)
    z = 2 + np.abs(np.sin(u / width * 5) + np.cos(v / height * 4)) + source.uniform(0, 0.3, (height, width))
    points = np.stack([(u - width / 2) / focal * z, (v - height / 2) / focal * z, z], axis=-1)
    shape = points.shape
    world = points @ world_from_camera[:3, :3].T + world_from_camera[:3, 3]
    world = world + case["noise"] * source.standard_normal(shape)
    bad = source.uniform(size=(height, width)) < case["outliers"]
    world[bad] += source.standard_normal((int(bad.sum()), 3))
    local = points + case["noise"] * source.standard_normal(shape)
    local[bad] += source.standard_normal((int(bad.sum()), 3))
    world, local, confidence = (
        array.astype(np.float32)[None] for array in (world, local, np.where(bad, 0.5, 2.0))
    )
    return world, local, confidence


def loss_input(case: Mapping[str, Any]) -> tuple[list[ViewPrediction], GroundTruth]:
    """Predictions and ground truth of a loss case."""
    source = generator("loss/" + case["name"])
    shape = (case["batch"], case["height"], case["width"])

    def points(depth: float) -> Array:
        return source.standard_normal((*shape, 3)) + np.array([0, 0, depth])

    def pointmap(depth: float) -> Pointmap:
        arrays = (points(depth), 1 + np.exp(0.5 * source.standard_normal(shape)))
        return Pointmap(*(torch.from_numpy(array.astype(np.float32)) for array in arrays))

    truth, predictions = [], []
    for _ in range(case["views"]):
        world, valid = points(4), source.uniform(size=shape) > 0.2
        poses = np.stack([camera_pose(source) for _ in range(case["batch"])])
        camera = np.stack([transform_points(inverse(a), b) for a, b in zip(poses, world, strict=True)])
        truth.append((camera.astype(np.float32), valid, poses))
        global_points, local_points = pointmap(3), pointmap(5)
        predictions.append(ViewPrediction(global_points, local_points if case["local"] else None))
    stacked = (torch.from_numpy(np.stack(part, axis=1)) for part in zip(*truth, strict=True))
    return predictions, GroundTruth(*stacked)

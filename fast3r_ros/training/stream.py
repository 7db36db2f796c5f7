"""Training batches: views of synthetic rooms and of recorded sequences, with ground truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fast3r_ros.datasets import PosedFrame, PosedSequence, open_dataset
from fast3r_ros.datasets.posed import sample_depth
from fast3r_ros.errors import UserError
from fast3r_ros.geometry.intrinsics import transform_intrinsics
from fast3r_ros.mapping.data import Float32, Float64, UInt8
from fast3r_ros.model import normalize
from fast3r_ros.model.transformer import TRAINED_ROWS
from fast3r_ros.synthetic.render import points_camera, render
from fast3r_ros.synthetic.rooms import SyntheticScene, corridor_scene, room_scene
from fast3r_ros.synthetic.sequence import pinhole
from fast3r_ros.synthetic.trajectories import Motion, look_around, scattered, walk
from fast3r_ros.training.training_config import DataConfig, RecordedConfig, TrainConfig


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


TRAINING_SCENES = 10_000_000  # training uses scene seeds below this, evaluation above
HELD_OUT = 20_000_000


@dataclass(frozen=True)
class Batch:
    """B samples of V views with their ground truth.

    images: (B, V, 3, H, W) float32 in [-1, 1].  points_camera: (B, V, H, W, 3) float32 metres, each view in
    its own camera.  valid: (B, V, H, W) bool.  world_from_camera: (B, V, 4, 4) float64.  intrinsics:
    (B, V, 3, 3) float64.  image_indices: (B, V) int64, 0 for view 0, else distinct rows of the index table.
    """

    images: Tensor
    points_camera: Tensor
    valid: Tensor
    world_from_camera: Tensor
    intrinsics: Tensor
    image_indices: Tensor


@dataclass(frozen=True)
class _Disturbance:
    """The disturbances of a sample's images.

    gain: (V,).  blank: (V, 4) rows and columns to blank: y0, y1, x0, x1.
    """

    gain: NDArray[np.float64]
    blank: NDArray[np.int64]
    noise_seed: int


@dataclass(frozen=True)
class _Sample:
    scene: SyntheticScene
    poses: NDArray[np.float64]
    intrinsics: NDArray[np.float64]
    indices: NDArray[np.int64]
    disturbance: _Disturbance


def view_count(config: TrainConfig, step: int) -> int:
    """Number of views of this step's samples."""
    rng = np.random.default_rng([config.seed, step, 0])
    return int(rng.choice(config.stage(step).views))


def training_batch(
    config: TrainConfig, step: int, device: torch.device | str = "cpu", part: int = 0, parts: int = 1
) -> Batch:
    """Part `part` of `parts` of one step's batch; a part is one pass of one process."""
    views = view_count(config, step)
    count = max(config.views_per_step(step) // views // parts, 1) * parts
    motion = config.stage(step).motion
    samples, recorded = [], []
    for number in range(part, count, parts):
        place = (0, 1 + number % config.data.samples) if config.data.samples else (step, 1 + number)
        rng = np.random.default_rng([config.seed, *place])
        source = _choose_source(config.recorded, rng)
        if source is None:
            samples.append(_draw(config.data, rng, int(rng.integers(TRAINING_SCENES)), views, motion))
        else:
            recorded.append(_load(source, config.data, rng, views, device))
    synthetic = [_render(samples, config.data, device, disturbed=True)] if samples else []
    return _join(synthetic + recorded)


def held_out_batch(
    data: DataConfig,
    scenes: range,
    views: int,
    motion: float,
    device: torch.device | str = "cpu",
) -> Batch:
    """One walk per held-out scene number, undisturbed and the same for every configuration of training."""
    samples = []
    for number in scenes:
        rng = np.random.default_rng([HELD_OUT, number])
        samples.append(_draw(data, rng, HELD_OUT + 100 + number, views, motion, kind="walk"))
    return _render(samples, data, device, disturbed=False)


def _draw(
    data: DataConfig, rng: np.random.Generator, seed: int, views: int, motion: float, kind: str = ""
) -> _Sample:
    painted = bool(np.random.default_rng([seed, 5]).random() < data.painted)
    corridor = rng.random() < 0.05 and not painted
    scene = corridor_scene(seed) if corridor else room_scene(seed, painted=painted)
    if not kind:  # fewer views may be farther apart
        motion *= rng.uniform(1, max(1.0, 8 / views))
    moves = Motion(
        step=(motion * data.step[0], motion * data.step[1]),
        turn=(np.deg2rad(motion * data.turn[0]), np.deg2rad(motion * data.turn[1])),
        height=data.camera_height,
        pitch=np.deg2rad(data.pitch),
        roll=np.deg2rad(data.roll),
    )
    share = rng.random()
    if kind == "walk" or share < data.walks:
        poses = walk(scene, rng, views, moves)
    elif share < data.walks + data.look_arounds:
        sweep = min(np.deg2rad(2 * data.turn[1]) * views * motion, 2 * np.pi) * rng.uniform(0.2, 1)
        poses = look_around(scene, rng, views, sweep)
    else:
        spread, angle = motion * rng.uniform(*data.spread), motion * np.deg2rad(rng.uniform(*data.angle))
        poses = scattered(scene, rng, views, spread, angle, moves)
    if not kind and rng.random() < 0.5:  # any view may be the reference
        first = int(rng.integers(views))
        poses[[0, first]] = poses[[first, 0]]
    fov = np.deg2rad(rng.uniform(*data.horizontal_fov))
    indices = _draw_indices(rng, views)
    return _Sample(
        scene=scene,
        poses=poses,
        intrinsics=pinhole(data.width, data.height, fov),
        indices=indices,
        disturbance=_draw_disturbance(data, rng, views),
    )


def _draw_indices(rng: np.random.Generator, views: int) -> NDArray[np.int64]:
    return np.append(0, 1 + rng.permutation(TRAINED_ROWS - 1)[: views - 1])


def _draw_disturbance(data: DataConfig, rng: np.random.Generator, views: int) -> _Disturbance:
    return _Disturbance(
        gain=1 + data.exposure * rng.uniform(-1, 1, views),
        blank=_blanks(data, rng, views),
        noise_seed=int(rng.integers(2**62)),
    )


def _choose_source(recorded: Sequence[RecordedConfig], rng: np.random.Generator) -> RecordedConfig | None:
    """The recorded dataset of a sample; None for a synthetic room."""
    if not recorded:
        return None
    edges = np.cumsum([source.share for source in recorded])
    number = int(np.searchsorted(edges, rng.random(), side="right"))
    return recorded[number] if number < len(recorded) else None


def _load(
    source: RecordedConfig, data: DataConfig, rng: np.random.Generator, views: int, device: torch.device | str
) -> Batch:
    """A batch of one sample from a recorded dataset."""
    sequences = recorded_sequences(source.dataset, source.root)
    loaded = recorded_views(sequences, views, source.window, data.width, data.height, rng)
    indices = _draw_indices(rng, views)
    depth = torch.from_numpy(loaded.depth).to(device)
    intrinsics = torch.from_numpy(loaded.intrinsics).to(device)
    images, valid = normalize(torch.from_numpy(loaded.images).to(device)), depth > 0
    _disturb(_draw_disturbance(data, rng, views), data, images, valid)
    return Batch(
        images=images[None],
        points_camera=points_camera(depth, intrinsics.float())[None],
        valid=valid[None],
        world_from_camera=torch.from_numpy(loaded.world_from_camera).to(device)[None],
        intrinsics=intrinsics[None],
        image_indices=torch.from_numpy(indices)[None],
    )


def _join(batches: Sequence[Batch]) -> Batch:
    fields = dataclasses.fields(Batch)
    return Batch(*(torch.cat([getattr(batch, field.name) for batch in batches]) for field in fields))


def _blanks(data: DataConfig, rng: np.random.Generator, views: int) -> NDArray[np.int64]:
    """The blanked rectangle of each view, empty for most."""
    size = np.array([data.height, data.width])
    low = (rng.uniform(0, 0.7, (views, 2)) * size).astype(np.int64)
    extent = (rng.uniform(0.2, 0.6, (views, 2)) * size).astype(np.int64)
    extent[rng.random(views) >= data.partial] = 0
    high = np.minimum(low + extent, size)
    return np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=-1)


def _render(samples: list[_Sample], data: DataConfig, device: torch.device | str, disturbed: bool) -> Batch:
    poses = torch.from_numpy(np.stack([sample.poses for sample in samples])).to(device)
    intrinsics = torch.from_numpy(np.stack([sample.intrinsics for sample in samples])).to(device)
    scenes = [sample.scene for sample in samples]
    result = render(scenes, poses, intrinsics[:, None], data.width, data.height, device)
    images = normalize(result.images)
    valid = result.depth > 0
    if disturbed:
        for index, sample in enumerate(samples):
            _disturb(sample.disturbance, data, images[index], valid[index])
    return Batch(
        images=images,
        points_camera=points_camera(result.depth, intrinsics[:, None].float()),
        valid=valid,
        world_from_camera=poses,
        intrinsics=intrinsics[:, None].expand(-1, poses.shape[1], -1, -1),
        image_indices=torch.from_numpy(np.stack([sample.indices for sample in samples])),
    )


def _disturb(disturbance: _Disturbance, data: DataConfig, images: Tensor, valid: Tensor) -> None:
    """Change exposure, add noise and blank rectangles of one sample's images (V, 3, H, W), in place."""
    generator = torch.Generator(device=images.device).manual_seed(disturbance.noise_seed)
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    gain = torch.from_numpy(disturbance.gain).to(images)[:, None, None, None]
    images.copy_(((images + 1) * gain - 1 + 2 * data.noise * noise).clamp(-1, 1))
    for view, (y0, y1, x0, x1) in enumerate(disturbance.blank.tolist()):
        images[view, :, y0:y1, x0:x1] = 0
        valid[view, y0:y1, x0:x1] = False

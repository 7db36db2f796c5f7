"""The endless stream of training samples: a pure function of (seed, step, sample).

Samples are synthetic rooms, mixed with recorded sequences if the configuration lists any.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fast3r_ros.model import normalize
from fast3r_ros.model.image_index import TRAINED_ROWS
from fast3r_ros.synthetic.render import points_camera, render
from fast3r_ros.synthetic.scene import SyntheticScene, corridor_scene, room_scene
from fast3r_ros.synthetic.sequence import pinhole
from fast3r_ros.synthetic.trajectories import Motion, look_around, scattered, walk
from fast3r_ros.training.config import DataConfig, RecordedConfig, TrainConfig
from fast3r_ros.training.recorded import recorded_sequences, recorded_views

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

"""Held-out synthetic rooms that training never draws: short walks for one pass, long walks for mapping.

Two splits: `full` has the whole variety of textures, fields of view, heights, tilts and steps; `easy` has
what a small model learns first (config/train/demo.yaml): painted rooms, a level camera 1.3 m above the floor,
4:3 images with a field of view of 70 degrees.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from fast3r_ros.datasets.posed import PosedFrame, PosedSequence
from fast3r_ros.mapping.data import Float32, UInt8
from fast3r_ros.synthetic.rooms import room_scene
from fast3r_ros.synthetic.sequence import SyntheticSequence, pinhole
from fast3r_ros.synthetic.trajectories import room_path
from fast3r_ros.training.stream import HELD_OUT, held_out_batch
from fast3r_ros.training.training_config import DataConfig

# split -> ranges of the scenes and the share of full motion
SPLITS = {
    "full": (DataConfig(), 1.0),
    "easy": (
        DataConfig(
            width=192,
            height=144,
            painted=1.0,
            horizontal_fov=(70.0, 70.0),
            camera_height=(1.25, 1.35),
            pitch=0.0,
            roll=0.0,
            step=(0.03, 0.25),
            turn=(2.0, 14.0),
        ),
        1.0,
    ),
}
WALK_SEEDS = HELD_OUT + 50_000  # distinct from the scenes of the short walks
RATE = 10.0


def short_walks(split: str, scenes: int, views: int) -> list[PosedSequence]:
    """One walk of `views` frames in each of `scenes` held-out rooms; the same in every run."""
    return [_short_walk(split, number, views) for number in range(scenes)]


def long_walks(split: str, scenes: int, frames: int) -> list[PosedSequence]:
    """One calm walk of `frames` frames, 10 Hz and 0.05 m apart, in each of `scenes` other held-out rooms."""
    return [_long_walk(split, number, frames) for number in range(scenes)]


def _short_walk(split: str, number: int, views: int) -> PosedSequence:
    data, motion = SPLITS[split]
    batch = held_out_batch(data, range(number, number + 1), views, motion)
    images = (batch.images[0].permute(0, 2, 3, 1) * 127.5 + 127.5).round().to(torch.uint8).numpy()
    depth = torch.where(batch.valid[0], batch.points_camera[0, ..., 2], 0.0).numpy()
    frames = tuple(
        PosedFrame(
            stamp_ns=round(view * 1e9 / RATE),
            world_from_camera=batch.world_from_camera[0, view].numpy(),
            intrinsics=batch.intrinsics[0, view].numpy(),
            read_image=partial(np.asarray, images[view]),
            read_depth=partial(np.asarray, depth[view]),
        )
        for view in range(views)
    )
    return PosedSequence(f"room-{number:03d}", frames)


def _long_walk(split: str, number: int, count: int) -> PosedSequence:
    data, _ = SPLITS[split]
    seed = WALK_SEEDS + number
    scene = room_scene(seed, painted=bool(data.painted))
    height = float(np.random.default_rng(seed).uniform(*data.camera_height))
    walk = SyntheticSequence(
        scene,
        room_path(scene, count, seed=number, height=height),
        pinhole(data.width, data.height, np.deg2rad(np.mean(data.horizontal_fov))),
        data.width,
        data.height,
        rate=RATE,
        with_depth=True,
    )
    frames = tuple(
        PosedFrame(
            stamp_ns=walk.stamp_ns(index),
            world_from_camera=walk.world_from_camera[index],
            intrinsics=walk.intrinsics,
            read_image=partial(_image, walk, index),
            read_depth=partial(_depth, walk, index),
        )
        for index in range(len(walk))
    )
    return PosedSequence(f"walk-{number:03d}", frames)


def _image(walk: SyntheticSequence, index: int) -> UInt8:
    return walk[index].image


def _depth(walk: SyntheticSequence, index: int) -> Float32:
    depth = walk[index].depth
    assert depth is not None  # the walk was made with depth
    return depth

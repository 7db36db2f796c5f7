"""Held-out synthetic rooms, which training never draws: short walks for one forward pass, long ones for
mapping.

Two splits: `full` has the whole variety of fields of view, camera heights, tilts and steps; `easy` has a
field of view near 70 degrees, a nearly level camera at walking height, and half the motion.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from fast3r_ros.evaluation.datasets.posed import PosedFrame, PosedSequence
from fast3r_ros.mapping.data import Float32, UInt8
from fast3r_ros.synthetic.scene import room_scene
from fast3r_ros.synthetic.sequence import SyntheticSequence, pinhole
from fast3r_ros.synthetic.trajectories import room_path
from fast3r_ros.training.config import DataConfig
from fast3r_ros.training.stream import HELD_OUT, held_out_batch

# split -> ranges of the scenes and the share of full motion
SPLITS = {
    "full": (DataConfig(), 1.0),
    "easy": (
        DataConfig(
            horizontal_fov=(65.0, 75.0),
            camera_height=(1.1, 1.6),
            pitch=5.0,
            roll=1.5,
            step=(0.02, 0.2),
            turn=(0.0, 7.0),
        ),
        0.5,
    ),
}
WALK_SEEDS = HELD_OUT + 50_000  # apart from the scenes of the short walks
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
    scene = room_scene(seed)
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

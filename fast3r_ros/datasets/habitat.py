"""Habitat, as rendered for CroCo and DUSt3R: folders of <batch>_<view>.jpeg, _depth.exr, _camera_params.json.

camera_params: camera_intrinsics (3x3, pixel centres at integers), R_cam2world, t_cam2world, optical axes.
Depth is z in metres.  The views of one batch see the same place; each batch is a sequence.  Reading depth
needs the package OpenEXR.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from fast3r_ros.datasets.posed import (
    PosedFrame,
    PosedSequence,
    depth_reader,
    image_reader,
    natural_order,
    read_json,
    rigid_pose,
)
from fast3r_ros.errors import UserError
from fast3r_ros.geometry.intrinsics import shift_pixel_centres
from fast3r_ros.geometry.rigid import rigid_matrix

SUFFIX = "_camera_params.json"
VIEW_NS = 1_000_000_000  # the views have no times; they are ordered by name


def sequences(root: Path) -> list[PosedSequence]:
    """One sequence per batch of views of every folder below `root`."""
    batches: dict[Path, list[Path]] = defaultdict(list)
    for path in root.rglob(f"*{SUFFIX}"):
        batch, _, view = path.name.removesuffix(SUFFIX).rpartition("_")
        if not batch or not view:
            raise UserError(f"{path} is not named BATCH_VIEW{SUFFIX}")
        batches[path.parent / batch].append(path)
    return [
        PosedSequence(
            str(batch.relative_to(root)), _frames(sorted(paths, key=lambda p: natural_order(p.name)))
        )
        for batch, paths in batches.items()
    ]


def _frames(paths: list[Path]) -> tuple[PosedFrame, ...]:
    frames = []
    for number, path in enumerate(paths):
        content = read_json(path)
        try:
            matrix = np.array(content["camera_intrinsics"], np.float64).reshape(3, 3)
            pose = rigid_pose(rigid_matrix(content["R_cam2world"], np.array(content["t_cam2world"]).ravel()))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} has no camera: {error!r}") from error
        if pose is None or not np.isfinite(matrix).all():
            raise UserError(f"{path} has no pose: R_cam2world is no rotation, or a number is not finite")
        stem = path.name.removesuffix(SUFFIX)
        depth = path.with_name(f"{stem}_depth.exr")
        frames.append(
            PosedFrame(
                stamp_ns=number * VIEW_NS,
                world_from_camera=pose,
                intrinsics=shift_pixel_centres(matrix, 0.5),
                read_image=image_reader(path.with_name(f"{stem}.jpeg")),
                read_depth=depth_reader(depth, 1.0) if depth.is_file() else None,
            )
        )
    return tuple(frames)

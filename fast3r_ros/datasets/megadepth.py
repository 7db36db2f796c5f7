"""MegaDepth v1: ROOT/phoenix/S6/zl548/MegaDepth_v1/<scene>/dense<k>/{imgs, depths/NAME.h5} with the
models ROOT/MegaDepth_v1_SfM/<scene>/{images, sparse/manhattan/<k>}.

Poses and focal lengths come from the SfM model, whose cameras belong to the original images; those of imgs
are undistorted and smaller, so the matrix is scaled by the sizes.  Depth is in the model's units.  Files that
only order the depth of a person and the background count as unknown.  Reading depth needs the package h5py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fast3r_ros.datasets import colmap
from fast3r_ros.datasets.posed import (
    PosedFrame,
    PosedSequence,
    depth_reader,
    image_reader,
    image_size,
    natural_order,
)
from fast3r_ros.errors import UserError
from fast3r_ros.geometry.intrinsics import transform_intrinsics
from fast3r_ros.mapping.data import Float32, Float64

DENSE = Path("phoenix/S6/zl548/MegaDepth_v1")
IMAGE_NS = 1_000_000_000  # tourist photos, ordered by name


def sequences(root: Path) -> list[PosedSequence]:
    """One sequence per dense reconstruction, <scene>/dense<k>."""
    found = []
    for dense in sorted((root / DENSE).glob("*/dense*")):
        number = dense.name.removeprefix("dense")
        model = root / "MegaDepth_v1_SfM" / dense.parent.name / "sparse" / "manhattan" / number
        if (dense / "imgs").is_dir() and colmap.has_model(model):
            found.append(PosedSequence(f"{dense.parent.name}/{dense.name}", _frames(dense, model)))
    return found


def _frames(dense: Path, model: Path) -> tuple[PosedFrame, ...]:
    entries = sorted(colmap.read_model(model), key=lambda entry: natural_order(entry.name))
    frames: list[PosedFrame] = []
    for entry in entries:
        image = dense / "imgs" / entry.name
        if not image.is_file():
            continue
        depth = (dense / "depths" / entry.name).with_suffix(".h5")
        frames.append(
            PosedFrame(
                stamp_ns=len(frames) * IMAGE_NS,
                world_from_camera=entry.world_from_camera,
                intrinsics=_scaled(entry, image),
                read_image=image_reader(image),
                read_depth=_metric(depth) if depth.is_file() else None,
            )
        )
    if not frames:
        raise UserError(f"{dense / 'imgs'} has none of the images of the model {model}")
    return tuple(frames)


def _scaled(entry: colmap.ColmapImage, image: Path) -> Float64:
    width, height = image_size(image)
    scaling = np.diag([width / entry.lens.width, height / entry.lens.height, 1.0])
    return transform_intrinsics(scaling, entry.lens.intrinsics)


def _metric(path: Path) -> Callable[[], Float32]:
    """The depth map; all unknown where the file holds an order (-1, 0, 1) instead."""
    read = depth_reader(path, 1.0)

    def metric() -> Float32:
        depth = read()
        return depth if len(np.unique(depth)) > 3 else np.zeros_like(depth)

    return metric

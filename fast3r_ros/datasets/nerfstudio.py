"""nerfstudio and instant-ngp: ROOT/<scene>/transforms.json with the images that it lists.

Poses are camera to world with OpenGL axes (x right, y up, z back).  Depth files (`depth_file_path`) are in
millimetres unless `depth_unit_scale_factor` is given.  Lens distortion is removed when an image is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fast3r_ros.datasets.lens import Lens, coefficients, without_distortion
from fast3r_ros.datasets.posed import (
    PosedFrame,
    PosedSequence,
    depth_reader,
    folders_below,
    image_reader,
    image_size,
    natural_order,
    read_json,
    rigid_pose,
)
from fast3r_ros.errors import UserError
from fast3r_ros.geometry.rigid import OPENGL_FROM_OPTICAL

IMAGE_NS = 1_000_000_000  # the images have no times; they are ordered by name
FISHEYE = ("OPENCV_FISHEYE",)
PINHOLES = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "")


def sequences(root: Path) -> list[PosedSequence]:
    """One sequence per folder with a transforms.json; `root` may be one."""
    return [
        PosedSequence(scene.name, frames_of(scene / "transforms.json", scene))
        for scene in folders_below(root)
        if (scene / "transforms.json").is_file()
    ]


def frames_of(path: Path, images: Path, depths: Path | None = None) -> tuple[PosedFrame, ...]:
    """The frames of a transforms file whose images exist, by name; frames with an invalid pose are skipped.

    images: folder of the named files.  depths: folder with one PNG per image in millimetres, with the image's
    name, for sets whose file lists none.  Raises UserError when the file is invalid or no image exists.
    """
    content = read_json(path)
    try:
        listed = [*content["frames"], *content.get("test_frames", [])]
        entries = sorted(listed, key=lambda entry: natural_order(entry["file_path"]))
        frames = [
            _frame(path, images, depths, content, entry, number) for number, entry in enumerate(entries)
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} has a frame that lacks something: {error!r}") from error
    there = tuple(frame for frame in frames if frame is not None)
    if not there:
        raise UserError(f"{path}: none of its images is in {images}")
    return there


def _frame(
    path: Path,
    images: Path,
    depths: Path | None,
    content: Mapping[str, Any],
    entry: Mapping[str, Any],
    number: int,
) -> PosedFrame | None:
    named = images / entry["file_path"]
    # NeRF's synthetic scenes omit the suffix.
    image = next((p for p in (named, *(Path(f"{named}{s}") for s in (".png", ".jpg"))) if p.is_file()), None)
    pose = rigid_pose(np.array(entry["transform_matrix"], np.float64))
    if image is None or pose is None:
        return None
    lens = _lens({**content, **entry}, image, path)
    metres = float(content.get("depth_unit_scale_factor", 1e-3))
    depth = images / entry["depth_file_path"] if entry.get("depth_file_path") else None
    if depth is None and depths is not None:
        depth, metres = depths / f"{image.stem}.png", 1e-3
    frame = PosedFrame(
        stamp_ns=number * IMAGE_NS,
        world_from_camera=pose @ OPENGL_FROM_OPTICAL,
        intrinsics=lens.intrinsics,
        read_image=image_reader(image),
        read_depth=depth_reader(depth, metres) if depth is not None and depth.is_file() else None,
    )
    return without_distortion(frame, lens)


def _lens(values: Mapping[str, Any], image: Path, path: Path) -> Lens:
    """The camera of one frame; its own values override those of the file."""
    model = str(values.get("camera_model", ""))
    if model not in (*FISHEYE, *PINHOLES):
        raise UserError(f"{path}: the camera model {model} is not supported")
    if "w" in values and "h" in values:
        width, height = int(values["w"]), int(values["h"])
    else:
        width, height = image_size(image)
    focal_x = (
        float(values["fl_x"]) if "fl_x" in values else width / 2 / math.tan(values["camera_angle_x"] / 2)
    )
    focal_y = float(values.get("fl_y", focal_x))
    x, y = float(values.get("cx", width / 2)), float(values.get("cy", height / 2))
    matrix = np.array([[focal_x, 0.0, x], [0.0, focal_y, y], [0.0, 0.0, 1.0]])
    if not np.isfinite(matrix).all() or focal_x <= 0 or focal_y <= 0 or width <= 0 or height <= 0:
        raise UserError(f"{path}: invalid focal length {focal_x}, {focal_y} at {width}x{height} pixels")
    named = {name: float(values[name]) for name in ("k1", "k2", "k3", "k4", "p1", "p2") if name in values}
    return Lens(width, height, matrix, *coefficients(named, model in FISHEYE))

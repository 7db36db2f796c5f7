"""The layout of MVSNet: ROOT/<scan>/{images/NNNNNNNN.jpg, cams/NNNNNNNN_cam.txt} and depth.

Camera files hold `extrinsic` (world to camera) and `intrinsic` for the image's pixels.  DTU: millimetres;
depths/NNNNNNNN.{npy, pfm} and binary_masks/NNNNNNNN.png, which blanks the depth outside of the object, are
optional.  BlendedMVS: blended_images, rendered_depth_maps/NNNNNNNN.pfm, each scene in units of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from fast3r_ros.datasets.posed import (
    PosedFrame,
    PosedSequence,
    depth_reader,
    folders_below,
    image_reader,
    read_text,
    rigid_pose,
)
from fast3r_ros.errors import UserError
from fast3r_ros.geometry.intrinsics import shift_pixel_centres
from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.mapping.data import Float32, Float64

IMAGE_NS = 1_000_000_000  # the images have no times; they are ordered by position


@dataclass(frozen=True)
class Layout:
    """Names of the folders of images and depth maps, and metres per unit of lengths."""

    images: str
    depths: str
    metres: float


DTU = Layout("images", "depths", 1e-3)
BLENDED_MVS = Layout("blended_images", "rendered_depth_maps", 1.0)


def dtu(root: Path) -> list[PosedSequence]:
    """One sequence per scan of DTU."""
    return _sequences(root, DTU)


def blended_mvs(root: Path) -> list[PosedSequence]:
    """One sequence per scene of BlendedMVS, in its low resolution or its high one."""
    return _sequences(root, BLENDED_MVS)


def _sequences(root: Path, layout: Layout) -> list[PosedSequence]:
    return [
        PosedSequence(scan.name, tuple(_frame(scan, path, layout) for path in cameras))
        for scan in folders_below(root)
        if (scan / layout.images).is_dir() and (cameras := sorted((scan / "cams").glob("*_cam.txt")))
    ]


def _frame(scan: Path, camera: Path, layout: Layout) -> PosedFrame:
    name = camera.name.removesuffix("_cam.txt")
    if not name.isdecimal():
        raise UserError(f"{camera} is not named by a number, such as 00000000_cam.txt")
    camera_from_world, intrinsics = _read_camera(camera)
    pose = rigid_pose(camera_from_world)
    if pose is None:
        raise UserError(f"{camera}: the extrinsic is not a pose")
    world_from_camera = inverse(pose)
    world_from_camera[:3, 3] *= layout.metres
    images = [scan / layout.images / f"{name}{suffix}" for suffix in (".jpg", ".png")]
    image = next((path for path in images if path.is_file()), None)
    if image is None:
        raise UserError(f"{camera} has no image; expected {images[0]}")
    depths = [scan / layout.depths / f"{name}{suffix}" for suffix in (".npy", ".pfm")]
    depth = next((path for path in depths if path.is_file()), None)
    mask = scan / "binary_masks" / f"{name}.png"
    return PosedFrame(
        stamp_ns=int(name) * IMAGE_NS,
        world_from_camera=world_from_camera,
        intrinsics=shift_pixel_centres(intrinsics, 0.5),
        read_image=image_reader(image),
        read_depth=None if depth is None else _masked(depth_reader(depth, layout.metres), mask),
    )


def _read_camera(path: Path) -> tuple[Float64, Float64]:
    words = read_text(path).split()
    try:
        extrinsic, intrinsic = words.index("extrinsic") + 1, words.index("intrinsic") + 1
        camera_from_world = np.array(words[extrinsic : extrinsic + 16], dtype=np.float64).reshape(4, 4)
        return camera_from_world, np.array(words[intrinsic : intrinsic + 9], dtype=np.float64).reshape(3, 3)
    except ValueError as error:
        raise UserError(f"{path} is no MVSNet camera file: {error}") from error


def _masked(read: Callable[[], Float32], mask: Path) -> Callable[[], Float32]:
    def masked() -> Float32:
        depth = read()
        if not mask.is_file():
            return depth
        picture = cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE)
        if picture is None:
            raise UserError(f"cannot read the mask {mask}")
        inside = cv2.resize(picture, depth.shape[::-1], interpolation=cv2.INTER_NEAREST) > 127
        return np.where(inside, depth, np.float32(0))

    return masked

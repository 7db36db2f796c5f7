"""ScanNet++: ROOT/data/<scene>/{dslr, iphone} as released, or ROOT/<scene>; one sequence per camera.

DSLR: dslr/resized_undistorted_images with nerfstudio/transforms_undistorted.json if they exist, else the
fisheye images dslr/resized_images with nerfstudio/transforms.json.  iPhone: iphone/rgb/frame_NNNNNN.jpg (as
the set's tool extracts them) with nerfstudio/transforms.json, else colmap/, else the ARKit poses of
pose_intrinsic_imu.json.  Depth in millimetres: render_depth/NAME.png (rendered from the laser scan by the
set's tool), or the iPhone's own depth/frame_NNNNNN.png.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fast3r_ros.datasets import colmap, nerfstudio
from fast3r_ros.datasets.posed import (
    PosedFrame,
    PosedSequence,
    depth_reader,
    folders_below,
    image_reader,
    natural_order,
    read_json,
    rigid_pose,
)
from fast3r_ros.errors import UserError
from fast3r_ros.geometry.intrinsics import shift_pixel_centres

FRAME_NS = 16_666_667  # the iPhone's video, 60 Hz
DSLR = (  # images, transforms
    ("resized_undistorted_images", "nerfstudio/transforms_undistorted.json"),
    ("undistorted_images", "nerfstudio/transforms_undistorted.json"),
    ("resized_images", "nerfstudio/transforms.json"),
)


def sequences(root: Path) -> list[PosedSequence]:
    """<scene>/dslr and <scene>/iphone, if they exist."""
    found = []
    for scene in folders_below(root / "data" if (root / "data").is_dir() else root):
        for images, transforms in DSLR:
            folder = scene / "dslr"
            if (folder / images).is_dir() and (folder / transforms).is_file():
                depths = folder / "render_depth"
                frames = nerfstudio.frames_of(folder / transforms, folder / images, depths)
                found.append(PosedSequence(f"{scene.name}/dslr", frames))
                break
        if (scene / "iphone" / "rgb").is_dir():
            found.append(PosedSequence(f"{scene.name}/iphone", _iphone(scene / "iphone")))
    return found


def _iphone(folder: Path) -> tuple[PosedFrame, ...]:
    rendered = folder / "render_depth"
    depths = rendered if rendered.is_dir() else folder / "depth"
    transforms = folder / "nerfstudio" / "transforms.json"
    if transforms.is_file():
        return nerfstudio.frames_of(transforms, folder / "rgb", depths)
    if colmap.has_model(folder / "colmap"):
        return colmap.frames_of(folder, folder / "colmap", folder / "rgb", depths)
    path = folder / "pose_intrinsic_imu.json"
    if not path.is_file():
        raise UserError(f"{folder} has no poses; expected nerfstudio/transforms.json, colmap/ or {path.name}")
    return _arkit(path, folder / "rgb", depths)


def _arkit(path: Path, images: Path, depths: Path) -> tuple[PosedFrame, ...]:
    """The poses that ARKit tracked: camera to world, optical axes; `aligned_pose` is in the scan's frame."""
    frames = []
    try:
        for name, entry in sorted(read_json(path).items(), key=lambda item: natural_order(item[0])):
            image, depth = images / f"{name}.jpg", depths / f"{name}.png"
            pose = rigid_pose(np.array(entry.get("aligned_pose", entry["pose"]), np.float64))
            if pose is None or not image.is_file():
                continue
            matrix = np.array(entry["intrinsic"], np.float64).reshape(3, 3)
            frames.append(
                PosedFrame(
                    stamp_ns=int("".join(filter(str.isdigit, name)) or 0) * FRAME_NS,
                    world_from_camera=pose,
                    intrinsics=shift_pixel_centres(matrix, 0.5),
                    read_image=image_reader(image),
                    read_depth=depth_reader(depth, 1e-3) if depth.is_file() else None,
                )
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} has a frame that lacks something: {error!r}") from error
    if not frames:
        raise UserError(f"{path}: none of its images is in {images}")
    return tuple(frames)

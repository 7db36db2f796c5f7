"""Neural RGB-D (NRGBD): ROOT/<scene>/{images/imgN.png, depth/depthN.png, poses.txt, focal.txt}.

Depth is in millimetres; poses.txt has four lines per frame, camera-to-world with OpenGL axes (x right, y
up, z back), `nan` for a frame without a pose; the principal point is the image's centre.
"""

from __future__ import annotations

from pathlib import Path

from fast3r_ros.datasets.posed import (
    PosedFrame,
    PosedSequence,
    depth_reader,
    image_reader,
    image_size,
    read_matrix,
    read_table,
    rigid_pose,
)
from fast3r_ros.errors import UserError
from fast3r_ros.geometry.intrinsics import centred_intrinsics
from fast3r_ros.geometry.rigid import OPENGL_FROM_OPTICAL
from fast3r_ros.mapping.data import Float64

FRAME_NS = 33_333_333


def sequences(root: Path) -> list[PosedSequence]:
    """One sequence per scene folder."""
    return [
        PosedSequence(scene.name, _frames(scene))
        for scene in sorted(root.iterdir())
        if (scene / "poses.txt").is_file() and (scene / "images").is_dir()
    ]


def _frames(scene: Path) -> tuple[PosedFrame, ...]:
    images = sorted((scene / "images").glob("img*.png"), key=_number)
    poses = _read_poses(scene / "poses.txt")
    focal = float(read_matrix(scene / "focal.txt", (1, 1))[0, 0])
    if not images:
        raise UserError(f"{scene / 'images'} holds no img*.png")
    width, height = image_size(images[0])
    intrinsics = centred_intrinsics(focal, height, width)
    frames = []
    for image in images:
        number = _number(image)
        pose = rigid_pose(poses[number]) if number < len(poses) else None
        if pose is None:
            continue
        depth = scene / "depth" / f"depth{number}.png"
        frames.append(
            PosedFrame(
                stamp_ns=number * FRAME_NS,
                world_from_camera=pose @ OPENGL_FROM_OPTICAL,
                intrinsics=intrinsics,
                read_image=image_reader(image),
                read_depth=depth_reader(depth, 1e-3) if depth.is_file() else None,
            )
        )
    return tuple(frames)


def _read_poses(path: Path) -> Float64:
    """(N, 4, 4), NaN for a frame without a pose."""
    values = read_table(path)
    if values.shape[1] != 4 or len(values) % 4:
        raise UserError(
            f"{path} has {values.shape[0]} lines of {values.shape[1]} numbers, expected 4 of 4 each"
        )
    return values.reshape(-1, 4, 4)


def _number(path: Path) -> int:
    digits = "".join(filter(str.isdigit, path.stem))
    if not digits:
        raise UserError(f"{path} has no number in its name, such as img0.png")
    return int(digits)

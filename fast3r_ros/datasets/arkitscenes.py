"""ARKitScenes: ROOT/{Training,Validation}/<video>/{vga_wide or lowres_wide, lowres_depth, lowres_wide.traj}.

Images VIDEO_STAMP.png with VIDEO_STAMP.pincam (width height fx fy cx cy) in the folder of the images' name
and `_intrinsics`; the 3DOD part of the set keeps all of it in <video>/<video>_frames.  Poses (10 Hz, world to
camera: axis-angle, metres) are interpolated at the images' stamps.  Depth is in millimetres.  ROOT may also
be one of the folders below it.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from fast3r_ros.datasets.posed import (
    PosedFrame,
    PosedSequence,
    depth_reader,
    image_reader,
    read_table,
)
from fast3r_ros.errors import UserError
from fast3r_ros.geometry.intrinsics import intrinsics_matrix, shift_pixel_centres
from fast3r_ros.geometry.rigid import interpolate, rigid_matrix
from fast3r_ros.mapping.data import Float64

IMAGE_FOLDERS = ("vga_wide", "lowres_wide")
TRAJECTORY = "lowres_wide.traj"
STAMP = re.compile(r"_(\d+\.\d+)$")
MAX_GAP_S = 0.2  # between poses; longer gaps are not interpolated


def sequences(root: Path) -> list[PosedSequence]:
    """One sequence per video."""
    videos = [path.parent for path in root.rglob(TRAJECTORY)]
    return [
        PosedSequence(video.name.removesuffix("_frames"), _frames(video))
        for video in videos
        if any((video / name).is_dir() for name in IMAGE_FOLDERS)
    ]


def _frames(video: Path) -> tuple[PosedFrame, ...]:
    stamps, poses = _trajectory(video / TRAJECTORY)
    folder = next(video / name for name in IMAGE_FOLDERS if (video / name).is_dir())
    images = sorted((_stamp(path), path) for path in folder.glob("*.png"))
    frames = []
    for stamp, image in images:
        pose = _pose_at(stamps, poses, stamp)
        if pose is None:
            continue
        depth = video / "lowres_depth" / image.name
        frames.append(
            PosedFrame(
                stamp_ns=round(stamp * 1e9),
                world_from_camera=pose,
                intrinsics=_intrinsics(folder.with_name(f"{folder.name}_intrinsics"), image, stamp),
                read_image=image_reader(image),
                read_depth=depth_reader(depth, 1e-3) if depth.is_file() else None,
            )
        )
    if not frames:
        raise UserError(f"{folder} has no image with a pose in {TRAJECTORY}")
    return tuple(frames)


def _stamp(image: Path) -> float:
    found = STAMP.search(image.stem)
    if found is None:
        raise UserError(f"{image} is not named VIDEO_STAMP.png, such as 40753679_6791.332.png")
    return float(found[1])


def _trajectory(path: Path) -> tuple[Float64, Float64]:
    """Stamps (N,) in seconds and world_from_camera (N, 4, 4), in order of time."""
    rows = read_table(path)
    if rows.shape[1] != 7 or not np.isfinite(rows).all():
        raise UserError(f"{path}: expected stamp, three of a rotation and three of a translation per line")
    rows = rows[np.unique(rows[:, 0], return_index=True)[1]]
    rotations = Rotation.from_rotvec(rows[:, 1:4]).as_matrix().transpose(0, 2, 1)
    return rows[:, 0], rigid_matrix(rotations, -np.einsum("nij,nj->ni", rotations, rows[:, 4:]))


def _pose_at(stamps: Float64, poses: Float64, stamp: float) -> Float64 | None:
    """The pose at a time; None outside of the trajectory and in its gaps.  Names are rounded to 1 ms."""
    after = int(np.searchsorted(stamps, stamp))
    nearest = min(
        (n for n in (after - 1, after) if 0 <= n < len(stamps)), key=lambda n: abs(stamps[n] - stamp)
    )
    if abs(stamps[nearest] - stamp) < 2e-3:
        return poses[nearest]
    if not 0 < after < len(stamps) or stamps[after] - stamps[after - 1] > MAX_GAP_S:
        return None
    share = (stamp - stamps[after - 1]) / (stamps[after] - stamps[after - 1])
    return interpolate(poses[after - 1], poses[after], share)


def _intrinsics(folder: Path, image: Path, stamp: float) -> Float64:
    """From the image's .pincam, whose stamp may be rounded differently; for pixel centres at integers."""
    video = STAMP.sub("", image.stem)
    names = [image.stem, *(f"{video}_{stamp + shift:.3f}" for shift in (-1e-3, 1e-3))]
    path = next((p for name in names if (p := folder / f"{name}.pincam").is_file()), None)
    if path is None:
        raise UserError(f"{image} has no intrinsics; expected {folder / names[0]}.pincam")
    values = read_table(path).ravel()
    if values.size != 6 or not (values[:4] > 0).all():
        raise UserError(f"{path}: expected width height fx fy cx cy")
    return shift_pixel_centres(intrinsics_matrix((values[2], values[3]), (values[4], values[5])), 0.5)

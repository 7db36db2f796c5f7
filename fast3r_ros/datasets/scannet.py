"""ScanNet-like folders: ROOT/<scene>/{color or rgb or images, depth, pose or poses, intrinsic(s)}.

All files of a frame have one name: color/N.jpg (or .png), depth/N.png in millimetres, pose/N.txt, camera to
world, 4x4, `-inf` where lost.  Intrinsics of the colour image: intrinsic/intrinsic_color.txt, intrinsics.txt,
or one file per frame in a folder intrinsic(s)/N.txt; 3x3 or 4x4, for pixel centres at integers.
"""

from __future__ import annotations

from pathlib import Path

from fast3r_ros.datasets.posed import (
    PosedFrame,
    PosedSequence,
    depth_reader,
    image_reader,
    read_matrix,
    rigid_pose,
)
from fast3r_ros.errors import UserError
from fast3r_ros.geometry.intrinsics import shift_pixel_centres
from fast3r_ros.mapping.data import Float64

IMAGE_FOLDERS, POSE_FOLDERS = ("color", "rgb", "images"), ("pose", "poses")
COMMON_INTRINSICS = ("intrinsic/intrinsic_color.txt", "intrinsics.txt", "intrinsic.txt")
FRAME_NS = 33_333_333


def sequences(root: Path) -> list[PosedSequence]:
    """One sequence per folder that has images and poses."""
    found = []
    for scene in sorted(path for path in root.iterdir() if path.is_dir()):
        images, poses = _first_folder(scene, IMAGE_FOLDERS), _first_folder(scene, POSE_FOLDERS)
        if images is not None and poses is not None:
            found.append(PosedSequence(scene.name, _frames(scene, images, poses)))
    return found


def _frames(scene: Path, images: Path, poses: Path) -> tuple[PosedFrame, ...]:
    frames = []
    files = [path for path in images.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    for number, image in enumerate(sorted(files, key=_order)):
        pose_file, depth = poses / f"{image.stem}.txt", scene / "depth" / f"{image.stem}.png"
        if not pose_file.is_file():
            continue
        pose = rigid_pose(read_matrix(pose_file, (4, 4)))
        if pose is None:
            continue
        frames.append(
            PosedFrame(
                stamp_ns=number * FRAME_NS,
                world_from_camera=pose,
                intrinsics=shift_pixel_centres(_intrinsics(scene, image.stem), 0.5),
                read_image=image_reader(image),
                read_depth=depth_reader(depth, 1e-3) if depth.is_file() else None,
            )
        )
    return tuple(frames)


def _intrinsics(scene: Path, name: str) -> Float64:
    own = [scene / folder / f"{name}.txt" for folder in ("intrinsic", "intrinsics")]
    path = next((path for path in [*(scene / c for c in COMMON_INTRINSICS), *own] if path.is_file()), None)
    if path is None:
        raise UserError(f"{scene} has no intrinsics; expected one of {', '.join(COMMON_INTRINSICS)}")
    return read_matrix(path, (4, 4), (3, 3))[:3, :3]


def _first_folder(scene: Path, names: tuple[str, ...]) -> Path | None:
    return next((scene / name for name in names if (scene / name).is_dir()), None)


def _order(path: Path) -> tuple[int, str]:
    digits = "".join(filter(str.isdigit, path.stem))
    return int(digits or 0), path.stem

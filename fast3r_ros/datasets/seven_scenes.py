"""7-Scenes: ROOT/<scene>/seq-NN/frame-NNNNNN.{color.png, pose.txt, depth.proj.png or depth.png}.

Depth is in millimetres, 65535 where unknown.  `depth.proj.png` is depth registered to the colour camera (made
by the preprocessing of SimpleRecon, used by the DUSt3R family), with an assumed focal length of 525 pixels;
raw `depth.png` belongs to the depth camera of 585 pixels, which is assumed to have the colour camera's pose.
The test split (TestSplit.txt) is used where it exists.
"""

from __future__ import annotations

from pathlib import Path

from fast3r_ros.datasets.posed import (
    PosedFrame,
    PosedSequence,
    depth_reader,
    image_reader,
    read_matrix,
    read_text,
    rigid_pose,
)
from fast3r_ros.geometry.intrinsics import intrinsics_matrix

REGISTERED_FOCAL, RAW_FOCAL = 525.0, 585.0
PRINCIPAL_POINT = (320.5, 240.5)  # published as (320, 240) for pixel centres at integers
FRAME_NS = 33_333_333  # Kinect, 30 Hz


def sequences(root: Path) -> list[PosedSequence]:
    """The test sequences of all scenes, or all sequences of a scene without a split file."""
    return [
        PosedSequence(f"{scene.name}/{folder.name}", _frames(folder))
        for scene in sorted(path for path in root.iterdir() if path.is_dir())
        for folder in _test_folders(scene)
    ]


def _test_folders(scene: Path) -> list[Path]:
    folders = sorted(path for path in scene.glob("seq-*") if any(path.glob("frame-*.color.png")))
    split = scene / "TestSplit.txt"
    if not split.is_file():
        return folders
    digits = ["".join(filter(str.isdigit, line)) for line in read_text(split).split()]
    chosen = {int(number) for number in digits if number}
    return [folder for folder in folders if int(folder.name.split("-")[1]) in chosen]


def _frames(folder: Path) -> tuple[PosedFrame, ...]:
    frames = []
    for number, image in enumerate(sorted(folder.glob("frame-*.color.png"))):
        stem = image.name.removesuffix(".color.png")
        pose = rigid_pose(read_matrix(folder / f"{stem}.pose.txt", (4, 4)))
        if pose is None:
            continue
        registered, raw = folder / f"{stem}.depth.proj.png", folder / f"{stem}.depth.png"
        focal = RAW_FOCAL if raw.is_file() and not registered.is_file() else REGISTERED_FOCAL
        depth = next((path for path in (registered, raw) if path.is_file()), None)
        frames.append(
            PosedFrame(
                stamp_ns=number * FRAME_NS,
                world_from_camera=pose,
                intrinsics=intrinsics_matrix(focal, PRINCIPAL_POINT),
                read_image=image_reader(image),
                read_depth=None if depth is None else depth_reader(depth, 1e-3, largest=65534),
            )
        )
    return tuple(frames)

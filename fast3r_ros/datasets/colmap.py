"""COLMAP: ROOT/<scene>/{images, sparse/0 or sparse or colmap}, cameras and images as .bin or .txt.

Depth, where there is any, is stereo/depth_maps/NAME.geometric.bin of a dense workspace, in the model's
units.  Lens distortion is removed from images when they are read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fast3r_ros.datasets.lens import MODELS, Lens, lens_of, without_distortion
from fast3r_ros.datasets.posed import (
    PosedFrame,
    PosedSequence,
    depth_reader,
    folders_below,
    image_reader,
    natural_order,
    read_text,
)
from fast3r_ros.errors import UserError
from fast3r_ros.geometry.rigid import inverse, rigid_matrix
from fast3r_ros.geometry.rotation import matrix_from_quaternion
from fast3r_ros.mapping.data import Float64

MODEL_FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0", "colmap/sparse", "colmap", "sparse-txt", ".")
IMAGE_FOLDERS = ("images", "input", "rgb", ".")
IMAGE_NS = 1_000_000_000  # the images have no times; they are ordered by name
# Camera models by their number in binary files; the number of parameters follows from the name.
BINARY_MODELS = (
    *(
        "SIMPLE_PINHOLE",
        "PINHOLE",
        "SIMPLE_RADIAL",
        "RADIAL",
        "OPENCV",
        "OPENCV_FISHEYE",
        "FULL_OPENCV",
        "FOV",
    ),
    *("SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "THIN_PRISM_FISHEYE"),
)


@dataclass(frozen=True)
class ColmapImage:
    """An image of a COLMAP model.  name: as in the model, may include folders.  Pose (4, 4)."""

    name: str
    lens: Lens
    world_from_camera: Float64


def sequences(root: Path) -> list[PosedSequence]:
    """One sequence per scene folder; `root` may be a scene."""
    found = []
    for scene in folders_below(root):
        model = next((scene / name for name in MODEL_FOLDERS if has_model(scene / name)), None)
        if model is not None:
            found.append(PosedSequence(scene.name, frames_of(scene, model, image_folder(scene))))
    return found


def image_folder(scene: Path) -> Path:
    """A scene's image folder."""
    return next(scene / name for name in IMAGE_FOLDERS if (scene / name).is_dir())


def frames_of(scene: Path, model: Path, images: Path, depths: Path | None = None) -> tuple[PosedFrame, ...]:
    """The images of a model that exist, by name.

    depths: folder with one PNG per image in millimetres, instead of the scene's dense workspace.  Raises
    UserError when no image exists.
    """
    entries = sorted(read_model(model), key=lambda entry: natural_order(entry.name))
    there = [entry for entry in entries if (images / entry.name).is_file()]
    if not there:
        raise UserError(f"{images} has none of the images of the model {model}, such as {entries[0].name}")
    frames = []
    for number, entry in enumerate(there):
        depth, metres = scene / "stereo" / "depth_maps" / f"{entry.name}.geometric.bin", 1.0
        if depths is not None:
            depth, metres = depths / f"{Path(entry.name).stem}.png", 1e-3
        frame = PosedFrame(
            stamp_ns=number * IMAGE_NS,
            world_from_camera=entry.world_from_camera,
            intrinsics=entry.lens.intrinsics,
            read_image=image_reader(images / entry.name),
            read_depth=depth_reader(depth, metres) if depth.is_file() else None,
        )
        frames.append(without_distortion(frame, entry.lens))
    return tuple(frames)


def has_model(folder: Path) -> bool:
    """Whether a folder holds cameras and images of a model."""
    return any(all((folder / f"{n}{s}").is_file() for n in ("cameras", "images")) for s in (".bin", ".txt"))


def read_model(folder: Path, *, least: int = 1) -> list[ColmapImage]:
    """The registered images of a model, from binary files if both kinds exist.

    Raises UserError when it is damaged or has fewer than `least` images.
    """
    binary = (folder / "cameras.bin").is_file() and (folder / "images.bin").is_file()
    suffix, read = (".bin", _read_binary) if binary else (".txt", _read_text)
    try:
        images = list(read(folder))
        if len(images) < least:
            raise ValueError("no image is registered")
        return images
    except (ValueError, KeyError, IndexError, struct.error, OSError) as error:
        raise UserError(
            f"{folder}/cameras{suffix} and images{suffix} are no COLMAP model: {error!r}"
        ) from error


def _read_text(folder: Path) -> Iterator[ColmapImage]:
    lenses = {}
    for line in read_text(folder / "cameras.txt").splitlines():
        if line.strip() and line[0] != "#":
            number, model, width, height, *parameters = line.split()
            values = [float(value) for value in parameters]
            lenses[int(number)] = lens_of(model, int(width), int(height), values, folder / "cameras.txt")
    lines = iter(line for line in read_text(folder / "images.txt").splitlines() if not line.startswith("#"))
    for line in lines:
        if line.strip():
            words = line.split(maxsplit=9)  # a name may have spaces
            next(lines, "")  # the image's points
            pose = np.array(words[1:8], np.float64)
            yield ColmapImage(words[9].strip(), lenses[int(words[8])], _pose(pose))


def _read_binary(folder: Path) -> Iterator[ColmapImage]:
    data, place = (folder / "cameras.bin").read_bytes(), 8
    lenses = {}
    for _ in range(struct.unpack_from("<Q", data)[0]):
        number, model, width, height = struct.unpack_from("<iiQQ", data, place)
        name = BINARY_MODELS[model]
        focals, distortion, _ = MODELS.get(name, (0, (), False))
        count = focals + 2 + len(distortion)
        parameters = struct.unpack_from(f"<{count}d", data, place + 24)
        lenses[number] = lens_of(name, width, height, parameters, folder / "cameras.bin")
        place += 24 + 8 * count
    data, place = (folder / "images.bin").read_bytes(), 8
    for _ in range(struct.unpack_from("<Q", data)[0]):
        pose, camera = np.array(struct.unpack_from("<7d", data, place + 4)), place + 60
        end = data.index(b"\0", place + 64)
        (points,) = struct.unpack_from("<Q", data, end + 1)
        lens = lenses[struct.unpack_from("<i", data, camera)[0]]
        yield ColmapImage(data[place + 64 : end].decode(), lens, _pose(pose))
        place = end + 9 + 24 * points


def _pose(values: Float64) -> Float64:
    """world_from_camera from qw qx qy qz tx ty tz of camera_from_world; ValueError when it is none."""
    if not np.isfinite(values).all():
        raise ValueError(f"no pose: {values}")
    return inverse(rigid_matrix(matrix_from_quaternion(values[[1, 2, 3, 0]]), values[4:]))

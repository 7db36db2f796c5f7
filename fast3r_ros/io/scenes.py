"""A reconstruction as other tools train on it: COLMAP models, nerfstudio's transforms.json, and the
keyframes' original images.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from fast3r_ros.datasets.colmap import MODEL_FOLDERS, has_model, read_model
from fast3r_ros.errors import UserError
from fast3r_ros.files import whole_file, writable
from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.io.cameras import CameraRecord, SourceImage
from fast3r_ros.io.sources import Source
from fast3r_ros.io.sources.images import ImageFiles
from fast3r_ros.mapping.data import Cloud, Float64, UInt8
from fast3r_ros.pictures import read_picture

_POINT = struct.Struct("<Q3d3BdQ")  # number, place, colour, error, length of the track
_NS_PER_VIEW = 100_000_000  # COLMAP stores no times: ten views per second, as for image files


def write_colmap(
    folder: str | Path,
    cloud: Cloud,
    records: Sequence[CameraRecord],
    images: Mapping[str, str] | None = None,
) -> None:
    """Write the model into `folder` (usually `sparse/0`).

    images: view name -> name of its image; default `NAME.png`.

    Every view has a PINHOLE camera of its own; COLMAP's pixel centres are at integer + 0.5, like ours.  World
    coordinates are the map frame's.  Points have no tracks: dense points belong to no image feature.
    Raises UserError when the files cannot be written.
    """
    folder = Path(folder)
    with whole_file(folder / "cameras.txt") as path, path.open("w", encoding="utf-8") as file:
        file.write("# CAMERA_ID MODEL WIDTH HEIGHT FX FY CX CY\n")
        for number, record in enumerate(records, 1):
            matrix = record.intrinsics
            values = (matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2])
            numbers = " ".join(f"{value:.9g}" for value in values)
            file.write(f"{number} PINHOLE {record.width} {record.height} {numbers}\n")
    with whole_file(folder / "images.txt") as path, path.open("w", encoding="utf-8") as file:
        file.write("# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then a line of 2D points (none)\n")
        for number, record in enumerate(records, 1):
            camera_from_map = inverse(record.map_from_camera)
            x, y, z, w = Rotation.from_matrix(camera_from_map[:3, :3]).as_quat()
            numbers = " ".join(f"{value:.12g}" for value in (w, x, y, z, *camera_from_map[:3, 3]))
            name = (images or {}).get(record.name, f"{record.name}.png")
            file.write(f"{number} {numbers} {number} {name}\n\n")
    with whole_file(folder / "points3D.txt") as path, path.open("w", encoding="utf-8") as file:
        file.write("# POINT3D_ID X Y Z R G B ERROR TRACK[]\n")
        lines = (
            f"{number} {x:.9g} {y:.9g} {z:.9g} {red} {green} {blue} 0\n"
            for number, ((x, y, z), (red, green, blue)) in enumerate(
                zip(cloud.points.tolist(), cloud.colors.tolist(), strict=True), 1
            )
        )
        file.writelines(lines)


def find_colmap(folder: Path) -> Path | None:
    """The folder of a model: `folder`, `sparse/0` or another usual place; None if there is none."""
    return next((folder / name for name in MODEL_FOLDERS if has_model(folder / name)), None)


def read_colmap(folder: str | Path) -> tuple[Cloud, list[CameraRecord], bool]:
    """Read a model, binary or text: its points (confidence 1), its views, and whether lenses are distorted.

    The views are in the order of their numbers; each has the whole name of its image as its source's, and a
    name derived from that, without folders and suffix.  Lens distortion is ignored: the matrices then do not
    describe the images.  Raises UserError when the model is damaged or a camera model is unknown.
    """
    folder = Path(folder)
    views = read_model(folder, least=0)
    records = []
    for index, view in enumerate(views):
        lens = view.lens
        source = SourceImage(view.name, lens.width, lens.height, np.eye(3))
        name = re.sub(r"[/\\]", "_", str(Path(view.name).with_suffix("")))
        records.append(
            CameraRecord(
                *(name, index * _NS_PER_VIEW, "camera", lens.width, lens.height, lens.intrinsics),
                *(view.world_from_camera, source),
            )
        )
    return _read_points(folder), records, any(view.lens.distortion for view in views)


def _read_points(folder: Path) -> Cloud:
    """The points of a model; none if it has no file of points."""
    path = folder / "points3D.bin"
    try:
        if path.is_file():
            values = _binary_points(path.read_bytes())
        else:
            path = folder / "points3D.txt"
            lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
            points = [line.split()[1:7] for line in lines if line.strip() and not line.startswith("#")]
            values = np.array(points, np.float64).reshape(-1, 6)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, struct.error) as error:
        raise UserError(f"{path} holds no points of a COLMAP model: {error}") from error
    xyz, colors = values[:, :3].astype(np.float32), np.clip(values[:, 3:], 0, 255).astype(np.uint8)
    return Cloud(xyz, colors, np.ones(len(xyz), np.float32))


def _binary_points(data: bytes) -> Float64:
    """(N, 6) places and colours of a points3D.bin; its points have tracks of any length."""
    (count,) = struct.unpack_from("<Q", data)
    if count * _POINT.size > len(data):
        raise ValueError(f"it ends within its {count} points")
    values, place = np.empty((count, 6)), 8
    for number in range(count):
        _, *point, _, track = _POINT.unpack_from(data, place)
        values[number] = point
        place += _POINT.size + 8 * track
    return values


_CV_FROM_GL = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenGL's cameras look along -z, with y up


def write_transforms(
    path: str | Path, records: Sequence[CameraRecord], images: Mapping[str, str], cloud: str
) -> None:
    """Write one frame per view: image, pinhole intrinsics and pose, in the map frame, z up.

    images: view name -> its file.  cloud: the file of the points.  Both are relative to the folder of `path`.
    Pixel centres are at integer + 0.5, as in this package.  Raises UserError when it cannot be written.
    """
    frames = [
        {
            "file_path": images[record.name],
            "w": record.width,
            "h": record.height,
            "fl_x": float(record.intrinsics[0, 0]),
            "fl_y": float(record.intrinsics[1, 1]),
            "cx": float(record.intrinsics[0, 2]),
            "cy": float(record.intrinsics[1, 2]),
            "transform_matrix": (record.map_from_camera @ _CV_FROM_GL).tolist(),
        }
        for record in records
    ]
    content = {"camera_model": "OPENCV", "ply_file_path": cloud, "frames": frames}
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


FOLDER = "images"
LISTED = re.compile(rf"{FOLDER}/[^/]+")  # photos of a run, as listed in its report
_AT_NETWORK_SIZE = re.compile(r"\d{6,}\.(jpg|png)")
_JPEG_QUALITY = 95  # for frames of videos and bags
_ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
_PLAIN_FORMATS = ("JPEG", "MPO", "PNG")  # readable by every tool


def plan_photos(records: Sequence[CameraRecord], source: Source, directory: Path) -> dict[str, str]:
    """View name -> file name in `images` of its original; only for views whose original is known.

    A file keeps its name if it is free and no image at network size has it.  White space and folders are
    removed: tools split the lines of COLMAP's images.txt and drop folders.
    """
    planned: dict[str, str] = {}  # original -> planned name
    for record in records:
        if record.source is None or record.source.name in planned:
            continue
        path = Path(record.source.name)
        if isinstance(source, ImageFiles):
            name = path.name if _is_plain(path) else f"{path.stem}.png"
        else:
            number = next(iter(re.findall(r"\d+", record.source.name)), record.name)
            name = f"frame_{number.zfill(6)}.jpg"
        for choice in _choices(re.sub(r"\s+", "_", name), re.sub(r"\s+", "_", path.parent.name)):
            free = choice not in planned.values() and not os.path.lexists(directory / FOLDER / choice)
            if free and not _AT_NETWORK_SIZE.fullmatch(choice):
                planned[record.source.name] = choice
                break
    return {each.name: planned[each.source.name] for each in records if each.source is not None}


def _choices(name: str, folder: str) -> Iterator[str]:
    yield name
    yield f"{folder or 'photo'}_{name}"
    yield from (f"photo{number}_{name}" for number in range(2, 1 << 30))


def write_photos(
    records: Sequence[CameraRecord], source: Source, directory: Path, names: dict[str, str]
) -> None:
    """Write the originals of the views, upright and without lens distortion, with the names of `plan_photos`.

    Image files are linked, or copied where linking is impossible.  Files that other tools show differently
    (rotated by EXIF, 16 bits, HEIC …) are written as PNG, frames of videos and bags as JPEG.
    Raises UserError when an image cannot be read again or written.
    """
    folder = directory / FOLDER
    if not isinstance(source, ImageFiles):
        wanted = {record.stamp_ns: names[record.name] for record in records if record.name in names}
        stamps = source.stamps_ns
        indices = range(len(source)) if stamps is None else [i for i, s in enumerate(stamps) if s in wanted]
        reported = len(source.skipped)
        for frame in source.frames(indices):
            if frame.stamp_ns in wanted:
                _write(folder / wanted[frame.stamp_ns], frame.image)
        del source.skipped[reported:]  # damaged frames were reported when they were mapped
        return
    originals = {names[record.name]: record.source.name for record in records if record.source is not None}
    for name, original in originals.items():
        if Path(name).suffix == Path(original).suffix and _is_plain(Path(original)):
            _link(Path(original), folder / name)
        else:
            _write(folder / name, read_picture(Path(original)))


def _is_plain(path: Path) -> bool:
    """Whether every tool shows the file as the mapper saw it: upright 8-bit colours in a common format."""
    try:
        with Image.open(path) as image:
            upright = image.getexif().get(_ORIENTATION, 1) in (0, 1)
            named = path.suffix.lower() in (".jpg", ".jpeg", ".png")
            return upright and named and image.format in _PLAIN_FORMATS and image.mode in ("RGB", "RGBA")
    except Exception:  # Pillow raises many types; the reader of the pixels reports the problem
        return False


def _link(original: Path, path: Path) -> None:
    """A hard link to a file, or a copy on another disk.  Neither replaces an existing file."""
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):
            os.link(original.resolve(), path)
            return
        with whole_file(path) as temporary:
            shutil.copyfile(original, temporary)


def _write(path: Path, image: UInt8) -> None:
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if path.suffix == ".jpg" else []
    done, encoded = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)
    if not done:
        raise UserError(f"cannot write {path}: an image of {image.shape[1]}x{image.shape[0]} pixels")
    with whole_file(path) as temporary:
        temporary.write_bytes(encoded.tobytes())

"""Paths and formats of ~/save_map and ~/load_map: names inside one directory."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path

import numpy as np
from nav_msgs.msg import OccupancyGrid

from fast3r_ros.errors import UserError
from fast3r_ros.files import whole_file
from fast3r_ros.mapping.storage import enclosing_map

CLOUD_SUFFIXES = (".ply", ".pcd")
GRID_SUFFIXES = (".yaml", ".yml", ".pgm")
# thresholds of nav2_map_server: darker is occupied, brighter is free, grey 205 is in between
_OCCUPIED_THRESHOLD, _FREE_THRESHOLD = 0.65, 0.196
# characters, and bytes between two slashes; Linux allows slightly more
_LONGEST_NAME, _LONGEST_PART = 1000, 200
_BLACK, _GREY, _WHITE = 0, 205, 254  # occupied, unknown, free


def path_for_saving(directory: str, name: str, overwrite: bool = False) -> Path:
    """The absolute path that a map of this name is written to; its folder exists afterwards.

    An empty name is replaced by the time.  Raises UserError for a name outside the directory or inside a
    saved map, which could not be replaced any more, for an unusable directory, and for an existing name
    unless `overwrite` is set.
    """
    name = name or datetime.now().strftime("map_%Y-%m-%d_%H-%M-%S")
    path = _inside(directory, name)
    outer = enclosing_map(path)
    if outer is not None:
        raise UserError(f"{name!r} lies inside the map {outer}; give a name outside of it")
    taken = next((each for each in _written(path) if _holds_something(each)), None)
    if taken is not None and not overwrite:
        raise UserError(f"{taken} exists; give another name, or set overwrite to replace it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder {path.parent}: {error.strerror or error}") from error
    return path


def _written(path: Path) -> tuple[Path, ...]:
    """The files written when saving under a path."""
    if path.suffix.lower() in GRID_SUFFIXES:
        return grid_files(path)
    return (path,)


def _holds_something(path: Path) -> bool:
    return os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir()))


def grid_files(path: Path) -> tuple[Path, Path]:
    """The description and the image of a grid saved under a path with one of GRID_SUFFIXES."""
    description = path.with_suffix(".yaml") if path.suffix.lower() == ".pgm" else path
    return description, path.with_suffix(".pgm")


def write_grid(path: Path, grid: OccupancyGrid) -> int:
    """Write a grid in nav2_map_server's format; returns the number of occupied and free cells.

    Raises UserError when it cannot be written.
    """
    description, picture = grid_files(path)
    cells = np.frombuffer(grid.data, np.int8).reshape(grid.info.height, grid.info.width)
    grey = np.full(cells.shape, _GREY, np.uint8)
    grey[(cells >= 0) & (cells <= 100 * _FREE_THRESHOLD)] = _WHITE
    grey[cells >= 100 * _OCCUPIED_THRESHOLD] = _BLACK
    with whole_file(picture) as temporary:
        header = f"P5\n{grid.info.width} {grid.info.height}\n255\n".encode("ascii")
        temporary.write_bytes(header + grey[::-1].tobytes())  # an image begins with the highest y
    origin = grid.info.origin.position
    with whole_file(description) as temporary:
        temporary.write_text(
            f"image: {json.dumps(picture.name)}\n"
            "mode: trinary\n"
            f"resolution: {grid.info.resolution:.6g}\n"
            f"origin: [{origin.x:.9g}, {origin.y:.9g}, 0]\n"
            "negate: 0\n"
            f"occupied_thresh: {_OCCUPIED_THRESHOLD}\n"
            f"free_thresh: {_FREE_THRESHOLD}\n"
        )
    return int(np.count_nonzero(grey != _GREY))


def path_at_start(directory: str, name: str) -> Path:
    """The map of the parameter `map_path`: absolute, below ~, or relative to `map_directory`.

    Raises UserError when there is none.
    """
    path = Path(name).expanduser()
    if not path.is_absolute():
        return path_for_loading(directory, name)
    if not path.is_dir():
        raise UserError(f"map_path {name!r}: there is no saved map")
    return path


def path_for_loading(directory: str, name: str) -> Path:
    """The absolute path of a saved map.  Raises UserError when it is missing or outside the directory."""
    if not name:
        raise UserError("name is empty; give the name of a saved map")
    path = _inside(directory, name)
    if not path.is_dir():
        raise UserError(f"no saved map {name!r} in {directory}")
    return path


def _inside(directory: str, name: str) -> Path:
    """Resolve a name below the directory, symbolic links included."""
    if not directory:
        raise UserError("map_directory is not set, so maps are neither saved nor loaded")
    root = Path(directory).expanduser().resolve()
    if not name.isprintable():
        raise UserError(f"the name {name[:60]!r} contains characters that cannot be printed")
    if len(name) > _LONGEST_NAME or any(len(part.encode()) > _LONGEST_PART for part in name.split("/")):
        raise UserError(f"the name {name[:30]!r}… is too long: {len(name)} characters")
    path = (root / name).resolve()
    if path == root or root not in path.parents:
        raise UserError(f"{name!r} is not a name inside map_directory {root}")
    return path

"""Where ~/save_map and ~/load_map may read and write: names inside one directory."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from fast3r_ros.errors import UserError
from fast3r_ros.io.pcd import write_pcd
from fast3r_ros.io.ply import write_ply
from fast3r_ros.mapping.data import Cloud
from fast3r_ros.mapping.storage import enclosing_map

CLOUD_WRITERS: dict[str, Callable[[Path, Cloud], None]] = {".ply": write_ply, ".pcd": write_pcd}


def path_for_saving(directory: str, name: str) -> Path:
    """The absolute path that a map of this name is written to; its folder exists afterwards.

    An empty name is made of the time.  Raises UserError for a name outside the directory or inside a saved
    map, which could not be replaced any more, and for an unusable directory.
    """
    name = name or datetime.now().strftime("map_%Y-%m-%d_%H-%M-%S")
    path = _inside(directory, name)
    outer = enclosing_map(path)
    if outer is not None:
        raise UserError(f"{name!r} lies inside the map {outer}; give a name outside of it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"map_directory {directory} cannot be used: {error.strerror or error}") from error
    return path


def path_for_loading(directory: str, name: str) -> Path:
    """The absolute path of a saved map.  Raises UserError when it is missing or outside the directory."""
    if not name:
        raise UserError("name is empty; give the name that the map was saved under")
    path = _inside(directory, name)
    if not path.is_dir():
        raise UserError(f"no saved map {name!r} in {directory}")
    return path


def _inside(directory: str, name: str) -> Path:
    """Resolve a name below the directory, symbolic links included."""
    if not directory:
        raise UserError("map_directory is not set, so maps are neither saved nor loaded")
    root = Path(directory).expanduser().resolve()
    if "\0" in name:
        raise UserError("the name contains a zero byte")
    path = (root / name).resolve()
    if path == root or root not in path.parents:
        raise UserError(f"{name!r} is not a name inside map_directory {root}")
    return path

"""Reads maps: a folder of `fast3r reconstruct`, a map saved by the node, or a single file."""

from __future__ import annotations

from pathlib import Path

from fast3r_ros.errors import UserError
from fast3r_ros.files import read_json
from fast3r_ros.io.cameras import CameraRecord, name_of, read_cameras
from fast3r_ros.io.formats import CLOUDS, Results, read_cloud
from fast3r_ros.io.ply import read_ply
from fast3r_ros.io.run_report import MAX_REPORT_BYTES, REPORT
from fast3r_ros.io.scenes import find_colmap, read_colmap
from fast3r_ros.mapping.config import MapConfig
from fast3r_ros.mapping.map import Map
from fast3r_ros.mapping.storage import read_map

KINDS = (
    "a folder that fast3r reconstruct wrote, a map that the node saved, a .ply, .pcd or .glb, or a folder "
    "with a COLMAP model"
)


def is_result(path: Path) -> bool:
    """Whether `read_results` accepts this kind of path."""
    if path.is_dir():
        ours = any((path / name).is_file() for name in ("map.ply", "map.json"))
        return ours or find_colmap(path) is not None
    return path.suffix.lower() in CLOUDS


def read_results(path: str | Path) -> Results:
    """Read one of `KINDS`.  Raises UserError when it is none of them."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"no such file or folder: {path}; give {KINDS}")
    if path.is_file():
        if path.suffix.lower() not in CLOUDS:
            raise UserError(f"{path} is not a map; give {KINDS}")
        return Results(read_cloud(path), [], "unknown")
    if (path / "map.json").is_file():
        return _read_saved_map(path)
    if not (path / "map.ply").is_file():
        model = find_colmap(path)
        if model is not None:
            cloud, cameras, distorted = read_colmap(model)
            return Results(cloud, cameras, "unknown", distorted=distorted)
        raise UserError(f"{path} holds no map.ply; give {KINDS}")
    cloud = read_ply(path / "map.ply")
    if not (path / "cameras.json").is_file():
        return Results(cloud, [], "unknown")
    cameras, unit = read_cameras(path / "cameras.json")
    return Results(cloud, cameras, unit, path / "images", caveat=_caveat(path / REPORT))


def _caveat(report: Path) -> str:
    """The caveat of a run's report; empty for other programs' reports and those of older versions."""
    try:
        content = read_json(report, MAX_REPORT_BYTES)
    except UserError:
        return ""
    return str(content.get("caveat", "")) if isinstance(content, dict) else ""


def _read_saved_map(path: Path) -> Results:
    """The main submap of a `fast3r_ros.mapping.storage` directory, without keyframes that have no points."""
    saved = read_map(path)
    restored = Map.restored(MapConfig(), saved.keyframes, saved.metres, saved.voxel_size, saved.unscaled)
    cameras = [
        CameraRecord(
            name_of(keyframe.id),
            keyframe.stamp_ns,
            keyframe.camera,
            keyframe.image.shape[1],
            keyframe.image.shape[0],
            keyframe.intrinsics,
            keyframe.map_from_camera,
        )
        for keyframe in sorted(restored.part().values(), key=lambda keyframe: keyframe.stamp_ns)
        if keyframe.image is not None
    ]
    unit = "m" if restored.known_scale(restored.main) else "map units"
    return Results(restored.cloud(), cameras, unit, parts=restored.submaps)

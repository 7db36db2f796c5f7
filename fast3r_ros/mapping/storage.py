"""A map on disk: a directory with `map.json` and one array file that it names.

Saving writes a new array file, then replaces `map.json` in one step, then deletes what the old one named:
whenever the process is killed, the directory holds either the old or the new map, whole.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fast3r_ros.errors import UserError
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.map import Keyframe, KeyframePoints
from fast3r_ros.mapping.pose_graph import Edge

FORMAT = "fast3r_ros map"
VERSION = 1


@dataclass(frozen=True)
class SavedMap:
    """What a saved map holds; the fused cloud is derived from it."""

    keyframes: tuple[Keyframe, ...]
    edges: tuple[Edge, ...]
    metres: bool
    voxel_size: float
    guessed: tuple[int, ...] = ()  # submaps of a metric map whose own scale is not known


def write_map(directory: Path, saved: SavedMap) -> None:
    """Save into a directory, which is made if needed.  Raises UserError when it cannot be written or holds
    something else.
    """
    index = directory / "map.json"
    if directory.exists() and not _may_replace(directory):
        raise UserError(f"{directory} exists and holds no map; give another name, nothing was overwritten")
    arrays = directory / f"arrays-{secrets.token_hex(4)}.npz"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with arrays.open("wb") as file:
            np.savez(file, allow_pickle=False, **_arrays(saved))
            _sync(file)
        temporary = directory / f"map-{secrets.token_hex(4)}.tmp"
        with temporary.open("w", encoding="utf-8") as text:
            json.dump(_index(saved, arrays), text, indent=1)
            _sync(text)
        os.replace(temporary, index)
        for old in [*directory.glob("arrays-*.npz"), *directory.glob("map-*.tmp")]:
            if old != arrays:
                old.unlink()
    except OSError as error:
        raise UserError(f"the map cannot be saved to {directory}: {error.strerror or error}") from error


def read_map(directory: Path) -> SavedMap:
    """Load a saved map.  Raises UserError for a directory that holds none, and for truncated or foreign
    files.
    """
    index = directory / "map.json"
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{directory} holds no map: there is no map.json") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{index} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{index} is not a map of fast3r_ros")
    if content.get("version") != VERSION:
        raise UserError(
            f"{index} has format version {content.get('version')!r}, this program reads {VERSION}; "
            "use the version of fast3r_ros that wrote it"
        )
    try:
        path = directory / Path(str(content["arrays"])).name
        if path.stat().st_size != content["bytes"]:
            raise UserError(f"{path} has {path.stat().st_size} bytes, not {content['bytes']}: it is cut off")
        with np.load(path, allow_pickle=False) as arrays:
            return _restore(content, {name: arrays[name] for name in arrays.files})
    except UserError:
        raise
    except (OSError, ValueError, KeyError, IndexError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"the map in {directory} is damaged: {error!r}") from error


def _may_replace(directory: Path) -> bool:
    """Whether a directory holds a map or the leftovers of a save that was killed, and nothing else."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else [directory.name]
    ours = re.compile(r"map\.json|arrays-[0-9a-f]+\.npz|map-[0-9a-f]+\.tmp")
    return all(ours.fullmatch(name) for name in names)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _index(saved: SavedMap, arrays: Path) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "arrays": arrays.name,
        "bytes": arrays.stat().st_size,
        "metres": saved.metres,
        "voxel_size": saved.voxel_size,
        "guessed": list(saved.guessed),
        "keyframes": [
            {
                "id": k.id,
                "stamp_ns": k.stamp_ns,
                "camera": k.camera,
                "submap": k.submap,
                "estimates": k.estimates,
            }
            for k in saved.keyframes
        ],
    }


def _arrays(saved: SavedMap) -> dict[str, np.ndarray]:
    """Everything numeric, stacked over keyframes; points and images of different sizes are laid end to
    end.
    """
    keyframes, edges = saved.keyframes, saved.edges
    points = [k.points for k in keyframes if k.points is not None]
    images = [k.image for k in keyframes if k.image is not None]
    return {
        "pose": np.array([_flat(k.map_from_local) for k in keyframes]).reshape(-1, 13),
        "covariance": _stacked([k.covariance for k in keyframes], (6, 6)),
        "intrinsics": _stacked([k.intrinsics for k in keyframes], (3, 3)),
        "network_from_image": _stacked([k.network_from_image for k in keyframes], (3, 3)),
        "depth": np.array([k.depth for k in keyframes], np.float64),
        "metric_scale": np.array([k.metric_scale for k in keyframes], np.float64),
        "point_count": np.array(
            [0 if k.points is None else len(k.points.points) for k in keyframes], np.int64
        ),
        "image_size": np.array([(0, 0) if k.image is None else k.image.shape[:2] for k in keyframes]).reshape(
            -1, 2
        ),
        "descriptor_size": np.array([len(k.descriptor) for k in keyframes], np.int64),
        "descriptor": np.concatenate([k.descriptor for k in keyframes] or [np.zeros(0, np.float32)]),
        "points": np.concatenate([p.points for p in points] or [np.zeros((0, 3), np.float32)]),
        "confidence": np.concatenate([p.confidence for p in points] or [np.zeros(0, np.float32)]),
        "colors": np.concatenate([p.colors for p in points] or [np.zeros((0, 3), np.uint8)]),
        "pixels": np.concatenate([p.pixels for p in points] or [np.zeros(0, np.int32)]),
        "image": np.concatenate([image.reshape(-1) for image in images] or [np.zeros(0, np.uint8)]),
        "edge": np.array([(e.i, e.j, e.robust) for e in edges], np.int64).reshape(-1, 3),
        "edge_pose": np.array([_flat(e.i_from_j) for e in edges]).reshape(-1, 13),
        "edge_noise": np.array([(e.depth, *e.sigma) for e in edges]).reshape(-1, 4),
    }


def _restore(content: dict[str, Any], arrays: dict[str, np.ndarray]) -> SavedMap:
    count = arrays["point_count"]
    point_ends, descriptor_ends = np.cumsum(count), np.cumsum(arrays["descriptor_size"])
    image_ends = np.cumsum(arrays["image_size"].prod(axis=1) * 3)
    keyframes = []
    grids: dict[bytes, np.ndarray] = {}  # keyframes of one size share their pixel numbers
    for n, entry in enumerate(content["keyframes"]):
        part = slice(int(point_ends[n] - count[n]), int(point_ends[n]))
        height, width = (int(side) for side in arrays["image_size"][n])
        image = arrays["image"][int(image_ends[n]) - 3 * height * width : int(image_ends[n])]
        descriptor = slice(int(descriptor_ends[n] - arrays["descriptor_size"][n]), int(descriptor_ends[n]))
        # copies, so that a keyframe that is culled later frees its memory
        pixels = arrays["pixels"][part].copy()
        points = KeyframePoints(
            points=arrays["points"][part].copy(),
            confidence=arrays["confidence"][part].copy(),
            colors=arrays["colors"][part].copy(),
            pixels=grids.setdefault(pixels.tobytes(), pixels),
        )
        keyframes.append(
            Keyframe(
                id=int(entry["id"]),
                stamp_ns=int(entry["stamp_ns"]),
                camera=str(entry["camera"]),
                submap=int(entry["submap"]),
                map_from_local=_sim3(arrays["pose"][n]),
                covariance=arrays["covariance"][n],
                estimates=int(entry["estimates"]),
                intrinsics=arrays["intrinsics"][n],
                network_from_image=arrays["network_from_image"][n],
                descriptor=arrays["descriptor"][descriptor],
                image=image.reshape(height, width, 3).copy() if height else None,
                points=points if count[n] else None,
                depth=float(arrays["depth"][n]),
                metric_scale=float(arrays["metric_scale"][n]),
            )
        )
    edges = tuple(
        Edge(int(i), int(j), _sim3(pose), float(d), (float(r), float(t), float(s)), bool(robust))
        for (i, j, robust), pose, (d, r, t, s) in zip(
            arrays["edge"], arrays["edge_pose"], arrays["edge_noise"], strict=True
        )
    )
    guessed = tuple(int(submap) for submap in content.get("guessed", ()))
    return SavedMap(tuple(keyframes), edges, bool(content["metres"]), float(content["voxel_size"]), guessed)


def _flat(similarity: Sim3) -> np.ndarray:
    return np.concatenate([[similarity.scale], similarity.rotation.reshape(-1), similarity.translation])


def _sim3(row: np.ndarray) -> Sim3:
    return Sim3(float(row[0]), row[1:10].reshape(3, 3), row[10:13])


def _stacked(matrices: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    return np.array(matrices, np.float64).reshape(-1, *shape)

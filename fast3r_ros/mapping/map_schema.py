"""The schema of a saved map: its arrays with types and shapes, its index, and the check of both.

The check is complete, so that every map that passes can be continued.  It runs before a map is written and
after one was read.  A ValueError describes the first fault in one line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.data import Keyframe, KeyframePoints
from fast3r_ros.mapping.pose_graph import Edge

Arrays = Mapping[str, NDArray[Any]]

_LARGEST = 1e9  # maximum of a length, a coordinate, a ratio; far beyond any real one
_SMALLEST = 1e-9
_ROUNDING = 1e-6
_ROTATION_ERROR = 1e-3  # of the entries of R R^T
_VOXEL_SIZES = (1e-6, 1e6)  # in map units
_VOXELS_PER_DEPTH = 2.0**20  # beyond this the cloud cannot hold a keyframe's points
_ID = (0, 2**31 - 1)
_STAMP_NS = (-(2**31) * 10**9, 2**31 * 10**9 - 1)  # the range of a ROS stamp
_SIDE = 1 << 14  # maximum side of an image, in pixels
_DESCRIPTOR = 1 << 16


@dataclass(frozen=True)
class SavedMap:
    """The content of a saved map; the fused cloud is derived from it."""

    keyframes: tuple[Keyframe, ...]
    edges: tuple[Edge, ...]
    metres: bool
    voxel_size: float
    unscaled: tuple[int, ...] = ()  # submaps of a metric map whose own scale is unknown


@dataclass(frozen=True)
class Column:
    """One array.

    shape: a letter is a number shared by several arrays: k keyframes, p points, d descriptor values, i bytes
    of images, e edges.  bounds: of every value, inclusive; None if NaN may occur.
    """

    dtype: str
    shape: tuple[int | str, ...]
    bounds: tuple[float, float] | None = None


COLUMNS = {
    "pose": Column("<f8", ("k", 13), (-_LARGEST, _LARGEST)),
    "covariance": Column("<f8", ("k", 6, 6), (-np.finfo(np.float64).max, np.finfo(np.float64).max)),
    "intrinsics": Column("<f8", ("k", 3, 3), (-_LARGEST, _LARGEST)),
    "network_from_image": Column("<f8", ("k", 3, 3), (-_LARGEST, _LARGEST)),
    "depth": Column("<f8", ("k",), (_SMALLEST, _LARGEST)),
    "metric_scale": Column("<f8", ("k",)),
    "point_count": Column("<i8", ("k",), (0, _SIDE**2)),
    "image_size": Column("<i8", ("k", 2), (0, _SIDE)),
    "descriptor_size": Column("<i8", ("k",), (0, _DESCRIPTOR)),
    "descriptor": Column("<f4", ("d",), (-_LARGEST, _LARGEST)),
    "points": Column("<f4", ("p", 3)),
    "confidence": Column("<f4", ("p",), (0.0, float(np.finfo(np.float32).max))),
    "colors": Column("|u1", ("p", 3)),
    "pixels": Column("<i4", ("p",), (0, _SIDE**2 - 1)),
    "image": Column("|u1", ("i",)),
    "edge": Column("<i8", ("e", 3), _ID),
    "edge_pose": Column("<f8", ("e", 13), (-_LARGEST, _LARGEST)),
    "edge_noise": Column("<f8", ("e", 4), (_SMALLEST, _LARGEST)),
}


def index_of(saved: SavedMap) -> dict[str, Any]:
    """The part of a map that is not in arrays, for `map.json`."""
    return {
        "metres": saved.metres,
        "voxel_size": saved.voxel_size,
        "guessed": list(saved.unscaled),
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


def arrays_of(saved: SavedMap) -> dict[str, NDArray[Any]]:
    """All numbers, stacked over keyframes; points and images of different sizes are concatenated."""
    keyframes, edges = saved.keyframes, saved.edges
    points = [k.points for k in keyframes if k.points is not None]
    values: dict[str, Sequence[Any]] = {
        "pose": [_flat(k.map_from_local) for k in keyframes],
        "covariance": [k.covariance for k in keyframes],
        "intrinsics": [k.intrinsics for k in keyframes],
        "network_from_image": [k.network_from_image for k in keyframes],
        "depth": [k.depth for k in keyframes],
        "metric_scale": [k.metric_scale for k in keyframes],
        "point_count": [0 if k.points is None else len(k.points.points) for k in keyframes],
        "image_size": [(0, 0) if k.image is None else k.image.shape[:2] for k in keyframes],
        "descriptor_size": [len(k.descriptor) for k in keyframes],
        "edge": [(e.i, e.j, e.robust) for e in edges],
        "edge_pose": [_flat(e.i_from_j) for e in edges],
        "edge_noise": [(e.depth, *e.sigma) for e in edges],
    }
    parts: dict[str, list[NDArray[Any]]] = {
        "descriptor": [k.descriptor for k in keyframes],
        "points": [p.points for p in points],
        "confidence": [p.confidence for p in points],
        "colors": [p.colors for p in points],
        "pixels": [p.pixels for p in points],
        "image": [k.image.reshape(-1) for k in keyframes if k.image is not None],
    }
    arrays = {name: np.array(rows, COLUMNS[name].dtype) for name, rows in values.items()}
    for name, rows in parts.items():
        dtype = np.dtype(COLUMNS[name].dtype)
        flat = [np.zeros(0, dtype), *(row.reshape(-1) for row in rows)]
        arrays[name] = np.concatenate(flat, dtype=dtype, casting="unsafe")
    return {name: arrays[name].reshape(-1, *column.shape[1:]) for name, column in COLUMNS.items()}


def check_layout(layout: Mapping[str, tuple[str, tuple[int, ...]]], keyframes: int) -> None:
    """Check that the (dtype, shape) of the arrays match a map with `keyframes` keyframes."""
    for name, difference in (
        ("lacks", COLUMNS.keys() - layout.keys()),
        ("has the unknown", layout.keys() - COLUMNS.keys()),
    ):
        if difference:
            raise ValueError(f"it {name} array {sorted(difference)[0]!r}")
    numbers = {"k": keyframes}
    for name, column in COLUMNS.items():
        dtype, shape = layout[name]
        if dtype != column.dtype or len(shape) != len(column.shape):
            raise ValueError(f"{name} is {dtype} of shape {shape}, not {column.dtype} {column.shape}")
        for wanted, size in zip(column.shape, shape, strict=True):
            expected = numbers.setdefault(wanted, size) if isinstance(wanted, str) else wanted
            if size != expected:
                raise ValueError(f"{name} has the shape {shape}, with {size} where {expected} was expected")


def check(content: Any, arrays: Arrays) -> None:
    """Check that index and arrays are a valid map.  Raises ValueError for the first fault."""
    ids = _check_index(content)
    check_layout({name: (array.dtype.str, array.shape) for name, array in arrays.items()}, len(ids))
    for name, column in COLUMNS.items():
        if column.bounds is not None:
            low, high = column.bounds
            # written so that NaN fails, too
            _all(name, (arrays[name] >= low) & (arrays[name] <= high), f"not between {low:g} and {high:g}")
    _check_similarities("pose", arrays["pose"])
    _check_similarities("edge_pose", arrays["edge_pose"])
    _check_cameras(arrays)
    _check_covariances(arrays["covariance"])
    _check_parts(arrays)
    scale = arrays["metric_scale"]
    _all("metric_scale", np.isnan(scale) | ((scale >= _SMALLEST) & (scale <= _LARGEST)), "no scale")
    kept = arrays["points"][arrays["confidence"] > 0]  # the others hold NaN
    _all("points", np.abs(kept) <= _LARGEST, "not finite, or too large")
    edge = arrays["edge"]
    _all("edge", np.isin(edge[:, :2], ids), "between keyframes that do not exist")
    _all("edge", (edge[:, 0] != edge[:, 1]) & (edge[:, 2] <= 1), "no edge")
    depth = arrays["depth"] * arrays["pose"][:, 0]
    if len(depth) and not np.median(depth) < content["voxel_size"] * _VOXELS_PER_DEPTH:
        raise ValueError(f"voxel_size {content['voxel_size']!r} is too small for what the keyframes see")


def restore(content: Mapping[str, Any], arrays: Arrays) -> SavedMap:
    """The map of an index and arrays that have passed `check`; keyframes in the order of their ids."""
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
        # copies, so that culling a keyframe frees its memory; pixels numbered past the end of
        # the image (numbering from 1 is accepted) would be looked up outside of a later window's maps
        inside = arrays["pixels"][part] < height * width
        pixels = arrays["pixels"][part][inside]
        points = KeyframePoints(
            points=arrays["points"][part][inside],
            confidence=arrays["confidence"][part][inside],
            colors=arrays["colors"][part][inside],
            pixels=grids.setdefault(pixels.tobytes(), pixels),
        )
        keyframes.append(
            Keyframe(
                id=entry["id"],
                stamp_ns=entry["stamp_ns"],
                camera=entry["camera"],
                submap=entry["submap"],
                map_from_local=_sim3(arrays["pose"][n]),
                covariance=arrays["covariance"][n].copy(),
                estimates=entry["estimates"],
                intrinsics=arrays["intrinsics"][n].copy(),
                network_from_image=arrays["network_from_image"][n].copy(),
                descriptor=arrays["descriptor"][descriptor].copy(),
                image=image.reshape(height, width, 3).copy() if height else None,
                points=points if len(pixels) else None,
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
    unscaled = tuple(content.get("guessed", ()))
    keyframes.sort(key=lambda keyframe: keyframe.id)
    return SavedMap(tuple(keyframes), edges, content["metres"], float(content["voxel_size"]), unscaled)


def _check_index(content: Any) -> NDArray[np.int64]:
    """The ids of the keyframes, if the index is valid."""
    if type(content.get("metres")) is not bool:
        raise ValueError(f"metres is {content.get('metres')!r:.40}, not true or false")
    voxel = content.get("voxel_size")
    number = type(voxel) in (int, float) and isfinite(voxel)
    if not number or not _VOXEL_SIZES[0] <= voxel <= _VOXEL_SIZES[1]:
        raise ValueError(f"voxel_size is {voxel!r:.40}, not a length in map units")
    entries = content.get("keyframes")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("keyframes is not a list of objects")
    for name, bounds in {"id": _ID, "stamp_ns": _STAMP_NS, "submap": _ID, "estimates": (1, _ID[1])}.items():
        _whole(name, [entry.get(name) for entry in entries], bounds)
    _whole("guessed", content.get("guessed", []), _ID)
    for camera in (entry.get("camera") for entry in entries):
        if not isinstance(camera, str) or any("\ud800" <= letter <= "\udfff" for letter in camera):
            raise ValueError(f"camera is {camera!r:.40}, not a name")  # lone surrogates cannot be written
    ids = np.array([entry["id"] for entry in entries], np.int64)
    if len(np.unique(ids)) != len(ids):
        raise ValueError("an id of a keyframe occurs twice")
    return ids


def _whole(name: str, values: Any, bounds: tuple[int, int]) -> None:
    if not isinstance(values, list):
        raise ValueError(f"{name} is {values!r:.40}, not a list")
    wrong = [v for v in values if type(v) is not int or not bounds[0] <= v <= bounds[1]]
    if wrong:
        shown = repr(wrong[0])[:40] if type(wrong[0]) is not int or abs(wrong[0]) < 10**40 else "too large"
        raise ValueError(f"{name} is {shown}, not a whole number from {bounds[0]} to {bounds[1]}")


def _check_similarities(name: str, rows: NDArray[np.float64]) -> None:
    """Check that rows are similarities: a positive scale and a rotation, not a reflection."""
    _all(name, rows[:, 0] >= _SMALLEST, "without a scale")
    rotation = rows[:, 1:10].reshape(-1, 3, 3)
    error = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2), initial=0.0)
    _all(name, (error < _ROTATION_ERROR) & (np.linalg.det(rotation) > 0), "no rotation")


def _check_cameras(arrays: Arrays) -> None:
    for name in ("intrinsics", "network_from_image"):
        _all(name, np.abs(arrays[name][:, 2] - (0.0, 0.0, 1.0)) < _ROUNDING, "no transform of pixels")
        size = np.abs(np.linalg.det(arrays[name][:, :2, :2]))
        _all(name, (size > _SMALLEST) & (size < inf), "not invertible")
    focal = np.minimum(arrays["intrinsics"][:, 0, 0], arrays["intrinsics"][:, 1, 1])
    _all("intrinsics", focal > 0, "without a focal length")


def _check_covariances(covariance: NDArray[np.float64]) -> None:
    """Check that (K, 6, 6) are covariances: symmetric, with correlations that can occur together."""
    variance = np.einsum("kii->ki", covariance)
    _all("covariance", variance >= 0, "negative")
    sigma = np.sqrt(np.maximum(variance, _SMALLEST))
    correlation = covariance / sigma[:, :, None] / sigma[:, None, :]
    symmetric = np.abs(correlation - correlation.transpose(0, 2, 1)) < _ROUNDING
    possible = np.abs(correlation) < 1 + _ROUNDING
    _all("covariance", symmetric & possible, "not symmetric, or correlated by more than 1")
    _all("covariance", np.linalg.eigvalsh(correlation) > -_ROUNDING, "not positive semidefinite")


def _check_parts(arrays: Arrays) -> None:
    """Check that the keyframes' parts fill their concatenated arrays and are consistent."""
    count, size, images = arrays["point_count"], arrays["descriptor_size"], arrays["image_size"]
    pixels = images.prod(axis=1)
    for name, needed in (("points", count), ("descriptor", size), ("image", 3 * pixels)):
        if needed.sum() != len(arrays[name]):
            raise ValueError(f"{name} has {len(arrays[name])} rows, its keyframes have {needed.sum()}")
    _all("image_size", (images > 0).all(axis=1) | (images == 0).all(axis=1), "half empty")
    _all("point_count", (count == 0) | ((pixels > 0) & (size > 0)), "points without image or descriptor")
    if len(np.unique(size[size > 0])) > 1:
        raise ValueError("descriptors are of several sizes")
    _all("pixels", arrays["pixels"] < np.repeat(np.maximum(pixels, count), count), "outside their image")


def _all(name: str, good: NDArray[np.bool_], fault: str) -> None:
    if not good.all():
        row = int(np.argmin(good.reshape(len(good), -1).all(axis=1)))
        raise ValueError(f"{name} {row} is {fault}")


def _flat(similarity: Sim3) -> np.ndarray:
    return np.concatenate([[similarity.scale], similarity.rotation.reshape(-1), similarity.translation])


def _sim3(row: np.ndarray) -> Sim3:
    return Sim3(float(row[0]), row[1:10].reshape(3, 3).copy(), row[10:13].copy())

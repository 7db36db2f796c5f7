"""A small saved map, its files, and files like those with other content."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fast3r_ros.errors import UserError
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.data import Keyframe, KeyframePoints
from fast3r_ros.mapping.map_schema import arrays_of, index_of
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.mapping.pose_graph import Edge
from fast3r_ros.mapping.storage import FORMAT, VERSION, SavedMap

ARRAYS = "arrays-00000000.npz"
Index = dict[str, Any]
Arrays = dict[str, np.ndarray]


def keyframe(number: int, points: int = 48) -> Keyframe:
    rng = np.random.default_rng(number)
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    kept = KeyframePoints(
        points=rng.normal((0.0, 0.0, 3.0), 1.0, (points, 3)).astype(np.float32),
        confidence=rng.uniform(1, 3, points).astype(np.float32),
        colors=rng.integers(0, 255, (points, 3)).astype(np.uint8),
        pixels=np.arange(points, dtype=np.int32),
    )
    kept.points[0], kept.confidence[0] = np.nan, 0.0  # as the filters leave it
    return Keyframe(
        id=3 * number,
        stamp_ns=number * 10**9,
        camera="front",
        submap=0,
        map_from_local=Sim3(1.5, np.linalg.matrix_power(turn, number), np.array([0.1 * number, 0.0, 0.0])),
        covariance=np.eye(6) * 1e-4,
        estimates=2,
        intrinsics=np.array([[40.0, 0, 24], [0, 40.0, 18], [0, 0, 1]]),
        network_from_image=np.eye(3),
        descriptor=(rng.normal(size=8) / 8).astype(np.float32),
        image=rng.integers(0, 255, (6, 8, 3)).astype(np.uint8),
        points=kept,
        depth=3.0,
        metric_scale=float("nan"),
    )


def small_map(count: int = 5, points: int = 48) -> SavedMap:
    """Keyframes of which one was culled, and an edge between two others."""
    keyframes = [keyframe(number, points) for number in range(count)]
    bare = replace(keyframes[1], points=None, image=None, descriptor=np.zeros(0, np.float32))
    keyframes[1] = bare
    edge = Edge(0, 6, Sim3(1.1, np.eye(3), np.array([0.2, 0.0, 0.0])), 3.0, (0.002, 0.003, 0.002), True)
    return SavedMap(tuple(keyframes), (edge,) if count > 2 else (), True, 0.03, (2,))


def files_of(saved: SavedMap) -> tuple[Index, Arrays]:
    """The index and the arrays that a map is saved as."""
    return {"format": FORMAT, "version": VERSION, **index_of(saved)}, arrays_of(saved)


INDEX, COLUMN_VALUES = files_of(small_map())


def npz(arrays: dict[str, Any], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A file as np.savez makes it; bytes stand for an entry's whole content."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, value in arrays.items():
            content = io.BytesIO()
            if isinstance(value, bytes):
                content.write(value)
            else:
                np.lib.format.write_array(content, np.asanyarray(value), allow_pickle=True)
            archive.writestr(f"{name}.npy", content.getvalue())
    return target.getvalue()


def put(folder: Path, index: Index | None = None, arrays: Any = None) -> Path:
    """A map folder with other content; arrays may be the whole file."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    content = arrays if isinstance(arrays, bytes) else npz({**COLUMN_VALUES, **(arrays or {})})
    (folder / ARRAYS).write_bytes(content)
    values = {**INDEX, "arrays": ARRAYS, "bytes": len(content), **(index or {})}
    (folder / "map.json").write_text(json.dumps(values))
    return folder


def assert_refused(mapper: Mapper, folder: Path) -> str:
    """A one-line error, and the present map is unchanged."""
    before, points = mapper.map, mapper.map.points
    with pytest.raises(UserError) as caught:
        mapper.load_map(folder)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 1000
    assert mapper.map is before
    assert mapper.map.points == points > 0
    return text

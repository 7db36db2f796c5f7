"""Damaged maps: a one-line error, and the present map stays as it was."""

from __future__ import annotations

import io
import json
import os
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from saved_maps import (
    ARRAYS,
    COLUMN_VALUES,
    INDEX,
    Arrays,
    Index,
    assert_refused,
    npz,
    put,
    small_map,
)

from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.mapping.storage import write_map

pytestmark = pytest.mark.slow


def claiming(array: np.ndarray, shape: str) -> bytes:
    """An array whose header claims another shape."""
    header = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-(11 + len(header)) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + array.tobytes()


def with_row(name: str, row: int, value: Any) -> Arrays:
    changed = COLUMN_VALUES[name].copy()
    changed[row] = value
    return {name: changed}


def of_keyframes(**values: Any) -> Index:
    return {"keyframes": [{**entry, **values} for entry in INDEX["keyframes"]]}


def bomb() -> bytes:
    return npz({**COLUMN_VALUES, "image": np.zeros(1 << 27, np.uint8)}, zipfile.ZIP_DEFLATED)


def many_entries() -> bytes:
    return npz({**COLUMN_VALUES, **{f"x{n}": b"" for n in range(3000)}})


def twice() -> bytes:
    target = io.BytesIO(npz(COLUMN_VALUES))
    with zipfile.ZipFile(target, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("pose.npy", b"")
    return target.getvalue()


POSE, EDGE = COLUMN_VALUES["pose"], COLUMN_VALUES["edge"]
MIRROR = np.concatenate([POSE[:, :1], -POSE[:, 1:]], axis=1)
BAD: dict[str, tuple[Index, Any]] = {
    "id twice": (of_keyframes(id=0), None),
    "id not whole": (of_keyframes(id=1.5), None),
    "id true": (of_keyframes(id=True), None),
    "id negative": (of_keyframes(id=-1), None),
    "id huge": (of_keyframes(id=10**4000), None),
    "id infinite": (of_keyframes(id=float("inf")), None),
    "stamp beyond a ROS message": (of_keyframes(stamp_ns=2**62), None),
    "camera a number": (of_keyframes(camera=4), None),
    "camera missing": (
        {"keyframes": [{k: v for k, v in e.items() if k != "camera"} for e in INDEX["keyframes"]]},
        None,
    ),
    "camera a surrogate": (of_keyframes(camera="\ud800"), None),
    "estimates zero": (of_keyframes(estimates=0), None),
    "submap missing": ({"keyframes": [{"id": 1}] * 5}, None),
    "keyframes a number": ({"keyframes": 5}, None),
    "keyframes lists": ({"keyframes": [[]] * 5}, None),
    "keyframes fewer": ({"keyframes": INDEX["keyframes"][:4]}, None),
    "metres one": ({"metres": 1}, None),
    "guessed text": ({"guessed": ["a"]}, None),
    "guessed a number": ({"guessed": 3}, None),
    "arrays outside": ({"arrays": "../" + ARRAYS}, None),
    "arrays a number": ({"arrays": 3}, None),
    **{f"voxel {v!r}": ({"voxel_size": v}, None) for v in (0, -1.0, 1e-300, 1e300, "1", None, True, 1e-9)},
    **{f"voxel {v}": ({"voxel_size": float(v)}, None) for v in ("nan", "inf")},
    "pose NaN": ({}, with_row("pose", (2, 10), np.nan)),
    "pose zero": ({}, {"pose": np.zeros_like(POSE)}),
    "pose mirrored": ({}, {"pose": MIRROR}),
    "pose stretched": ({}, {"pose": POSE * [1, *[1.1] * 9, 1, 1, 1]}),
    "pose of negative scale": ({}, with_row("pose", (0, 0), -1.0)),
    "pose far away": ({}, with_row("pose", (0, 11), 1e30)),
    "depth zero": ({}, with_row("depth", 0, 0.0)),
    "covariance infinite": ({}, with_row("covariance", (0, 0, 0), np.inf)),
    "covariance negative": ({}, with_row("covariance", (0, 0, 0), -1.0)),
    "covariance asymmetric": ({}, with_row("covariance", (0, 0, 1), 5e-5)),
    "covariance correlated by more than 1": ({}, with_row("covariance", (0, (0, 1), (1, 0)), 2e-4)),
    "covariance indefinite": ({}, with_row("covariance", (0, *np.nonzero(1 - np.eye(6))), -5e-5)),
    "focal length zero": ({}, with_row("intrinsics", (0, 0, 0), 0.0)),
    "focal length negative": ({}, with_row("intrinsics", (0, 0, 0), -40.0)),
    "network_from_image singular": ({}, with_row("network_from_image", (0, 0, 0), 0.0)),
    "metric scale zero": ({}, with_row("metric_scale", 0, 0.0)),
    "points NaN": ({}, with_row("points", (3, 1), np.nan)),
    "points infinite": ({}, with_row("points", (3, 1), np.inf)),
    "confidence NaN": ({}, with_row("confidence", 3, np.nan)),
    "confidence negative": ({}, with_row("confidence", 3, -1.0)),
    "descriptor NaN": ({}, with_row("descriptor", 3, np.nan)),
    "descriptors of two sizes": ({}, {"descriptor_size": np.array([8, 0, 7, 9, 8])}),
    "pixels negative": ({}, with_row("pixels", 3, -1)),
    "pixels outside": ({}, with_row("pixels", 3, 10**6)),
    "point counts negative": ({}, {"point_count": np.array([144, -48, 48, 48, 0])}),
    "point counts that overflow": ({}, {"point_count": np.array([2**62, 2**62, 2**62, 2**62, 192])}),
    "points without an image": ({}, {"point_count": np.array([48, 48, 48, 48, 0])}),
    "image sides that overflow": ({}, with_row("image_size", 0, 2**40)),
    "image without width": ({}, with_row("image_size", 0, (6, 0))),
    "image cut": ({}, {"image": COLUMN_VALUES["image"][:-1]}),
    "colors empty": ({}, {"colors": COLUMN_VALUES["colors"][:0]}),
    "points transposed": ({}, {"points": COLUMN_VALUES["points"].T.copy()}),
    "points in Fortran's order": ({}, {"points": np.asfortranarray(COLUMN_VALUES["points"])}),
    "points of doubles": ({}, {"points": COLUMN_VALUES["points"].astype(np.float64)}),
    "points of the other byte order": ({}, {"points": COLUMN_VALUES["points"].astype(">f4")}),
    "confidence text": ({}, {"confidence": COLUMN_VALUES["confidence"].astype("U3")}),
    "confidence objects": ({}, {"confidence": COLUMN_VALUES["confidence"].astype(object)}),
    "pose complex": ({}, {"pose": POSE.astype(complex)}),
    "edge to nowhere": ({}, {"edge": np.array([[0, 10**6, 0]])}),
    "edge to itself": ({}, {"edge": np.array([[0, 0, 0]])}),
    "edge of a third kind": ({}, {"edge": np.array([[0, 6, 2]])}),
    "edge without certainty": ({}, {"edge_noise": np.array([[3.0, 0.0, 0.1, 0.1]])}),
    "edge pose zero": ({}, {"edge_pose": np.zeros((1, 13))}),
    "edges without poses": ({}, {"edge_pose": np.zeros((0, 13))}),
    "another array": ({}, {"more": np.zeros(3)}),
    "an array missing": ({}, npz({k: v for k, v in COLUMN_VALUES.items() if k != "pose"})),
    "a claim of 1e14 rows": ({}, {"pose": claiming(POSE, "(100000000000000, 13)")}),
    "a claim of -1 rows": ({}, {"pose": claiming(POSE, "(-1, 13)")}),
    "a claim of many digits": ({}, {"pose": claiming(POSE, f"({'9' * 5000}, 13)")}),
    "a header that nests": ({}, {"pose": claiming(POSE, "(" * 9000)}),
    "no arrays at all": ({}, b"PK\x05\x06" + bytes(18)),
    "arrays empty": ({}, b""),
    "arrays text": ({}, b"hello" * 100),
    "compressed": ({}, npz(COLUMN_VALUES, zipfile.ZIP_DEFLATED)),
}
MADE: dict[str, Callable[[], bytes]] = {"bomb": bomb, "many entries": many_entries, "an array twice": twice}
TEXTS = {
    "deep": "[" * 200_000,
    "deep objects": '{"a":' * 100_000,
    "deep version": '{"format": "fast3r_ros map", "version": ' + "[" * 900 + "]" * 900 + "}",
    "no text": b"\xff\xfe\x00",
    "list": "[]",
    "text": '"fast3r_ros map"',
    "digits": '{"format": "fast3r_ros map", "version": ' + "9" * 10_000 + "}",
    "a key twice": '{"format": "fast3r_ros map", "metres": true, "metres": false}',
}


@pytest.fixture
def mapper(tmp_path: Path) -> Mapper:
    result = Mapper(object(), MapperConfig())  # type: ignore[arg-type]  # loading needs no network
    write_map(tmp_path / "present", small_map())
    result.load_map(tmp_path / "present")
    return result


def test_a_saved_map_is_loaded(mapper: Mapper, tmp_path: Path) -> None:
    mapper.load_map(put(tmp_path / "map"))
    assert mapper.map.points > 0
    assert list(mapper.map.keyframes) == [0, 3, 6, 9, 12]


@pytest.mark.parametrize("name", [*BAD, *MADE])
def test_a_damaged_map_gives_a_one_line_error_and_the_present_one_stays(
    mapper: Mapper, tmp_path: Path, name: str
) -> None:
    index, arrays = BAD[name] if name in BAD else ({}, MADE[name]())
    if name == "camera a surrogate":  # json writes it as an escape
        assert "\\ud800" in json.dumps(index)
    assert_refused(mapper, put(tmp_path / "map", index, arrays))


@pytest.mark.parametrize("name", TEXTS)
def test_an_invalid_index_gives_a_one_line_error(mapper: Mapper, tmp_path: Path, name: str) -> None:
    folder, text = put(tmp_path / "map"), TEXTS[name]
    (folder / "map.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_refused(mapper, folder)


@pytest.mark.parametrize("which", ["map.json", ARRAYS])
@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "device"])
def test_only_regular_files_are_read(mapper: Mapper, tmp_path: Path, which: str, kind: str) -> None:
    path = put(tmp_path / "map") / which
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "loop" else "/dev/zero")
    assert_refused(mapper, path.parent)


@pytest.mark.parametrize("factor", [1e5, 1e7])
def test_a_map_of_distant_points_takes_little_time_and_memory(
    mapper: Mapper, tmp_path: Path, factor: float
) -> None:
    """The rays to them pass millions of voxels of free space each."""
    points = COLUMN_VALUES["points"] * np.float32(factor)
    folder = put(tmp_path / "map", arrays={"points": points})
    before = time.process_time()
    tracemalloc.start()
    try:
        mapper.load_map(folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(mapper.map.keyframes) == 5
    assert peak < 100e6
    assert time.process_time() - before < 10

"""Damaged maps, full disks and kills: a one-line error, the present map unchanged, nothing left behind.

FAST3R_FAULTS=1000 mutates as many maps, FAST3R_KILLS=100 kills as many saves and loads; figures in
docs/reliability.md.
"""

from __future__ import annotations

import errno
import io
import json
import os
import random
import resource
import shutil
import time
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fast3r_ros.errors import UserError
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import Keyframe, KeyframePoints
from fast3r_ros.mapping.map_schema import COLUMNS, arrays_of, index_of
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.mapping.pose_graph import Edge
from fast3r_ros.mapping.storage import FORMAT, VERSION, SavedMap, read_map, write_map

pytestmark = pytest.mark.slow

FAULTS = int(os.environ.get("FAST3R_FAULTS", "60"))
KILLS = int(os.environ.get("FAST3R_KILLS", "3"))
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


def claiming(array: np.ndarray, shape: str) -> bytes:
    """An array whose header claims another shape."""
    header = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-(11 + len(header)) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + array.tobytes()


def put(folder: Path, index: Index | None = None, arrays: Any = None) -> Path:
    """A map folder with other content; arrays may be the whole file."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    content = arrays if isinstance(arrays, bytes) else npz({**COLUMN_VALUES, **(arrays or {})})
    (folder / ARRAYS).write_bytes(content)
    values = {**INDEX, "arrays": ARRAYS, "bytes": len(content), **(index or {})}
    (folder / "map.json").write_text(json.dumps(values))
    return folder


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


def test_a_map_that_would_not_load_is_not_saved(tmp_path: Path) -> None:
    write_map(tmp_path / "map", small_map())
    before = {path.name: path.read_bytes() for path in (tmp_path / "map").iterdir()}
    broken = replace(small_map(), voxel_size=float("nan"))
    with pytest.raises(UserError, match="voxel_size is nan"):
        write_map(tmp_path / "map", broken)
    assert {path.name: path.read_bytes() for path in (tmp_path / "map").iterdir()} == before


def test_a_map_is_not_saved_inside_another(tmp_path: Path) -> None:
    write_map(tmp_path / "a", small_map())
    with pytest.raises(UserError, match="lies inside the map"):
        write_map(tmp_path / "a" / "b" / "c", small_map())
    write_map(tmp_path / "a", small_map())  # it can still be replaced
    assert len(list((tmp_path / "a").iterdir())) == 2


# ---------------------------------------------------------------- mutations

NUMBERS = st.sampled_from(
    [0, -1, 1, 2, 7, 10**6, 2**31, 2**63, 0.5, 1e-300, 1e300, float("nan"), float("inf"), -float("inf")]
)
VALUES = st.one_of(NUMBERS, st.text(max_size=5), st.none(), st.booleans(), st.just([]), st.just({}))


@st.composite
def mutations(draw: st.DrawFn) -> tuple[Index, Any]:
    """One to three changes of a good map: values, shapes and types of arrays, the index, or raw bytes."""
    index: Index = json.loads(json.dumps(INDEX))
    arrays: dict[str, Any] = {name: array.copy() for name, array in COLUMN_VALUES.items()}
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["value", "rows", "type", "shape", "index", "entry", "drop"]))
        name = draw(st.sampled_from(list(COLUMNS)))
        array = arrays.get(name)
        if kind == "index":
            index[draw(st.sampled_from([*INDEX, "more"]))] = draw(VALUES)
        elif kind == "entry" and isinstance(index.get("keyframes"), list) and index["keyframes"]:
            key = draw(st.sampled_from([*INDEX["keyframes"][0], "more"]))
            index["keyframes"][draw(st.integers(0, len(index["keyframes"]) - 1))][key] = draw(VALUES)
        elif array is None:
            continue
        elif kind == "drop":
            del arrays[name]
        elif kind == "value" and array.size:
            with np.errstate(all="ignore"):
                array.flat[draw(st.integers(0, array.size - 1))] = np.float64(draw(NUMBERS)).astype(
                    array.dtype
                )
        elif kind == "rows":
            count = draw(st.integers(0, 2 * len(array)))
            arrays[name] = np.resize(array, (count, *array.shape[1:]))
        elif kind == "type":
            kinds = ["f2", "f4", "f8", "i8", "u1", "c16", ">f4", "?"]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                arrays[name] = array.astype(draw(st.sampled_from(kinds)))
        elif kind == "shape":
            arrays[name] = draw(
                st.sampled_from([array.reshape(-1), array[None], array.T.copy(), array[..., None]])
            )
    return index, arrays


def restored(saved: SavedMap) -> list[Any]:
    """What two equal maps have in common, bit for bit."""
    rows = []
    for k in saved.keyframes:
        numbers = [k.map_from_local.translation, k.covariance, k.descriptor, k.network_from_image]
        numbers += [] if k.points is None else [k.points.points, k.points.pixels, k.points.colors]
        rows.append((k.id, k.stamp_ns, k.camera, k.submap, k.depth, *(each.tobytes() for each in numbers)))
    return [*rows, saved.metres, saved.voxel_size, saved.unscaled, len(saved.edges)]


def loads_equal_or_is_one_line(mapper: Mapper, folder: Path, again: Path) -> bool:
    """Whether a folder was loaded: then it can be saved and is equal; if not, `assert_refused`."""
    try:
        saved = read_map(folder)
    except UserError:
        assert_refused(mapper, folder)
        return False
    fresh = Mapper(object(), MapperConfig())  # type: ignore[arg-type]
    fresh.load_map(folder)
    write_map(again, saved)
    assert restored(read_map(again)) == restored(saved)
    return True


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mapper, Path]:
    top = tmp_path_factory.mktemp("mutated")
    write_map(top / "present", small_map())
    mapper = Mapper(object(), MapperConfig())  # type: ignore[arg-type]
    mapper.load_map(top / "present")
    return mapper, top


campaign = settings(
    max_examples=FAULTS,
    deadline=None,
    derandomize=FAULTS < 1000,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@campaign
@given(mutations())
def test_mutated_maps_load_equal_or_are_one_line(
    folders: tuple[Mapper, Path], mutation: tuple[Index, Any]
) -> None:
    mapper, top = folders
    index, arrays = mutation
    content = npz(arrays)
    loads_equal_or_is_one_line(mapper, put(top / "map", index, content), top / "again")


@campaign
@given(st.data())
def test_mutated_bytes_are_one_line(folders: tuple[Mapper, Path], data: st.DataObject) -> None:
    """Of the arrays any byte, cut or doubled; of the index any character."""
    mapper, top = folders
    folder = put(top / "map")
    path = folder / data.draw(st.sampled_from(["map.json", ARRAYS]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(0, len(content) - 1)))
        action = data.draw(st.sampled_from(["flip", "cut", "double", "zero"]))
        if action == "flip" and content:
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        elif action == "cut":
            del content[place : place + data.draw(st.integers(1, 200))]
        elif action == "double":
            content[place:place] = content[place : place + 100]
        else:
            content[place : place + 8] = bytes(len(content[place : place + 8]))
    path.write_bytes(bytes(content))
    if path.name == ARRAYS:  # like somebody who knows the format
        index = json.loads((folder / "map.json").read_text())
        (folder / "map.json").write_text(json.dumps({**index, "bytes": len(content)}))
    loads_equal_or_is_one_line(mapper, folder, top / "again")


# ---------------------------------------------------------------- disks


@pytest.fixture
def limited() -> Iterator[Callable[[int], None]]:
    """Limits the size of this process's files, like a full disk at any write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_full_disk_at_any_write_leaves_the_old_map_and_nothing_else(
    tmp_path: Path, limited: Callable[[int], None]
) -> None:
    write_map(tmp_path / "map", small_map(2))
    before = listing(tmp_path)
    large = small_map(30)
    write_map(tmp_path / "whole", large)
    size = max(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    shutil.rmtree(tmp_path / "whole")
    for most in [0, 1, *np.linspace(2, size - 1, 12).astype(int).tolist()]:
        limited(most)
        for name in ("map", "new/deep"):
            with pytest.raises(UserError, match="cannot write") as caught:
                write_map(tmp_path / name, large)
            assert "\n" not in str(caught.value)
        assert not (tmp_path / "new").exists()
        assert listing(tmp_path) == before, most
    limited(resource.RLIM_INFINITY)
    write_map(tmp_path / "map", large)
    assert len(read_map(tmp_path / "map").keyframes) == 30


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_a_failing_disk_leaves_the_old_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    write_map(tmp_path / "map", small_map(2))
    before = listing(tmp_path)

    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(UserError, match="cannot write"):
            write_map(tmp_path / "map", small_map(3))
    assert listing(tmp_path) == before


# ---------------------------------------------------------------- kills

SAVE = """
import sys
from pathlib import Path
from fast3r_ros.mapping.storage import read_map, write_map
target, *sources = map(Path, sys.argv[2:])
saved = [read_map(source) for source in sources]
def rehearse():
    write_map(target.with_name("rehearsed"), saved[0])
def work():
    last = len(read_map(target).keyframes)
    write_map(target, next(each for each in saved if len(each.keyframes) != last))
    read_map(target)
"""


def test_after_a_kill_the_last_saved_map_or_the_next_loads(
    tmp_path: Path, kills: Callable[..., Iterator[bool]]
) -> None:
    sizes = (3, 4)
    for size in sizes:
        write_map(tmp_path / str(size), small_map(size, 48))
    target, rng = tmp_path / "target", random.Random(1)
    write_map(target, small_map(sizes[0], 48))
    shares = [rng.uniform(0.0, 1.0) for _ in range(KILLS)]
    for _ in kills(SAVE, shares, target, *(tmp_path / str(size) for size in sizes)):
        assert len(read_map(target).keyframes) in sizes
    write_map(target, small_map())
    assert len(list(target.iterdir())) == 2

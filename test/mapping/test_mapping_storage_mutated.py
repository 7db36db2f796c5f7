"""Maps with random changes load as what they say, or give a one-line error.

FAST3R_FAULTS=1000 mutates as many maps; figures in docs/reliability.md.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saved_maps import (
    ARRAYS,
    COLUMN_VALUES,
    INDEX,
    Index,
    assert_refused,
    npz,
    put,
    small_map,
)

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.map_schema import COLUMNS
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.mapping.storage import SavedMap, read_map, write_map

pytestmark = pytest.mark.slow
FAULTS = int(os.environ.get("FAST3R_FAULTS", "60"))
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

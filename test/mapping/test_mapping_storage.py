import json

import numpy as np
import pytest

from fast3r_ros.benchmark.synthetic_run import start, the_loop
from fast3r_ros.errors import UserError
from fast3r_ros.mapping.storage import SavedMap, read_map, write_map


@pytest.fixture(scope="module")
def run():
    sequence, frames = the_loop()
    return start(sequence, scale__source="depth").feed(frames[:100])


def state(mapper):
    cloud = mapper.map.cloud()
    poses = [
        (p.stamp_ns, p.camera, p.map_from_camera.tobytes(), p.covariance.tobytes())
        for p in mapper.trajectory()
    ]
    return (
        poses,
        cloud.points.tobytes(),
        cloud.colors.tobytes(),
        cloud.confidence.tobytes(),
        mapper.map.metres,
    )


def test_a_saved_and_loaded_map_is_equal(run, tmp_path):
    run.mapper.save_map(tmp_path / "map")
    other = start(run.sequences).mapper
    other.load_map(tmp_path / "map")
    assert state(other) == state(run.mapper)
    other.save_map(tmp_path / "again")
    first, second = read_map(tmp_path / "map"), read_map(tmp_path / "again")
    assert len(first.edges) == len(second.edges) > 0
    for one, two in zip(first.keyframes, second.keyframes, strict=True):
        assert np.array_equal(one.image, two.image)
        assert np.array_equal(one.points.points, two.points.points, equal_nan=True)
        assert one.descriptor.tobytes() == two.descriptor.tobytes()


def test_mapping_continues_in_a_loaded_map(run, tmp_path):
    run.mapper.save_map(tmp_path / "map")
    sequence, frames = the_loop()
    again = start(sequence)
    again.mapper.load_map(tmp_path / "map")
    again.feed(frames[60:180])
    assert again.mapper.status().submaps == 1
    assert again.scores()["rmse"] < 0.1
    assert len(again.mapper.trajectory()) > len(run.mapper.trajectory())


def test_saving_replaces_the_map_and_leaves_nothing_behind(run, tmp_path):
    for _ in range(2):
        run.mapper.save_map(tmp_path / "map")
    names = sorted(path.name for path in (tmp_path / "map").iterdir())
    assert len(names) == 2
    assert names[1] == "map.json"


@pytest.mark.parametrize("bytes_kept", [0, 10, 1000, -1])
def test_truncated_arrays_are_named(run, tmp_path, bytes_kept):
    run.mapper.save_map(tmp_path / "map")
    (arrays,) = (tmp_path / "map").glob("arrays-*.npz")
    arrays.write_bytes(arrays.read_bytes()[:bytes_kept])
    with pytest.raises(UserError, match="truncated"):
        read_map(tmp_path / "map")


def test_flipped_bytes_are_noticed(run, tmp_path):
    run.mapper.save_map(tmp_path / "map")
    (arrays,) = (tmp_path / "map").glob("arrays-*.npz")
    content = bytearray(arrays.read_bytes())
    content[len(content) // 2] ^= 0xFF
    arrays.write_bytes(bytes(content))
    with pytest.raises(UserError, match="damaged"):
        read_map(tmp_path / "map")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "holds no map"),
        ("", "cannot be read"),
        ("[1]", "is not a map of fast3r_ros"),
        ('{"format": "other"}', "is not a map of fast3r_ros"),
        ('{"format": "fast3r_ros map", "version": 99}', "format version 99"),
        ('{"format": "fast3r_ros map", "version": 1}', "damaged"),
        ('{"format": "fast3r_ros map", "version": 1, "arrays": "../secret.npz", "bytes": 3}', "damaged"),
    ],
)
def test_foreign_files_are_rejected_and_the_present_map_is_kept(run, tmp_path, content, words):
    if content is not None:
        (tmp_path / "map.json").write_text(content)
    before = state(run.mapper)
    with pytest.raises(UserError, match=words):
        run.mapper.load_map(tmp_path)
    assert state(run.mapper) == before


def test_a_folder_with_other_things_is_not_written_to(run, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is not a map"):
        run.mapper.save_map(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_map_can_be_saved(tmp_path):
    sequence, _ = the_loop()
    mapper = start(sequence).mapper
    mapper.save_map(tmp_path / "map")
    mapper.load_map(tmp_path / "map")
    assert mapper.trajectory() == []


def test_submaps_of_unknown_scale_are_still_unknown_after_loading(tmp_path):
    write_map(tmp_path / "map", SavedMap((), (), True, 0.01, (1, 3)))
    assert read_map(tmp_path / "map").unscaled == (1, 3)
    index = json.loads((tmp_path / "map" / "map.json").read_text())
    del index["guessed"]  # a map that was saved before
    (tmp_path / "map" / "map.json").write_text(json.dumps(index))
    assert read_map(tmp_path / "map").unscaled == ()


SAVE = """
import sys
from pathlib import Path
from fast3r_ros.mapping.storage import read_map, write_map
saved = read_map(Path(sys.argv[2]))
def rehearse():
    write_map(Path(sys.argv[3] + "_rehearsed"), saved)
def work():
    write_map(Path(sys.argv[3]), saved)
"""


def test_killing_a_save_leaves_a_readable_map(run, tmp_path, kills):
    run.mapper.save_map(tmp_path / "map")
    saved = read_map(tmp_path / "map")
    write_map(tmp_path / "target", saved)
    expected = [k.stamp_ns for k in saved.keyframes]
    for killed in kills(SAVE, None, tmp_path / "map", tmp_path / "target"):
        assert killed
        assert [k.stamp_ns for k in read_map(tmp_path / "target").keyframes] == expected
    write_map(tmp_path / "target", saved)
    assert len(list((tmp_path / "target").iterdir())) == 2
    assert json.loads((tmp_path / "target" / "map.json").read_text())["version"] == 1

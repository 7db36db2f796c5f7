"""Parts of a map that are not connected stay apart, in the clouds, the trajectory and the files."""

import json

import numpy as np
import pytest
import trimesh

from fast3r_ros.benchmark.synthetic_run import start, the_loop
from fast3r_ros.geometry.rotation import matrix_from_vector
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.io.pipeline import Progress, begin_results, write_results
from fast3r_ros.io.recorder import Recorder
from fast3r_ros.io.results import read_results
from fast3r_ros.io.sources.synthetic_walk import SyntheticSource
from fast3r_ros.mapping.map import Map


def torn(directory=None):
    """An interrupted walk, after which nothing is recognised; directory: for the views' pictures."""
    sequence, frames = the_loop()
    run = start(sequence, loop__enabled=False)
    recorder = Recorder(directory) if directory else None
    for part in (frames[:90], frames[90:150]):
        for frame in part:
            run.feed([frame], finish=False)
            if recorder and run.results:
                recorder.add(run.results[-1].views, run.mapper.map.keyframes)
        run.mapper.restart_input()
        run.mapper.restart_window()
    run.mapper.finish()
    assert run.mapper.status().submaps == 2
    return (run, recorder) if recorder else run


@pytest.fixture(scope="module")
def run():
    return torn()


def from_scratch(mapped, submap):
    """The cloud of one part without the others."""
    own = mapped.part(submap).values()
    return Map.restored(mapped.config, own, mapped.metres, mapped.voxel_size).cloud()


def test_each_part_has_its_own_cloud_and_trajectory(run):
    mapped = run.mapper.map
    sizes = mapped.parts
    assert list(sizes) == [0, 1]  # the larger one first
    assert sizes[0] > sizes[1] > 5
    for submap in (0, 1):
        cloud, alone = mapped.cloud(submap), from_scratch(mapped, submap)
        assert len(cloud.points) > 1000
        assert np.array_equal(cloud.points, alone.points)
        assert np.array_equal(cloud.colors, alone.colors)
        assert len(run.mapper.trajectory(submap=submap)) == sizes[submap]
    assert np.array_equal(mapped.cloud().points, mapped.cloud(0).points)
    assert run.mapper.trajectory()[-1].stamp_ns == run.mapper.trajectory(submap=0)[-1].stamp_ns
    assert mapped.points == len(mapped.cloud(0).points) + len(mapped.cloud(1).points)


def test_the_part_in_metres_is_the_map_even_if_it_is_smaller(run):
    mapped = run.mapper.map
    both = Map.restored(mapped.config, mapped.keyframes.values(), True, mapped.voxel_size, unscaled=[0])
    assert both.main == 1
    assert np.array_equal(both.cloud().points, mapped.cloud(1).points)


@pytest.mark.parametrize(("moved", "stays"), [(0, 1), (1, 0)])
def test_a_joined_part_moves_keyframe_by_keyframe(run, moved, stays):
    original = run.mapper.map
    mapped = Map.restored(original.config, original.keyframes.values(), False, original.voxel_size)
    change = Sim3(1.3, matrix_from_vector(np.array([0.1, 0.2, 0.3])), np.array([0.5, -0.2, 0.1]))
    mapped.join(moved, stays, change)
    assert list(mapped.parts) == [stays]
    before = len(mapped.cloud().points)
    assert before == len(original.cloud(stays).points)  # nothing remains at its place before joining
    mapped.fuse_moved(3)
    assert before < len(mapped.cloud().points)
    mapped.fuse_moved()
    whole = from_scratch(mapped, stays)
    assert np.array_equal(mapped.cloud().points, whole.points)
    assert mapped.points == len(whole.points)


def test_files_describe_the_main_part_and_the_others_have_their_own(tmp_path):
    run, recorder = torn(directory=tmp_path)
    begin_results(tmp_path / "out")
    source = SyntheticSource(run.sequences[0])
    report = write_results(tmp_path / "out", source, run.mapper, recorder, Progress(), {})
    assert report["submaps"] == run.mapper.map.parts
    main, other = (run.mapper.map.cloud(submap).points for submap in (0, 1))
    assert len(trimesh.load(tmp_path / "out" / "map.ply").vertices) == len(main) == report["map_points"]
    apart = trimesh.load(tmp_path / "out" / "map_submap_1.ply").vertices
    np.testing.assert_allclose(apart, other, atol=1e-4)
    stamps = {0: "trajectory.txt", 1: "trajectory_submap_1.txt"}
    for submap, name in stamps.items():
        expected = [pose.stamp_ns for pose in run.mapper.trajectory(submap=submap)]
        written = np.loadtxt(tmp_path / "out" / name)[:, 0]
        np.testing.assert_allclose(written, np.array(expected) / 1e9, atol=1e-6)
    results = read_results(tmp_path / "out")
    assert len(results.cameras) == run.mapper.map.parts[0]
    names = {view["name"] for view in report["views"] if view["submap"] == 0}
    assert names == {camera.name for camera in results.cameras}
    assert report["trajectory_error"]["share_of_path"] < 0.02  # of the main part alone
    assert {"map_submap_1.ply", "trajectory_submap_1.txt"} <= set(report["files"])
    begin_results(tmp_path / "out")  # a new run removes them
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.json"]
    assert not json.loads((tmp_path / "out" / "report.json").read_text())["complete"]


def test_a_saved_map_is_read_back_as_its_main_part(run, tmp_path):
    run.mapper.save_map(tmp_path / "map")
    results = read_results(tmp_path / "map")
    assert (results.parts, len(results.cameras)) == (2, run.mapper.map.parts[0])
    assert "2 unconnected parts" in results.left_out
    assert np.array_equal(results.cloud.points, run.mapper.map.cloud().points)
    again = start(run.sequences)
    again.mapper.load_map(tmp_path / "map")
    assert again.mapper.map.parts == run.mapper.map.parts
    assert np.array_equal(again.mapper.map.cloud(1).points, run.mapper.map.cloud(1).points)

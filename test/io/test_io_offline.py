"""A whole source through the mapper with a stand-in network: files agree with the truth and each other."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from evo.core import metrics, sync
from evo.tools import file_interface

from fast3r_ros.cli.reconstruct import mapper_config
from fast3r_ros.io.offline import Progress, begin_results, map_source, trajectory_error, write_results
from fast3r_ros.io.recorder import Recorder
from fast3r_ros.io.results import read_results
from fast3r_ros.io.sources.synthetic import SyntheticSource
from fast3r_ros.io.trajectory import write_trajectory
from fast3r_ros.io.view_images import DEPTH_STEPS
from fast3r_ros.mapping.data import PoseEstimate
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.synthetic.network_double import TrueNetwork
from fast3r_ros.synthetic.sequence import demo_sequence


class Arguments:
    """The options of `fast3r reconstruct` that the mapper's parameters come from."""

    scale, min_confidence, voxel_size, set = "none", None, None, ()

    def __init__(self, mode):
        self.mode = mode


@pytest.fixture(scope="module", params=["window", "all"])
def run(request, tmp_path_factory):
    """(mode, folder of results, report, truth) of six seconds of the demo walk."""
    sequence = demo_sequence(6.0, width=112, height=80)
    source = SyntheticSource(sequence)
    mode = request.param
    indices = range(len(source)) if mode == "window" else range(0, len(source), 5)
    mapper = Mapper(TrueNetwork(sequence), mapper_config(Arguments(mode), len(indices)))
    folder = tmp_path_factory.mktemp(mode)
    begin_results(folder)
    recorder, progress = Recorder(folder), Progress()
    map_source(source, indices, mapper, recorder, progress, lambda result: None)
    report = write_results(folder, source, mapper, recorder, progress, {"mode": mode})
    return mode, folder, report, source.truth


def test_the_map_agrees_with_the_truth(run):
    mode, _, report, _ = run
    assert report["complete"]
    assert report["trajectory_error"]["share_of_path"] < 0.02
    if mode == "all":
        assert (report["windows"], report["keyframes"]) == (1, 12)


def test_evo_measures_the_error_that_the_report_tells(run, tmp_path):
    _, folder, report, truth = run
    write_trajectory(tmp_path / "truth.txt", truth)
    reference = file_interface.read_tum_trajectory_file(tmp_path / "truth.txt")
    estimate = file_interface.read_tum_trajectory_file(folder / "trajectory.txt")
    reference, estimate = sync.associate_trajectories(reference, estimate)
    estimate.align(reference, correct_scale=True)
    error = metrics.APE(metrics.PoseRelation.translation_part)
    error.process_data((reference, estimate))
    rmse = error.get_statistic(metrics.StatisticsType.rmse)
    assert rmse == pytest.approx(report["trajectory_error"]["rmse"], abs=1e-4)


def test_the_files_agree_with_each_other(run):
    _, folder, report, _ = run
    results = read_results(folder, with_images=True)
    assert len(results.cloud.points) == report["map_points"]
    assert len(results.cameras) == len(results.images) == report["keyframes"]
    poses = file_interface.read_tum_trajectory_file(folder / "trajectory.txt").poses_se3
    expected = [camera.map_from_camera for camera in results.cameras]
    np.testing.assert_allclose(np.array(poses), np.array(expected), atol=1e-6)


def test_report_is_json_and_tells_stages_memory_and_versions(run):
    _, folder, _, _ = run
    report = json.loads((folder / "report.json").read_text())
    assert {"read", "encode", "network", "write"} <= set(report["seconds"])
    assert report["peak_memory_mib"]["host"] > 100
    assert {"fast3r_ros", "torch", "python"} <= set(report["versions"])


def test_a_killed_run_is_marked_and_an_earlier_result_is_gone(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "000000.png").write_text("old")
    (tmp_path / "map.ply").write_text("old")
    (tmp_path / "notes.txt").write_text("somebody else's")
    begin_results(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "report.json"]
    assert json.loads((tmp_path / "report.json").read_text())["complete"] is False


def test_trajectory_error_is_zero_for_a_similar_copy_and_grows_with_noise():
    generator = np.random.default_rng(1)
    truth, exact, noisy = {}, [], []
    for index in range(20):
        pose = np.eye(4)
        pose[:3, 3] = [np.cos(index / 5), np.sin(index / 5), 0.1 * index]
        truth[index] = pose
        moved = pose.copy()
        moved[:3, 3] = 3 * pose[:3, 3][[1, 2, 0]] + 5
        exact.append(PoseEstimate(index, "camera", moved, np.eye(6), False))
        moved = moved.copy()
        moved[:3, 3] += generator.normal(scale=0.03, size=3)
        noisy.append(PoseEstimate(index, "camera", moved, np.eye(6), False))
    assert trajectory_error(exact, truth)["rmse"] == pytest.approx(0, abs=1e-5)
    assert 0.008 < trajectory_error(noisy, truth)["rmse"] < 0.025
    spread = np.array([pose[:3, 3] for pose in truth.values()])
    rms = np.sqrt(((spread - spread.mean(0)) ** 2).sum(1).mean())
    assert trajectory_error(noisy, truth)["standing_still"] == pytest.approx(rms, abs=1e-4)
    assert trajectory_error(exact[:2], truth) is None
    assert trajectory_error(exact, None) is None


@pytest.mark.parametrize("scale", ["fixed=2.5", "camera_height=1.3"])
def test_with_a_scale_every_file_is_in_metres(tmp_path, scale):
    """Depth pictures that were written before the scale was known follow it."""
    sequence = demo_sequence(6.0, width=112, height=80)
    source = SyntheticSource(sequence)
    arguments = Arguments("window")
    arguments.scale = scale
    mapper = Mapper(TrueNetwork(sequence), mapper_config(arguments, len(source)))
    begin_results(tmp_path)
    recorder, progress = Recorder(tmp_path), Progress()
    map_source(source, range(len(source)), mapper, recorder, progress, lambda result: None)
    report = write_results(tmp_path, source, mapper, recorder, progress, {})
    assert report["unit"] == "m"
    results = read_results(tmp_path)
    assert results.unit == "m"
    for camera in results.cameras:
        depth = cv2.imread(str(tmp_path / "depth" / f"{camera.name}.png"), cv2.IMREAD_UNCHANGED)
        centre = float(np.median(depth[depth > 0])) / DEPTH_STEPS
        ahead = (results.cloud.points - camera.map_from_camera[:3, 3]) @ camera.map_from_camera[:3, :3]
        u, v, w = camera.intrinsics @ ahead.T.astype(np.float64)
        seen = (w > 0) & (np.abs(u / w - 56) < 56) & (np.abs(v / w - 40) < 40)
        assert centre == pytest.approx(float(np.median(w[seen])), rel=0.25), camera.name

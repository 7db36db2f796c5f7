"""The mapper's guarantees, with the scenarios of `benchmark mapping`, mostly smaller."""

import time

import pytest
import torch

from fast3r_ros.benchmark import mapping_promises as benchmark
from fast3r_ros.geometry.robust_similarity import RobustOptions, fit_similarities_robust

pytestmark = pytest.mark.slow


def test_a_60_m_loop_without_closure_stays_below_one_percent():
    scores = benchmark.loop_accuracy(loop=False)
    assert scores["path"] > 55
    assert scores["rejected"] == 0
    assert scores["rmse_percent"] < 1.0


def test_a_60_m_loop_with_closure_stays_below_a_third_of_a_percent():
    scores = benchmark.loop_accuracy(loop=True, background=True)
    assert scores["loops"] >= 1
    assert scores["rmse_percent"] < 0.3
    assert scores["scale_drift_percent"] < 1.0


def test_thirty_percent_of_confident_outliers_still_register():
    scores = benchmark.many_outliers(frames=150)
    assert scores["rejected"] == 0
    assert scores["rmse_percent"] < 1.0


def test_a_window_of_noise_is_rejected_and_leaves_the_map_bit_identical():
    result = benchmark.pure_noise(frames=80)
    assert result["refused"]
    assert result["unchanged"]
    assert result["reason"]
    assert result["rmse_percent"] < 1.0


def test_missing_late_and_doubled_frames_and_a_pause_do_no_harm():
    scores = benchmark.disorder(frames=300)
    assert scores["rejected"] == 0
    assert scores["rmse_percent"] < 1.0


def test_odometry_gives_the_scale_within_one_percent():
    result = benchmark.odometry_scale(frames=200)
    assert result["metres"]
    assert result["scale_error_percent"] < 1.0


@pytest.mark.parametrize("seed", [0, 1])
def test_odometry_gives_the_scale_within_three_percent_though_a_third_slips(seed):
    result = benchmark.odometry_scale(slipping=1 / 3, seed=seed, frames=300)
    assert result["metres"]
    assert result["scale_error_percent"] < 3.0


def test_a_stationary_robot_never_gets_a_scale():
    result = benchmark.standing_robot(seconds=50)
    assert result["keyframes"] > 30
    assert not result["metres"]
    result = benchmark.standing_robot(seconds=50, max_similarity=0.0)
    assert result["redundant"] > 30
    assert not result["metres"]


@pytest.mark.parametrize("source", ["depth", "camera_height"])
def test_depth_images_and_the_cameras_height_give_the_scale(source):
    result = benchmark.other_scale(source, frames=260)
    assert result["metres"]
    assert result["scale_error_percent"] < 1.0


@pytest.mark.parametrize("seed", [0, 1])
def test_a_rig_gives_the_scale_within_one_percent(seed):
    result = benchmark.rig_scale(seed=seed)
    assert result["metres"]
    assert result["scale_error_percent"] < 1.0


def test_a_lost_track_starts_a_submap_that_is_joined_again():
    result = benchmark.lost_track()
    assert result["submaps_when_lost"] == 2
    assert result["submaps_at_the_end"] == 1
    assert result["rmse_percent"] < 1.0


def test_every_random_place_is_localised_in_a_saved_map(tmp_path):
    result = benchmark.localization(directory=tmp_path / "map")
    assert result["good"] == result["places"] == 20


def test_cost_and_memory_do_not_grow_with_the_map():
    """The long form, 1000 windows, is `benchmark mapping long_run`; here growth would already show.

    Processor time of the cheapest windows of the old map and of a new one that takes turns with it: a machine
    that is busier late than early makes both dearer.
    """
    result = benchmark.long_run(windows=60, memory_mb=12.0, background=False)
    assert result["rejected"] == 0
    assert result["largest_map_mb"] <= 12.0
    assert result["fastest_ratio"] < 1.4


def reference_work():
    """Processor seconds of a robust fit of sixteen views' points, a named part of every registration."""
    rng = torch.Generator().manual_seed(0)
    points = torch.rand(16, 2048, 3, generator=rng)
    start_time = time.thread_time()
    fit_similarities_robust(points, 2.0 * points, torch.ones(16, 2048), RobustOptions())
    return time.thread_time() - start_time


def test_registration_and_fusion_are_quick():
    """In units of a fit that every registration does, timed before and after on the same busy machine."""
    before = min(reference_work() for _ in range(5))
    result = benchmark.window_cost(windows=10)
    unit = max(before, min(reference_work() for _ in range(5)))
    assert result["registration_and_fusion_fastest_ms"] < 20 * 1e3 * unit

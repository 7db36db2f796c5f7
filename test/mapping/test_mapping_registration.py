"""Registration, scale sources and gravity, on numbers made here."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from second_device import DEVICE, SecondDevice

from fast3r_ros.errors import UserError
from fast3r_ros.geometry.camera_pose import CameraPoses
from fast3r_ros.geometry.intrinsics import centred_intrinsics
from fast3r_ros.geometry.rigid import BODY_FROM_OPTICAL, rigid_matrix
from fast3r_ros.geometry.rotation import angle_between, matrix_from_vector
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.calibration import WindowCameras
from fast3r_ros.mapping.config import RegistrationConfig, ScaleConfig
from fast3r_ros.mapping.data import Frame, Keyframe, Reconstruction, ViewEstimate
from fast3r_ros.mapping.expectation import odometry_step
from fast3r_ros.mapping.gravity import leveling, tilt_only
from fast3r_ros.mapping.inbox import OdometryBuffer
from fast3r_ros.mapping.registration import Overlap, place_views, register
from fast3r_ros.mapping.scale import (
    Scale,
    disagrees,
    estimate_scale,
    metric_scale_from_depth,
    metric_scale_from_height,
    odometry_ratios,
    rig_ratios,
    robust_mean,
)
from fast3r_ros.mapping.view_maps import ViewMaps
from fast3r_ros.mapping.window_result import predict

SECOND = 1_000_000_000


def overlap_problem(rng, views=4, height=30, width=40, noise=0.01, outliers=0.0):
    """A window of boxes of points and its overlap with the map, under a random similarity."""
    truth = Sim3(
        float(np.exp(rng.normal(0, 0.5))), matrix_from_vector(rng.normal(size=3)), rng.normal(size=3) * 3
    )
    depth = rng.uniform(1.5, 5.0, (views, height, width))
    rays = rng.uniform(-0.7, 0.7, (views, height, width, 2))
    points = np.concatenate([rays, np.ones((views, height, width, 1))], -1) * depth[..., None]
    points_map = truth.apply(points) * 1.0
    points = points * (1 + noise * rng.normal(size=depth.shape))[..., None]
    wrong = rng.random(depth.shape) < outliers
    points[wrong] *= np.exp(rng.normal(0, 0.7, wrong.sum()))[:, None]
    pixels = np.arange(height * width, dtype=np.int32)
    overlaps = [
        Overlap(
            view,
            truth.move_camera(np.eye(4)),
            points_map[view].reshape(-1, 3).astype(np.float32),
            np.full(height * width, 5.0, np.float32),
            (truth.scale * depth[view]).reshape(-1).astype(np.float32),
            pixels,
        )
        for view in range(views)
    ]
    confidence = torch.full(depth.shape, 5.0)
    return truth, overlaps, torch.from_numpy(points.astype(np.float32)).unbind(), confidence.unbind()


def fit(overlaps, points, confidence, config=None, poses=None):
    """The registration of views that are all at the window's origin, or at given poses."""
    count = len(points)
    placed = np.stack([np.eye(4)] * count) if poses is None else poses
    numbers, nothing = np.ones(count), np.full(count, np.nan)
    cameras = WindowCameras(
        np.stack([centred_intrinsics(50.0, *points[0].shape[:2])] * count),
        np.zeros(count, bool),
        np.full(count, 50.0),
    )
    known = CameraPoses(
        placed, numbers, numbers, np.zeros((count, 6, 6)), nothing, numbers > 0, ("",) * count
    )
    maps = Reconstruction(points, confidence, points, confidence)
    return register(overlaps, maps, known, cameras, config or RegistrationConfig())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.0, 0.05, 0.3]))
def test_a_window_is_registered_through_noise_and_outliers(seed, outliers):
    truth, overlaps, points, confidence = overlap_problem(np.random.default_rng(seed), outliers=outliers)
    result = fit(overlaps, points, confidence)
    assert result.reason == ""
    assert result.map_from_window.scale == pytest.approx(truth.scale, rel=0.005)
    assert angle_between(result.map_from_window.rotation, truth.rotation) < 0.005
    assert result.inlier_share > 0.95 - outliers


def test_the_covariance_matches_the_error():
    ratios = []
    for seed in range(30):
        truth, overlaps, points, confidence = overlap_problem(np.random.default_rng(seed))
        config = replace(RegistrationConfig(), pixels=100000)
        result = fit(overlaps, points, confidence, config)
        error = result.map_from_window.translation - truth.translation
        # errors here are independent per pixel, while the covariance assumes correlated patches
        ratios.append(float(error @ np.linalg.solve(result.covariance[:3, :3], error)) / 3)
    assert 0.001 < np.mean(ratios) < 1.5


def test_noise_is_rejected_with_a_reason():
    rng = np.random.default_rng(0)
    _, overlaps, points, confidence = overlap_problem(rng)
    noise = [torch.from_numpy(rng.normal(size=view.shape).astype(np.float32)) for view in points]
    result = fit(overlaps, noise, confidence)
    assert "agree" in result.reason
    assert fit([], points, confidence).reason.endswith("could be placed")


def test_keyframes_without_points_say_nothing():
    """Keyframes of windows without confident pixels; alone they are no overlap."""
    truth, overlaps, points, confidence = overlap_problem(np.random.default_rng(0))
    empty = [replace(each, confidence=np.zeros_like(each.confidence)) for each in overlaps]
    assert fit(empty, points, confidence).reason.endswith("could be placed")
    result = fit([*empty[:2], *overlaps[2:]], points, confidence)
    assert (result.reason, result.views) == ("", (2, 3))
    assert result.map_from_window.scale == pytest.approx(truth.scale, rel=0.005)


def test_the_device_gives_the_same_registration(other_device):
    _, overlaps, *maps = overlap_problem(np.random.default_rng(0), outliers=0.2)
    cpu = fit(overlaps, *maps)
    there = fit(overlaps, *([view.to(other_device) for view in m] for m in maps))
    assert there.map_from_window.scale == pytest.approx(cpu.map_from_window.scale, rel=1e-6)
    assert np.allclose(there.map_from_window.translation, cpu.map_from_window.translation, atol=1e-6)
    assert np.allclose(there.covariance, cpu.covariance, rtol=1e-3)
    assert there.inlier_share == pytest.approx(cpu.inlier_share, abs=1e-3)


def test_a_registration_is_few_operations_of_the_device_and_small_copies():
    """On a GPU a launch costs as much as its work, so the algebra of a step belongs on the host."""
    _, overlaps, *maps = overlap_problem(np.random.default_rng(0), outliers=0.2)
    views = len(maps[0])
    with SecondDevice() as device:
        there = [[view.to(DEVICE) for view in part] for part in maps]
        fit(overlaps, *there)
        assert sum(device.launched.values()) < 450 + 4 * views
        reads = len(device.reads)
        cameras = WindowCameras(np.stack([np.eye(3)] * views), np.zeros(views, bool), np.ones(views))
        place_views(Reconstruction(*there, *there), cameras, RegistrationConfig())
    assert not [name for name in device.launched if "eigh" in name or "linalg" in name]
    assert sum(device.launched.values()) < 850 + 10 * views
    assert device.numbers == 0
    # the moments of a step: (5, 5) float64 of each fit
    assert max(device.reads[:reads]) <= 8 * 25
    assert max(device.reads[reads:]) <= 8 * 25 * views
    assert len(device.reads) < 40


def keyframe(identity, stamp_ns, pose, camera="a", scale=1.0, metric_scale=float("nan")):
    return Keyframe(
        identity, stamp_ns, camera, 0, Sim3(scale, pose[:3, :3], pose[:3, 3]), np.eye(6) * 1e-4, 1, np.eye(3),
        np.eye(3), np.zeros(4, np.float32), None, None, 1.0, metric_scale,
    )  # fmt: skip


def straight_way(count, unit, tilt=0.0, slip=()):
    """Keyframes every 0.2 m in a map of `unit` metres per unit, tilted, and the odometry of it."""
    odometry, keyframes, way = OdometryBuffer(), [], 0.0
    map_from_odom = matrix_from_vector([0.0, tilt, 0.0])
    for i in range(count):
        odom_from_base = rigid_matrix(matrix_from_vector([0, 0, 0.01 * i]), [way, 0.0, 0.0])
        odometry.add(i * SECOND // 4, odom_from_base)
        camera = odom_from_base @ BODY_FROM_OPTICAL
        place = map_from_odom @ np.array([0.2 * i, 0.0, 0.0]) / unit
        keyframes.append(keyframe(i, i * SECOND // 4, rigid_matrix(map_from_odom @ camera[:3, :3], place)))
        way += 0.2 * (1.7 if i in slip else 1.0)
    return keyframes, odometry


@pytest.mark.parametrize("slip", [(), range(10), range(15, 28)])
def test_odometry_scale_with_and_without_slip(slip):
    keyframes, odometry = straight_way(40, unit=2.5, slip=slip)
    scale = estimate_scale(ScaleConfig(source="odometry"), keyframes, odometry, {})
    assert scale.metres_per_unit == pytest.approx(2.5, rel=0.01)


def test_no_ratio_without_a_baseline():
    keyframes, _ = straight_way(30, unit=1.0)
    odometry = OdometryBuffer()
    for k in keyframes:
        odometry.add(k.stamp_ns, np.eye(4))
    assert len(odometry_ratios(keyframes, odometry, {}, 0.3)[0]) == 0
    assert estimate_scale(ScaleConfig(source="odometry"), keyframes, OdometryBuffer(), {}) == Scale()


def test_the_lever_between_base_and_camera_counts():
    base_from_camera = rigid_matrix(BODY_FROM_OPTICAL[:3, :3], [0.5, 0.0, 0.3])
    odometry, keyframes = OdometryBuffer(), []
    for i in range(60):  # rotating the base moves the camera on a circle of half a metre
        odom_from_base = rigid_matrix(matrix_from_vector([0, 0, 0.1 * i]), [0, 0, 0])
        odometry.add(i * SECOND // 4, odom_from_base)
        pose = odom_from_base @ base_from_camera
        pose[:3, 3] /= 4.0
        keyframes.append(keyframe(i, i * SECOND // 4, pose))
    scale = estimate_scale(ScaleConfig(source="odometry"), keyframes, odometry, {"a": base_from_camera})
    assert scale.metres_per_unit == pytest.approx(4.0, rel=1e-3)


def test_between_windows_odometry_predicts_the_newest_pose():
    side = rigid_matrix(np.eye(3), [0.2, 0.0, 0.0])
    mounts = {"a": BODY_FROM_OPTICAL, "b": BODY_FROM_OPTICAL @ side}
    odometry = OdometryBuffer()
    odometry.add(0, np.eye(4))
    odometry.add(SECOND // 4, rigid_matrix(np.eye(3), [0.5, 0.0, 0.0]))
    last = keyframe(0, 0, rigid_matrix(BODY_FROM_OPTICAL[:3, :3], [3.0, 0.0, 0.0]))
    frame = Frame(SECOND // 4, "b", np.zeros((1, 1, 3), np.uint8))
    pose = predict([last], odometry_step(odometry, mounts, last, frame), frame)
    assert (pose.camera, pose.extrapolated, pose.stamp_ns) == ("b", True, SECOND // 4)
    assert np.allclose(pose.map_from_camera[:3, 3], [3.5, -0.2, 0.0])  # to the right is -y
    assert np.trace(pose.covariance) > np.trace(last.covariance)
    late = replace(frame, stamp_ns=SECOND)
    assert odometry_step(odometry, mounts, last, late) is None
    assert np.allclose(predict([last], None, late).map_from_camera, last.map_from_camera)


def test_rig_ratios_use_only_simultaneous_images():
    offset = np.eye(4)
    offset[0, 3] = 0.25
    extrinsics = {"a": BODY_FROM_OPTICAL, "b": BODY_FROM_OPTICAL @ offset}
    pair = [keyframe(0, 0, np.eye(4)), keyframe(1, 0, rigid_matrix(np.eye(3), [0.1, 0, 0]), "b")]
    logs, weights = rig_ratios(pair, extrinsics)
    assert np.exp(logs) == pytest.approx([2.5])
    assert weights == pytest.approx([0.5])
    assert rig_ratios([replace(k, estimates=4) for k in pair], extrinsics)[1] == pytest.approx([2.0])
    assert len(rig_ratios([pair[0], replace(pair[1], stamp_ns=SECOND)], extrinsics)[0]) == 0
    assert len(rig_ratios(pair, {"a": BODY_FROM_OPTICAL})[0]) == 0


def view_over_a_floor(height_above, pitch=0.2):
    """A level map and a camera that looks down by `pitch` over a floor with a box on it; in map units."""
    rows, columns = np.mgrid[0:60, 0:80]
    rays = np.stack([(columns - 39.5) / 60, (rows - 29.5) / 60, np.ones((60, 80))], -1)
    map_from_camera = rigid_matrix(matrix_from_vector([0, pitch, 0]) @ BODY_FROM_OPTICAL[:3, :3], [0, 0, 7.0])
    down = (rays @ map_from_camera[:3, :3].T)[..., 2]
    depth = np.where(down < -0.02, -height_above / np.minimum(down, -0.02), 50.0)
    depth[20:40, 30:50] = np.minimum(depth[20:40, 30:50], 0.6 * height_above / 0.4)
    depth = np.minimum(depth, 6.0)
    points = (rays * depth[..., None]).astype(np.float32)
    return ViewEstimate(
        0, 0, "a", map_from_camera, np.eye(6), np.eye(3), np.eye(3), np.zeros((60, 80, 3), np.uint8),
        ViewMaps.of_arrays(points, np.full((60, 80), 5.0, np.float32), np.ones((60, 80), bool)),
    )  # fmt: skip


@pytest.mark.parametrize("height_above", [0.7, 1.0, 1.5])
def test_the_floor_gives_the_scale(height_above):
    assert metric_scale_from_height(view_over_a_floor(height_above), 1.2) == pytest.approx(
        1.2 / height_above, rel=0.02
    )


def test_no_floor_no_scale():
    view = view_over_a_floor(1.0)
    nothing = ViewMaps.of_arrays(view.points_camera, view.confidence, np.zeros_like(view.valid))
    ahead = replace(view, maps=nothing)
    assert np.isnan(metric_scale_from_height(ahead, 1.2))


def test_depth_images_dense_and_sparse_give_the_scale():
    view = view_over_a_floor(1.0)
    depth = 3.0 * view.points_camera[..., 2]
    assert metric_scale_from_depth(view, depth) == pytest.approx(3.0, rel=1e-4)
    sparse = np.zeros_like(depth)
    sparse[10:50:7, 10:70:9] = depth[10:50:7, 10:70:9]
    sparse[17, 19] = 80.0
    assert metric_scale_from_depth(view, sparse) == pytest.approx(3.0, rel=1e-3)
    twice = replace(view, network_from_image=np.diag([0.5, 0.5, 1.0]))
    assert metric_scale_from_depth(twice, np.kron(depth, np.ones((2, 2), np.float32))) == pytest.approx(
        3.0, rel=1e-3
    )
    assert np.isnan(metric_scale_from_depth(view, None))
    assert np.isnan(metric_scale_from_depth(view, np.full((60, 80), np.nan, np.float32)))


def test_hysteresis():
    config = ScaleConfig(source="odometry")
    assert not disagrees(config, Scale())
    assert not disagrees(config, Scale(2.0, 0.1))
    assert not disagrees(config, Scale(1.004, 0.0001))
    assert not disagrees(config, Scale(1.01, 0.0039))
    assert disagrees(config, Scale(1.02, 0.003))
    assert not disagrees(replace(config, source="fixed"), Scale(2.0, 0.0))


@given(st.integers(0, 500))
def test_the_robust_mean_takes_no_notice_of_a_third(seed):
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(1.0, 0.01, 60), rng.uniform(1.2, 3.0, 30)])
    mean, sigma = robust_mean(values)
    assert abs(mean - 1.0) < 0.012
    assert 0 < sigma < 0.01


def test_gravity_levels_the_map():
    keyframes, odometry = straight_way(20, unit=1.0, tilt=0.3)
    level = leveling(keyframes, odometry, {})
    assert np.allclose(level @ matrix_from_vector([0.0, 0.3, 0.0]) @ [0, 0, 1], [0, 0, 1], atol=1e-6)
    assert np.array_equal(leveling(keyframes, OdometryBuffer(), {}), np.eye(3))


@given(st.floats(-3, 3), st.floats(-0.4, 0.4), st.floats(-0.4, 0.4))
def test_tilt_without_heading(yaw, pitch, roll):
    turn = (
        matrix_from_vector([0, 0, yaw]) @ matrix_from_vector([0, pitch, 0]) @ matrix_from_vector([roll, 0, 0])
    )
    tilt = tilt_only(rigid_matrix(turn, [1, 2, 3]))
    assert tilt[1, 0] == pytest.approx(0, abs=1e-9)
    assert np.allclose(tilt[2], turn[2])


def test_odometry_is_interpolated_and_ordered():
    odometry = OdometryBuffer()
    for seconds in (0.3, 0.0, 0.1, 0.2, 0.1):
        odometry.add(
            round(seconds * SECOND), rigid_matrix(matrix_from_vector([0, 0, seconds]), [seconds, 0, 0])
        )
    pose = odometry.at(round(0.25 * SECOND))
    assert pose[0, 3] == pytest.approx(0.25)
    assert np.allclose(pose[:3, :3], matrix_from_vector([0, 0, 0.25]))
    assert odometry.at(-1) is None
    assert odometry.at(SECOND) is None
    odometry.add(2 * SECOND, np.eye(4))
    assert odometry.at(SECOND) is None  # a gap is not bridged
    with pytest.raises(UserError, match="not a rigid transform"):
        odometry.add(3 * SECOND, np.diag([2.0, 1, 1, 1]))
    with pytest.raises(UserError, match="not a rigid transform"):
        odometry.add(3 * SECOND, np.full((4, 4), np.nan))

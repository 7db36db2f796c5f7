"""Camera poses from pointmaps: speed, failures, and their covariance's frame."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from fast3r_ros.geometry.camera_pose import CameraPoses, pointmap_weights, poses_by_pnp, poses_from_pointmaps
from fast3r_ros.geometry.intrinsics import centred_intrinsics, pixel_rays
from fast3r_ros.geometry.rigid import rigid_matrix, transform_points
from fast3r_ros.geometry.rotation import matrix_from_vector

HEIGHT, WIDTH, FOCAL = 384, 512, 400.0


def window(views: int, noise: float = 0.01) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Local points, global points (V, H, W, 3) and true poses of views on a wavy surface."""
    rng = np.random.default_rng(0)
    rays = pixel_rays(centred_intrinsics(FOCAL, HEIGHT, WIDTH), HEIGHT, WIDTH)
    depth = 2.6 + np.sin(np.arange(WIDTH) / 90) + 0.5 * np.cos(np.arange(HEIGHT) / 70)[:, None]
    camera = (rays * depth[..., None]).astype(np.float32)
    poses = rigid_matrix(matrix_from_vector(rng.standard_normal((views, 3))), rng.standard_normal((views, 3)))
    shape = (views, HEIGHT, WIDTH, 3)
    world = np.stack([transform_points(pose, camera) for pose in poses])
    world += np.float32(noise) * rng.standard_normal(shape, dtype=np.float32)
    return camera + np.float32(noise) * rng.standard_normal(shape, dtype=np.float32), world, poses


def cpu_seconds(work: Callable[[], CameraPoses], repeats: int) -> float:
    """Minimum processor time of one call, nearly independent of other load."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.slow
def test_fit_of_32_views_is_fast_and_five_times_faster_than_pnp() -> None:
    local, world, truth = window(32)
    weights = np.ones(local.shape[:3], np.float32)
    poses = poses_from_pointmaps(local, world, weights)
    assert np.abs(poses.window_from_camera - truth).max() < 3e-3
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    fit = cpu_seconds(lambda: poses_from_pointmaps(local, world, weights), 7)
    pnp = cpu_seconds(lambda: poses_by_pnp(world, 2 * weights, FOCAL), 1)
    torch.set_num_threads(threads)
    print(f"fit {1e3 * fit:.0f} ms, PnP {1e3 * pnp:.0f} ms")
    assert pnp > 5 * fit
    assert fit < 0.3  # of one core: 0.15 s on two


def test_a_view_of_noise_fails_alone_and_loudly() -> None:
    local, world, truth = window(3)
    world[1] = np.random.default_rng(1).standard_normal(world[1].shape)
    poses = poses_from_pointmaps(local, world, np.ones(local.shape[:3]))
    assert poses.ok.tolist() == [True, False, True]
    assert "agree" in poses.reasons[1]
    assert np.isnan(poses.window_from_camera[1]).all()
    np.testing.assert_allclose(poses.window_from_camera[[0, 2]], truth[[0, 2]], atol=3e-3)


def test_weights_add_the_variances_and_stay_finite() -> None:
    weights = pointmap_weights(torch.tensor([1.0, 3.0, 1e30]), torch.tensor([1.0, 4.0, 1e30]))
    np.testing.assert_allclose(weights[:2], [1 / 2, 1 / (1 / 9 + 1 / 16)], rtol=1e-6)
    assert torch.isfinite(weights).all()


def test_a_view_without_weight_fails() -> None:
    local, world, _ = window(2)
    weights = np.ones(local.shape[:3])
    weights[1] = 0.0
    poses = poses_from_pointmaps(local, world, weights)
    assert poses.ok.tolist() == [True, False]


def test_covariance_is_about_the_camera_and_not_about_the_origin() -> None:
    """Moving the window frame's origin far away does not change a camera's position covariance."""
    local, world, _ = window(1)
    weights = np.ones(local.shape[:3])
    near = poses_from_pointmaps(local, world, weights).covariance[0]
    far = poses_from_pointmaps(local, world.astype(np.float64) + 1000.0, weights).covariance[0]
    np.testing.assert_allclose(far, near, rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("focal", [FOCAL, 1e7, None])
def test_pnp_on_nonsense_gives_a_failure_or_a_finite_pose(focal: float | None) -> None:
    """OpenCV raises on points that nearly coincide; the mapper must survive it."""
    rng = np.random.default_rng(0)
    points = rng.standard_normal((4, 24, 32, 3)) * np.array([1.0, 1e-3, 1e-9, 0.0])[:, None, None, None]
    poses = poses_by_pnp(points, np.full((4, 24, 32), 2.0), focal)
    finite = np.isfinite(poses.window_from_camera).all(axis=(1, 2))
    assert (finite == poses.ok).all()
    assert not poses.ok[3]
    assert poses.reasons[3]


def test_pnp_does_not_depend_on_the_scale_or_the_place_of_the_world() -> None:
    _, world, truth = window(1)
    confidence = np.full(world.shape[:3], 2.0)
    pose = poses_by_pnp(1e-4 * world + 7.0, confidence, FOCAL).window_from_camera[0]
    np.testing.assert_allclose(pose[:3, :3], truth[0, :3, :3], atol=5e-3)
    np.testing.assert_allclose((pose[:3, 3] - 7.0) / 1e-4, truth[0, :3, 3], atol=2e-2)


def test_views_of_different_size_are_each_fitted_as_if_alone() -> None:
    """The second has fewer pixels than are sampled of the others."""
    local, world, truth = window(3)
    cut = [[maps[0], maps[1, ::16, ::16], maps[2, :, :200]] for maps in (local, world)]
    weights = [np.ones(view.shape[:2], np.float32) for view in cut[0]]
    intrinsics = np.stack([centred_intrinsics(FOCAL, HEIGHT, WIDTH)] * 3)
    intrinsics[1, :2, 2] = (intrinsics[1, :2, 2] - 0.5) / 16 + 0.5
    intrinsics[1, [0, 1], [0, 1]] /= 16
    for known in (None, intrinsics):
        together = poses_from_pointmaps(*cut, weights, known)
        assert together.ok.all()
        assert np.abs(together.window_from_camera - truth).max() < 2e-2
        for i in range(3):
            part = slice(i, i + 1)
            given = None if known is None else known[part]
            alone = poses_from_pointmaps(cut[0][part], cut[1][part], weights[part], given)
            np.testing.assert_allclose(alone.window_from_camera[0], together.window_from_camera[i], atol=1e-2)


@pytest.mark.parametrize("known", [False, True])
def test_the_device_gives_the_same_poses(other_device: torch.device, known: bool) -> None:
    local, world, _ = window(4)
    weights = np.ones(local.shape[:3], np.float32)
    intrinsics = np.stack([centred_intrinsics(FOCAL, HEIGHT, WIDTH)] * 4) if known else None
    cpu = poses_from_pointmaps(local, world, weights, intrinsics)
    there = poses_from_pointmaps(torch.from_numpy(local).to(other_device), world, weights, intrinsics)
    np.testing.assert_allclose(there.window_from_camera, cpu.window_from_camera, atol=1e-6)
    np.testing.assert_allclose(there.covariance, cpu.covariance, rtol=1e-3, atol=1e-15)

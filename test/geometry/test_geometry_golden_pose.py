"""Focal lengths and poses against the official release on the golden pose cases."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from fast3r_ros.geometry.camera_pose import CameraPoses, poses_by_pnp, poses_from_pointmaps
from fast3r_ros.geometry.focal import estimate_focal
from fast3r_ros.geometry.intrinsics import centred_intrinsics, shift_pixel_centres
from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.geometry.rotation import angle_between, matrix_from_quaternion

CASES = sorted((Path(__file__).parents[1] / "golden" / "pose").glob("*.json"))
# Both implementations are at float32 rounding on exact data.
ROUNDING = 1e-6


def build(case: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Local points, global points and confidence of a case by its recipe, each with one view."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"pose/{case['name']}".encode())))
    quaternion = rng.standard_normal(4)
    world_from_camera = np.eye(4)
    world_from_camera[:3, :3] = matrix_from_quaternion(np.roll(quaternion, -1))
    world_from_camera[:3, 3] = 0.5 * rng.standard_normal(3)
    np.testing.assert_allclose(world_from_camera, case["true_cam_to_world"], atol=1e-6)
    height, width, focal = case["height"], case["width"], case["focal"]
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    z = 2 + np.abs(np.sin(u / width * 5) + np.cos(v / height * 4)) + rng.uniform(0, 0.3, (height, width))
    camera = np.stack([(u - width / 2) / focal * z, (v - height / 2) / focal * z, z], axis=-1)
    world = camera @ world_from_camera[:3, :3].T + world_from_camera[:3, 3]
    world += case["noise"] * rng.standard_normal((height, width, 3))
    bad = rng.uniform(size=(height, width)) < case["outliers"]
    world[bad] += rng.standard_normal((bad.sum(), 3))
    local = camera + case["noise"] * rng.standard_normal((height, width, 3))
    local[bad] += rng.standard_normal((bad.sum(), 3))
    confidence = np.where(bad, 0.5, 2.0)
    return tuple(array.astype(np.float32)[None] for array in (local, world, confidence))


def errors(poses: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Angle (radians) and distance between two poses."""
    apart = inverse(truth) @ poses
    return float(angle_between(np.eye(3), apart[:3, :3])), float(np.linalg.norm(apart[:3, 3]))


def assert_as_close(poses: CameraPoses, official: list, truth: np.ndarray) -> None:
    assert poses.ok[0], poses.reasons[0]
    for ours, theirs in zip(errors(poses.window_from_camera[0], truth), errors(official, truth), strict=True):
        assert ours <= theirs + ROUNDING


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def case(request: pytest.FixtureRequest) -> dict:
    return json.loads(request.param.read_text())


def test_focal_length_is_the_official_one(case: dict) -> None:
    local, _, confidence = build(case)
    masked = np.where(confidence[..., None] > 1, local, np.nan)
    estimate = estimate_focal(masked, pixel_centre=0.0)
    assert estimate.ok[0], estimate.reasons
    assert estimate.focal[0] == pytest.approx(case["official"]["focal_weiszfeld"], rel=1e-3)


def test_focal_length_survives_outliers_that_are_not_masked(case: dict) -> None:
    local, _, _ = build(case)
    assert estimate_focal(local, pixel_centre=0.0).focal[0] == pytest.approx(case["focal"], rel=5e-3)


def test_pose_from_pointmaps_with_the_known_focal_length_is_as_close_as_the_official_pnp(case: dict) -> None:
    local, world, confidence = build(case)
    intrinsics = shift_pixel_centres(centred_intrinsics(case["focal"], case["height"], case["width"]), 0.5)
    poses = poses_from_pointmaps(local, world, confidence > 1, intrinsics[None])
    assert_as_close(poses, case["official"]["pose_known_focal"], np.array(case["true_cam_to_world"]))


def test_pose_from_pointmaps_without_a_focal_length_is_as_close_as_the_official_search(case: dict) -> None:
    local, world, confidence = build(case)
    poses = poses_from_pointmaps(local, world, confidence > 1)
    assert_as_close(poses, case["official"]["pose_focal_search"], np.array(case["true_cam_to_world"]))


def test_pnp_with_the_known_focal_length_is_as_close_as_the_official_one(case: dict) -> None:
    _, world, confidence = build(case)
    poses = poses_by_pnp(world, confidence, case["focal"], pixel_centre=0.0)
    assert_as_close(poses, case["official"]["pose_known_focal"], np.array(case["true_cam_to_world"]))


def test_pnp_that_searches_the_focal_length_is_closer_than_the_official_one(case: dict) -> None:
    _, world, confidence = build(case)
    poses = poses_by_pnp(world, confidence, pixel_centre=0.0)
    assert_as_close(poses, case["official"]["pose_focal_search"], np.array(case["true_cam_to_world"]))
    official = case["official"]["focal_search"]
    assert abs(poses.focal[0] - case["focal"]) <= abs(official - case["focal"])

"""The renderer against closed-form intersections, and against itself from other viewpoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fast3r_ros.synthetic.render import points_camera, render
from fast3r_ros.synthetic.rooms import SyntheticScene, ring_scene, room_scene
from fast3r_ros.synthetic.sequence import pinhole
from fast3r_ros.synthetic.trajectories import look, walk

WIDTH, HEIGHT = 64, 48
INTRINSICS = pinhole(WIDTH, HEIGHT, np.deg2rad(70))


def ray_directions(pose: np.ndarray) -> np.ndarray:
    """(H, W, 3) world directions of unit camera depth."""
    u, v = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    camera = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(INTRINSICS).T
    return camera @ pose[:3, :3].T


def depth_by_brute_force(scene: SyntheticScene, pose: np.ndarray) -> np.ndarray:
    """(H, W) depth from intersecting every ray with every rectangle, in float64."""
    rays, origin = ray_directions(pose), pose[:3, 3]
    nearest = np.full((HEIGHT, WIDTH), np.inf)
    for center, (u, v, normal), (half_u, half_v) in zip(scene.center, scene.axes, scene.half, strict=True):
        slope = rays @ normal
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = ((center - origin) @ normal) / slope
        hit = origin + rays * depth[..., None] - center
        inside = (np.abs(hit @ u) <= half_u) & (np.abs(hit @ v) <= half_v) & (slope < 0) & (depth > 0.02)
        nearest = np.where(inside & (depth < nearest), depth, nearest)
    return nearest


@pytest.mark.parametrize("seed", [0, 1])
def test_depth_equals_ray_rectangle_intersection(seed: int) -> None:
    scene = room_scene(seed) if seed else ring_scene(seed, route_length=30, columns=3, rows=2)
    poses = walk(scene, np.random.default_rng(seed), 3)
    depth = render(scene, torch.from_numpy(poses), torch.from_numpy(INTRINSICS), WIDTH, HEIGHT).depth.numpy()
    for pose, own in zip(poses, depth, strict=True):
        truth = depth_by_brute_force(scene, pose)
        assert np.isfinite(truth).all(), "a room is closed"
        close = np.abs(own - truth) <= 1e-4 * truth
        assert close.mean() > 0.998  # rays through an edge may fall to either side
        assert np.median(np.abs(own - truth) / truth) < 1e-6


@settings(max_examples=25, deadline=None)
@given(
    yaw=st.floats(-3.1, 3.1),
    pitch=st.floats(-0.5, 0.5),
    roll=st.floats(-0.5, 0.5),
    x=st.floats(-1, 1),
    y=st.floats(-1, 1),
    z=st.floats(0.4, 2.0),
)
def test_every_point_of_an_empty_room_lies_on_its_shell(
    yaw: float, pitch: float, roll: float, x: float, y: float, z: float
) -> None:
    scene = room_scene(5, size=(5.0, 4.0, 2.5), furniture=0)
    pose = look(np.array([[x, y, z]]), np.array([yaw]), pitch, roll)
    intrinsics = torch.from_numpy(INTRINSICS)
    depth = render(scene, torch.from_numpy(pose), intrinsics, WIDTH, HEIGHT).depth
    points = points_camera(depth, intrinsics).double().numpy() @ pose[0, :3, :3].T + pose[0, :3, 3]
    to_shell = np.abs(np.abs(points - [0, 0, 1.25]) - [2.5, 2.0, 1.25]).min(-1)
    assert (depth > 0).all()
    assert to_shell.max() < 0.021  # pictures hang 2 cm in front of the walls
    assert np.median(to_shell) < 1e-5


def test_views_agree_about_what_they_both_see() -> None:
    scene = room_scene(3)
    poses = walk(scene, np.random.default_rng(3), 2)
    intrinsics = torch.from_numpy(INTRINSICS)
    view = render(scene, torch.from_numpy(poses), intrinsics, WIDTH, HEIGHT)
    points = points_camera(view.depth, intrinsics).double().numpy()
    second_from_first = np.linalg.inv(poses[1]) @ poses[0]
    moved = points[0] @ second_from_first[:3, :3].T + second_from_first[:3, 3]
    pixels = moved @ INTRINSICS.T
    u, v = pixels[..., 0] / pixels[..., 2], pixels[..., 1] / pixels[..., 2]
    seen = (moved[..., 2] > 0.1) & (u >= 0) & (u < WIDTH) & (v >= 0) & (v < HEIGHT)
    assert seen.mean() > 0.5
    row, column = v[seen].astype(int), u[seen].astype(int)
    # the seen pixel's plane passes within a pixel's footprint of the point, apart from occlusion edges
    relative = np.abs(view.depth[1].numpy()[row, column] - moved[seen][:, 2]) / moved[seen][:, 2]
    assert np.median(relative) < 0.01
    assert (relative < 0.05).mean() > 0.9
    colors = view.images.float().numpy() / 255
    difference = np.abs(colors[1][row, column] - colors[0][seen]).mean(-1)
    shuffled = np.abs(colors[1][np.random.default_rng(0).permutation(row), column] - colors[0][seen]).mean(-1)
    assert np.median(difference) < 0.5 * np.median(shuffled)


def test_a_batch_of_scenes_equals_one_by_one() -> None:
    scenes = [room_scene(0), room_scene(1, furniture=2)]
    poses = torch.from_numpy(np.stack([walk(scene, np.random.default_rng(0), 2) for scene in scenes]))
    intrinsics = torch.from_numpy(INTRINSICS)
    together = render(scenes, poses, intrinsics, WIDTH, HEIGHT)
    for index, scene in enumerate(scenes):
        alone = render(scene, poses[index], intrinsics, WIDTH, HEIGHT)
        assert torch.equal(alone.depth, together.depth[index])
        assert torch.equal(alone.images, together.images[index])


def test_textures_are_smooth_enough_for_learning() -> None:
    """A 4x finer rendering, averaged, looks like the coarse one: the mipmaps keep aliasing away."""
    scene = room_scene(2)
    pose = torch.from_numpy(walk(scene, np.random.default_rng(1), 1))
    coarse = render(scene, pose, torch.from_numpy(INTRINSICS), WIDTH, HEIGHT).images.float()
    fine_intrinsics = torch.from_numpy(INTRINSICS * [[4], [4], [1]])
    fine = render(scene, pose, fine_intrinsics, 4 * WIDTH, 4 * HEIGHT).images.float()
    averaged = fine.reshape(1, HEIGHT, 4, WIDTH, 4, 3).mean((2, 4))
    assert (coarse - averaged).abs().mean() < 8  # of 255
    assert coarse.std() > 15


def test_nothing_but_black_and_zero_depth_outside_of_the_scene() -> None:
    scene = room_scene(0)
    pose = torch.from_numpy(look(np.array([[100.0, 0, 1]]), np.array([0.0])))
    view = render(scene, pose, torch.from_numpy(INTRINSICS), WIDTH, HEIGHT)
    assert not view.depth.any()
    assert not view.images.any()

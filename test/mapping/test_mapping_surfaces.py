"""Depths of many views become one surface; what later views look through leaves the cloud."""

from dataclasses import replace

import numpy as np
import pytest

from fast3r_ros.benchmark.synthetic_run import start, the_loop
from fast3r_ros.geometry.intrinsics import pixel_rays
from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.fused_cloud import DepthView, PlacedPoints, depth_corrections, free_samples
from fast3r_ros.mapping.points import grid_pixels
from fast3r_ros.synthetic.oracle_network import REALISTIC, Disturbance
from fast3r_ros.synthetic.sequence import RecordedSequence

HEIGHT, WIDTH = 60, 80
CAMERA = np.array([[70.0, 0, WIDTH / 2], [0, 70.0, HEIGHT / 2], [0, 0, 1]])


def view_of(depth, x=0.0, scale=1.0, confidence=5.0, most=1200):
    """A camera at x, looking along z at a depth (h, w) or number; its own unit is 1 / scale of the map's."""
    rays = pixel_rays(CAMERA, HEIGHT, WIDTH).reshape(-1, 3)
    pixels = grid_pixels(HEIGHT, WIDTH, most)
    points = (rays * np.broadcast_to(depth, (HEIGHT, WIDTH)).reshape(-1, 1))[pixels] / scale
    trust = np.where(np.isfinite(points[:, 2]), np.float32(confidence), np.float32(0))
    place = Sim3(scale, np.eye(3), np.array([x, 0.0, 0.0]))
    return DepthView(points.astype(np.float32), trust, pixels, WIDTH, CAMERA, place)


def depths(view, others):
    factor = depth_corrections(view, [PlacedPoints.of(other) for other in others])
    return view.points[:, 2] * view.map_from_local.scale * factor


@pytest.mark.parametrize("most", [1200, 4800, 70])
def test_a_wall_that_views_see_at_different_depths_becomes_one(most):
    views = [view_of(2.0 + off, 0.1 * i, 1 + i, most=most) for i, off in enumerate((0.0, 0.06, -0.03, 0.03))]
    result = [depths(view, views[:i] + views[i + 1 :]) for i, view in enumerate(views)]
    middle = [np.median(each) for each in result]
    assert np.ptp(middle) < 0.02
    assert np.mean(middle) == pytest.approx(2.015, abs=0.01)


def test_noise_falls_with_the_number_of_views():
    rng = np.random.default_rng(0)
    views = [view_of(2 * (1 + 0.02 * rng.normal(size=(HEIGHT, WIDTH)))) for _ in range(9)]
    before, after = views[0].points[:, 2], depths(views[0], views[1:])
    assert after.std() < 0.45 * before.std()
    assert after.mean() == pytest.approx(2.0, rel=0.003)


def test_steps_stay_steps_and_exact_views_stay_exact():
    step = np.where(np.arange(WIDTH) < WIDTH / 2, 2.0, 2.2) * np.ones((HEIGHT, 1))
    views = [view_of(step) for _ in range(5)]
    assert depths(views[0], views[1:]) == pytest.approx(views[0].points[:, 2], rel=1e-5)


def test_points_contradicted_by_neighbours_are_removed():
    person = np.full((HEIGHT, WIDTH), 3.0)
    person[20:40, 30:50] = 1.5
    far, empty = view_of(person), view_of(3.0)
    inside = far.points[:, 2] < 2
    assert np.isnan(depths(far, [empty, empty, empty])[inside]).all()
    assert np.isfinite(depths(far, [empty])[inside]).all()  # one view may err
    assert np.isfinite(depths(far, [empty, empty, far, far])[inside]).all()
    assert np.isfinite(depths(empty, [far, far])).all()  # what is hidden by something stays
    assert np.isfinite(depths(far, [empty] * 3)[~inside]).all()


def test_views_without_points_neighbours_or_a_full_grid_do_no_harm():
    view, blind = view_of(2.0), view_of(np.nan)
    assert (depth_corrections(view, []) == 1).all()
    assert (depth_corrections(view, [PlacedPoints.of(blind)]) == 1).all()
    assert np.isnan(depth_corrections(blind, [PlacedPoints.of(view)])).all()
    behind = replace(view, map_from_local=Sim3(1.0, np.eye(3), np.array([0, 0, -50.0])))
    assert np.isfinite(depth_corrections(view, [PlacedPoints.of(behind)])).all()
    ragged = replace(view, points=view.points[:50], confidence=view.confidence[:50], pixels=view.pixels[:50])
    assert (depth_corrections(ragged, [PlacedPoints.of(view)]) == 1).all()
    assert len(free_samples(ragged, 0.1)) == len(free_samples(blind, 0.1)) == 0


def test_free_space_ends_before_the_surface_and_spares_what_is_thin():
    samples = free_samples(view_of(2.0, x=1.0, scale=0.5), 0.1)
    assert 0 < samples[:, 2].min() < 0.15
    assert 1.6 < samples[:, 2].max() < 1.85
    thin = np.full((HEIGHT, WIDTH), 4.0)
    thin[:, 40:42] = 1.0
    thin[30:32] = np.nan
    samples = free_samples(view_of(thin, most=4800), 0.1)
    pixel = samples @ CAMERA.T / samples[:, 2:]
    near_post = np.abs(pixel[:, 0] - 41) < 2
    assert samples[near_post, 2].max() < 1.0
    assert not (np.abs(pixel[:, 1] - 31) < 2).any()


@pytest.mark.parametrize("depth", [1e3, 1e9])
def test_distant_surfaces_take_no_more_samples(depth):
    near, far = (free_samples(view_of(each), 0.01) for each in (4.0, depth))
    assert len(near) > 1e5
    assert len(near) < len(far) < 2 * len(near)
    assert 4.5 < far[:, 2].max() < 5.2  # the beginning of each ray is free all the same


def distance_to_truth(run, depth_at):
    """For the cloud's points visible in a true view: relative distance in front of or behind its surface."""
    cloud, world_from_map = run.mapper.map.cloud().points.astype(float), run.world_from_map()
    world = world_from_map.apply(cloud)
    sequence, result = run.sequences[0], []
    for index in range(0, len(sequence), 12):
        camera = inverse(sequence.world_from_camera[index])
        seen = world @ camera[:3, :3].T + camera[:3, 3]
        seen = seen[(seen[:, 2] > 0.3) & (seen[:, 2] < 4)]
        pixel = (seen @ sequence.intrinsics.T / seen[:, 2:])[:, :2].astype(int)
        inside = ((pixel >= 0) & (pixel < (sequence.width, sequence.height))).all(axis=1)
        true = depth_at(index)[pixel[inside, 1], pixel[inside, 0]]
        result.append((seen[inside, 2] - true)[true > 0] / true[true > 0])
    return np.abs(np.concatenate(result))


@pytest.mark.slow
@pytest.mark.parametrize(("disturbance", "share"), [(Disturbance(depth_noise=0.02), 0.75), (REALISTIC, 0.92)])
def test_walls_are_thinner_than_in_a_cloud_of_the_keyframes_own_points(disturbance, share):
    sequence, frames = the_loop()
    run, bare = start(sequence, disturbance), start(sequence, disturbance)
    bare.mapper.map.refine = lambda final, provisional: None
    thin, thick = (distance_to_truth(each.feed(frames[:90]), sequence.depth) for each in (run, bare))
    assert np.median(thin) < share * np.median(thick)
    assert (thin < 0.05).mean() > (thick < 0.05).mean() + 0.03


def test_removed_objects_leave_the_map():
    """A pillar is in the room on the way out and gone on the way back."""
    sequence, frames = the_loop()
    way = list(range(60))
    truth = np.stack([frames[i].depth for i in way])
    rays = pixel_rays(sequence.intrinsics, sequence.height, sequence.width)
    poses = sequence.world_from_camera[way]
    spot = poses[40] @ np.array([0.0, 0.0, 0.6 * np.median(truth[40]), 1.0])
    pillar = truth.copy()
    for depth, pose in zip(pillar, poses, strict=True):
        camera = inverse(pose) @ spot
        across = np.abs(rays[..., 0] - camera[0] / camera[2]) * camera[2]
        depth[(across < 0.2) & (camera[2] > 0.3) & (depth > camera[2])] = camera[2]
    images = np.stack([frame.image for frame in frames[:60]])
    known = RecordedSequence(
        np.concatenate([images, images[::-1]]),
        np.concatenate([pillar, truth[::-1]]),
        np.concatenate([poses, poses[::-1]]),
        sequence.intrinsics,
    )

    def points_at_the_pillar(run):
        points = run.world_from_map().apply(run.mapper.map.cloud().points.astype(float))
        off = points - spot[:3]
        return int(((np.linalg.norm(off[:, :2], axis=1) < 0.3) & (np.abs(off[:, 2]) < 0.5)).sum())

    run = start(known, Disturbance(), loop__enabled=False).feed(list(known)[:60])
    there = points_at_the_pillar(run)
    run.feed(list(known)[60:])
    assert there > 100
    assert points_at_the_pillar(run) < 0.1 * there

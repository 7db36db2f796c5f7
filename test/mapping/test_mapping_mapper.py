"""The whole mapper: its outputs are consistent, and invalid input does no harm."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fast3r_ros.benchmark.synthetic_run import start, the_loop
from fast3r_ros.geometry.rigid import BODY_FROM_OPTICAL, rigid_matrix
from fast3r_ros.geometry.rotation import angle_between, matrix_from_vector
from fast3r_ros.geometry.similarity import fit_similarity
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import Frame
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.synthetic.oracle_network import OracleNetwork
from fast3r_ros.synthetic.sequence import pinhole


@pytest.fixture(scope="module")
def run():
    sequence, frames = the_loop()
    return start(sequence, scale__source="depth").feed(frames[:120])


def test_views_are_in_time_order_placed_and_metric(run):
    truth = {run.sequences[0].stamp_ns(i): i for i in range(600)}
    world_from_map = run.world_from_map()
    last = run.results[-1]
    assert last.accepted
    assert [v.stamp_ns for v in last.views] == sorted(v.stamp_ns for v in last.views)
    for view in last.views:
        frame = run.sequences[0][truth[view.stamp_ns]]
        depth = view.points_camera[..., 2][view.valid]
        assert np.median(np.abs(depth / frame.depth[view.valid] - 1)) < 0.02
        pose = world_from_map.move_camera(view.map_from_camera)
        true = run.sequences[0].world_from_camera[truth[view.stamp_ns]]
        assert np.linalg.norm(pose[:3, 3] - true[:3, 3]) < 0.1
        assert np.linalg.eigvalsh(view.covariance).min() > -1e-12
        assert np.allclose(view.intrinsics, run.sequences[0].intrinsics)


def test_the_map_is_level_and_starts_at_its_origin(run):
    first = run.mapper.trajectory()[0]
    assert np.allclose(first.map_from_camera[:3, 3], 0, atol=0.05)
    assert first.map_from_camera[0, 2] > 0.98  # the camera looks along x
    assert first.map_from_camera[2, 1] < -0.98  # its y axis points down


def test_the_cloud_lies_on_the_surfaces(run):
    cloud = run.mapper.map.cloud()
    assert len(cloud.points) == run.mapper.map.points == run.mapper.status().map_points
    world = run.world_from_map().apply(cloud.points[::20].astype(np.float64))
    scene = run.sequences[0].scene
    offset = world[:, None] - scene.center
    along = np.einsum("qij,nqj->nqi", scene.axes, offset)
    outside = np.maximum(np.abs(along[..., :2]) - scene.half, 0)
    distance = np.sqrt((outside**2).sum(-1) + along[..., 2] ** 2).min(axis=1)
    assert np.median(distance) < 0.03
    assert np.quantile(distance, 0.9) < 0.12


def test_covariance_grows_along_the_trajectory(run):
    sizes = [np.trace(pose.covariance[:3, :3]) for pose in run.mapper.trajectory()]
    assert sizes[-1] > sizes[0] >= 0


def test_between_windows_the_pose_is_extrapolated_and_marked():
    sequence, frames = the_loop()
    run = start(sequence)
    errors = []
    for i, frame in enumerate(frames[:120]):
        run.feed([frame], finish=False)
        pose = run.mapper.newest_pose()
        if pose is not None and pose.extrapolated:
            assert pose.stamp_ns == max(f.stamp_ns for f in frames[: i + 1] if f.stamp_ns <= pose.stamp_ns)
            errors.append((pose, i))
    assert len(errors) > 10
    world_from_map = run.world_from_map()
    stamps = {sequence.stamp_ns(i): i for i in range(len(sequence))}
    distances = [
        np.linalg.norm(
            world_from_map.apply(p.map_from_camera[:3, 3])
            - sequence.world_from_camera[stamps[p.stamp_ns]][:3, 3]
        )
        for p, _ in errors
    ]
    assert np.median(distances) < 0.5


def test_without_intrinsics_the_focal_length_is_found():
    sequence, frames = the_loop()
    run = start(sequence).feed(replace(frame, intrinsics=None) for frame in frames[:80])
    assert run.scores()["rmse_percent"] < 1.0
    for view in run.results[-1].views:
        assert view.intrinsics[0, 0] == pytest.approx(sequence.intrinsics[0, 0], rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("late_ns", [0, 37_000_000])
def test_cameras_of_different_shape_share_one_window_together_or_unsynchronised(late_ns):
    wide, frames = the_loop()
    offset = np.eye(4)
    offset[0, 3] = 0.2
    poses = (wide.world_from_camera @ offset)[:80]
    tall = replace(wide, camera="tall", world_from_camera=poses, width=48, height=64)
    tall = replace(tall, intrinsics=pinhole(48, 64, np.deg2rad(60)), start_ns=wide.start_ns + late_ns)
    run = start([wide, tall])
    run.feed(frame for i in range(80) for frame in (frames[i], tall[i]))
    scores, views = run.scores(), run.results[-1].views
    assert scores["rejected"] == 0
    assert scores["rmse_percent"] < 1.0
    assert {view.points_camera.shape for view in views} == {(48, 64, 3), (64, 48, 3)}
    assert {k.camera for k in run.mapper.map.keyframes.values()} == {wide.camera, "tall"}
    assert "size" not in run.mapper.status().dropped


def test_missing_regions_and_more_noise_do_no_harm():
    from fast3r_ros.synthetic.oracle_network import Disturbance

    sequence, frames = the_loop()
    run = start(sequence, Disturbance(depth_noise=0.05, missing=0.3)).feed(frames[:150])
    scores = run.scores()
    assert scores["rejected"] == 0
    assert scores["rmse_percent"] < 2.0


def test_poses_are_estimated_again_by_every_window_that_sees_the_keyframe(run):
    estimates = [k.estimates for k in run.mapper.map.keyframes.values()]
    assert np.median(estimates[4:-12]) >= 3
    assert estimates[-1] == 1


def test_points_carry_the_colour_of_their_pixel(run):
    keyframe = run.mapper.map.keyframes[3]
    assert np.array_equal(keyframe.points.colors, keyframe.image.reshape(-1, 3)[keyframe.points.pixels])
    colors = run.mapper.map.cloud().colors.astype(float)
    images = np.stack([k.image for k in run.mapper.map.keyframes.values()]).reshape(-1, 3)
    assert np.abs(colors.mean(axis=0) - images.mean(axis=0)).max() < 25
    assert colors.std() > 10


def test_a_first_pose_gives_attitude_and_heading():
    sequence, frames = the_loop()
    attitude = matrix_from_vector([0.0, 0.0, 1.0]) @ matrix_from_vector([0.0, 0.15, 0.0])
    run = start(sequence)
    run.mapper.set_first_pose(rigid_matrix(attitude, [5.0, 5.0, 5.0]))
    first = run.feed(frames[:50]).mapper.trajectory()[0].map_from_camera
    assert float(angle_between(first[:3, :3], attitude @ BODY_FROM_OPTICAL[:3, :3])) < 0.02
    assert np.linalg.norm(first[:3, 3]) < 0.05


def test_odometrys_tilt_levels_the_map():
    sequence, frames = the_loop()
    run = start(sequence)
    tilt = matrix_from_vector([0.0, 0.2, 0.0])
    pose = np.eye(4)
    pose[:3, :3] = tilt
    for i in range(3):
        run.mapper.add_odometry(sequence.stamp_ns(i), pose)
    run.feed(frames[:60])
    first = run.mapper.trajectory()[0].map_from_camera[:3, :3]
    level = start(sequence).feed(frames[:60]).mapper.trajectory()[0].map_from_camera[:3, :3]
    assert float(angle_between(first, level)) == pytest.approx(0.2, abs=0.02)


def test_bad_frames_are_dropped_and_counted():
    sequence, frames = the_loop()
    run = start(sequence)
    stranger = Frame(frames[30].stamp_ns + 7, sequence.camera, frames[300].image)
    large = Frame(
        frames[40].stamp_ns, sequence.camera, np.kron(frames[40].image, np.ones((2, 2, 1), np.uint8))
    )
    run.feed([*frames[:30], stranger, *frames[31:40], large, *frames[41:80]])
    status = run.mapper.status()
    assert status.dropped["unusable"] == 2
    assert "synthetic sequences" in status.last_error or "pixels" in status.last_error
    assert status.windows_rejected == 0
    assert status.received == 81 - 1
    assert status.keyframes + sum(status.dropped.values()) == status.received


def test_views_of_rejected_windows_that_start_a_submap_are_counted_once():
    sequence, frames = the_loop()
    run = start(sequence).feed(frames[:60], finish=False)
    mapper, oracle_network = run.mapper, run.mapper._network

    class Noise(OracleNetwork):
        def reconstruct(self, views):
            result = super().reconstruct(views)
            return replace(result, points_global=[torch.rand_like(view) for view in result.points_global])

    mapper._network = Noise([sequence])
    run.feed(frames[60:100], finish=False)
    assert mapper.status().windows_rejected >= 2
    mapper._network = oracle_network
    run.feed(frames[100:160])
    status = mapper.status()
    assert status.keyframes + sum(status.dropped.values()) == status.received == 160


def test_a_window_out_of_memory_is_counted_and_a_smaller_one_continues():
    sequence, frames = the_loop()
    run = start(sequence).feed(frames[:60], finish=False)
    mapper, version = run.mapper, run.mapper.map.version

    class Small(OracleNetwork):
        def reconstruct(self, views):
            if len(views) > 12:
                raise MemoryError("no room")
            return super().reconstruct(views)

    mapper._network = Small([sequence])
    for frame in frames[60:120]:
        mapper.add_frame(frame)
    with pytest.raises(MemoryError):
        mapper.process_window()
    assert mapper.map.version == version
    assert mapper.status().dropped["window_failed"] > 0
    mapper.set_config(replace(mapper.config, window=replace(mapper.config.window, size=12)))
    run.feed(frames[120:180])
    assert run.results[-1].accepted
    status = mapper.status()
    assert status.keyframes + sum(status.dropped.values()) == status.received


@pytest.mark.slow
def test_overload_keeps_the_newest_and_the_map_continues():
    sequence, frames = the_loop()
    run = start(sequence)
    run.feed(frames[:60], finish=False)
    for frame in frames[60:220]:  # no window is processed meanwhile
        run.mapper.add_frame(frame)
    assert run.mapper.status().dropped["overload"] > 0
    assert run.mapper.newest_pose().stamp_ns >= frames[205].stamp_ns
    run.feed(frames[220:300])
    assert run.scores()["rmse_percent"] < 1.0


def test_restart_and_reset():
    sequence, frames = the_loop()
    run = start(sequence).feed(frames[:80], finish=False)
    run.mapper.restart_input()
    run.mapper.restart_window()
    run.feed(frames[40:100])  # stamps may go back after a restart
    status = run.mapper.status()
    assert "out_of_order" not in status.dropped
    assert status.submaps == 1  # recognised at once
    run.mapper.reset()
    status = run.mapper.status()
    assert (status.received, status.keyframes, status.map_points) == (0, 0, 0)
    assert run.mapper.newest_pose() is None
    assert run.mapper.finish() is None


def test_images_after_a_jump_back_are_used_though_a_window_is_in_progress():
    sequence, frames = the_loop()
    run = start(sequence, loop__enabled=False).feed(frames[:80], finish=False)
    reconstruct, offered = run.mapper._network.reconstruct, []

    def jump_back(views):
        if not offered:
            run.mapper.restart_input()
            offered.extend(run.mapper.add_frame(frame) for frame in frames[:75])
        return reconstruct(views)

    run.mapper._network.reconstruct = jump_back
    for frame in frames[80:120]:
        run.feed([frame] * (not offered), finish=False)
    assert offered
    assert "out_of_order" not in offered
    run.mapper.restart_window()
    run.mapper._network.reconstruct = reconstruct
    while run.mapper.window_ready():
        assert run.mapper.process_window().accepted
    assert run.mapper.status().submaps == 2


def test_parameters_can_change_while_it_runs():
    sequence, frames = the_loop()
    run = start(sequence).feed(frames[:60], finish=False)
    before = run.mapper.status().keyframes
    run.mapper.set_config(MapperConfig.from_flat({"keyframes.motion": 1.0, "loop.background": False}))
    run.feed(frames[60:140])
    assert run.mapper.status().keyframes - before <= 4


def test_a_stationary_camera_fills_neither_map_nor_memory_and_keeps_its_track():
    sequence, frames = the_loop()
    place = 60
    poses = sequence.world_from_camera
    pause = np.repeat(poses[place : place + 1], 100, axis=0)
    longer = replace(sequence, world_from_camera=np.concatenate([poses[:place], pause, poses[place:140]]))
    images = [*frames[:place], *[frames[place]] * 100, *frames[place:140]]
    offered = [replace(frame, stamp_ns=longer.stamp_ns(i)) for i, frame in enumerate(images)]
    run = start(longer, keyframes__max_interval=0.5)
    run.feed(offered)
    status = run.mapper.status()
    assert status.dropped["redundant"] >= 15
    assert (status.windows_rejected, status.submaps) == (0, 1)
    standing = [p for p in run.mapper.trajectory() if place + 5 < (p.stamp_ns - 10**9) / 1e8 < place + 100]
    assert len(standing) <= 1
    assert all(result.accepted for result in run.results)
    assert run.scores()["rmse_percent"] < 1.0


def test_a_network_needs_no_more_than_two_methods():
    """A network of the protocol's first version, with default limits of its descriptors."""
    sequence, frames = the_loop()
    known = OracleNetwork(sequence)

    class Two:
        encode, reconstruct = known.encode, known.reconstruct

    mapper = Mapper(Two())
    for frame in frames[:60]:
        mapper.add_frame(frame)
        if mapper.window_ready():
            assert mapper.process_window().accepted
    mapper.set_config(mapper.config)
    assert len(mapper.trajectory()) > 5


def test_nothing_and_little():
    sequence, frames = the_loop()
    mapper = Mapper(OracleNetwork(sequence))
    assert mapper.finish() is None
    assert len(mapper.map.cloud().points) == 0
    mapper.add_frame(frames[0])
    result = mapper.finish()
    assert result is not None
    assert not result.accepted
    assert mapper.localize(frames[0]) is None


@pytest.mark.slow
def test_a_submap_gets_its_own_scale_and_leaves_the_others_alone():
    sequence, frames = the_loop()
    run = start(sequence, scale__source="depth", loop__enabled=False)
    run.feed(frames[:150], finish=False)
    settled = len(run.mapper.trajectory()) - run.mapper.config.window.size
    before = {p.stamp_ns: p.map_from_camera for p in run.mapper.trajectory()[:settled]}
    assert len(before) > 10
    blank = [replace(frame, image=np.full_like(frame.image, 128)) for frame in frames[150:250]]
    run.feed([*blank, *frames[250:350]])
    assert run.mapper.status().submaps == 2
    for pose in run.mapper.trajectory(submap=0)[:settled]:
        assert np.allclose(pose.map_from_camera, before[pose.stamp_ns], atol=1e-9)
    for submap in (0, 1):
        estimated, true = run.positions(submap)
        assert len(estimated) > 10
        assert fit_similarity(estimated, true).scale == pytest.approx(1.0, abs=0.02)

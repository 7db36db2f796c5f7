"""Networks that also output poses, intrinsics and metric points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from fast3r_ros.mapping.calibration import FocalLengths, network_focals
from fast3r_ros.mapping.config import DescriptorLimits, MapperConfig, RegistrationConfig
from fast3r_ros.mapping.data import EncodedView, Reconstruction
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.mapping.one_pass import OnePass
from fast3r_ros.mapping.registration import place_views
from fast3r_ros.mapping.window import WindowView
from fast3r_ros.metrics.trajectory import align_trajectory
from fast3r_ros.networks import from_depth
from fast3r_ros.synthetic.oracle_network import OracleNetwork
from fast3r_ros.synthetic.sequence import SyntheticSequence, demo_sequence


class Cameras(OracleNetwork):
    """The ground truth in metres as depth and cameras, in a world frame other than view 0's."""

    metric = True

    def reconstruct(self, views: Sequence[EncodedView]) -> Reconstruction:
        truth = [view.tokens for view in views]
        return from_depth(
            [torch.from_numpy(each.depth) for each in truth],
            [torch.full(each.depth.shape, 3.0) for each in truth],
            np.stack([each.intrinsics for each in truth]),
            np.stack([each.world_from_camera for each in truth]),
            self.metric,
        )


@pytest.fixture(scope="module")
def walk() -> SyntheticSequence:
    return demo_sequence()


def window(walk: SyntheticSequence, count: int = 4) -> tuple[list[WindowView], Reconstruction]:
    network = Cameras(walk)
    frames = [replace(walk[10 * i], intrinsics=None) for i in range(count)]
    views = [WindowView.of(frame, network.encode(frame)) for frame in frames]
    return views, network.reconstruct([view.encoded for view in views])


def test_points_agree_with_poses_and_pixels(walk: SyntheticSequence) -> None:
    views, maps = window(walk)
    assert maps.window_from_camera is not None
    assert maps.intrinsics is not None
    np.testing.assert_allclose(maps.window_from_camera[0], np.eye(4), atol=1e-9)
    for i in range(len(views)):
        local, world = maps.points_local[i].numpy(), maps.points_global[i].numpy()
        pose = maps.window_from_camera[i]
        np.testing.assert_allclose(local @ pose[:3, :3].T + pose[:3, 3], world, atol=1e-4)
        pixels = local @ maps.intrinsics[i].T
        rows, columns = np.indices(local.shape[:2]) + 0.5
        np.testing.assert_allclose(pixels[..., 0] / pixels[..., 2], columns, atol=1e-2)
        np.testing.assert_allclose(pixels[..., 1] / pixels[..., 2], rows, atol=1e-2)


def test_the_networks_poses_and_focal_length_are_taken(walk: SyntheticSequence) -> None:
    views, maps = window(walk)
    assert maps.window_from_camera is not None
    focal = network_focals(views, maps)
    np.testing.assert_allclose(focal, walk.intrinsics[0, 0])
    cameras = FocalLengths().after(views, focal).cameras(views, focal)
    placed = place_views(maps, cameras, RegistrationConfig())
    np.testing.assert_array_equal(placed.window_from_camera, maps.window_from_camera)
    assert placed.ok.all()
    assert (placed.scale == 1.0).all()
    wrong = maps.window_from_camera.copy()
    wrong[2, :3, 3] += 5.0
    wrong[3] = np.nan
    placed = place_views(replace(maps, window_from_camera=wrong), cameras, RegistrationConfig())
    assert placed.ok.tolist() == [True, True, False, False]
    assert "disagrees" in placed.reasons[2]


@pytest.mark.slow
def test_given_poses_map_as_fitted_ones_do(walk: SyntheticSequence) -> None:
    class Fitted(Cameras):
        def reconstruct(self, views: Sequence[EncodedView]) -> Reconstruction:
            return replace(super().reconstruct(views), window_from_camera=None, intrinsics=None)

    trajectories = []
    for network in (Cameras(walk), Fitted(walk)):
        mapper = Mapper(network, MapperConfig.from_flat({"loop.background": False}))
        for i in range(0, 60, 3):
            mapper.add_frame(walk[i])
            if mapper.window_ready():
                mapper.process_window()
        mapper.finish()
        trajectories.append(np.stack([pose.map_from_camera for pose in mapper.trajectory()]))
    assert len(trajectories[0]) > 8
    np.testing.assert_allclose(*trajectories, atol=1e-4)


@pytest.mark.parametrize("one_pass", [False, True])
def test_metres_of_the_network(walk: SyntheticSequence, one_pass: bool) -> None:
    config = MapperConfig.from_flat({"scale.source": "network", "loop.background": False})
    mapper = (OnePass if one_pass else Mapper)(Cameras(walk), config)
    for i in range(0, 60, 3):
        mapper.add_frame(walk[i])
        if isinstance(mapper, Mapper) and mapper.window_ready():
            mapper.process_window()
    if isinstance(mapper, Mapper):
        mapper.finish()
    else:
        list(mapper.process())
    status = mapper.status()
    assert status.metres
    poses = mapper.trajectory()
    assert len(poses) > 8
    truth = {walk.stamp_ns(i): walk.world_from_camera[i] for i in range(len(walk))}
    fit = align_trajectory(
        np.stack([pose.map_from_camera for pose in poses]), np.stack([truth[pose.stamp_ns] for pose in poses])
    )
    assert fit.scale == pytest.approx(1.0, abs=0.01)


def test_a_network_that_is_not_in_metres_gives_none(walk: SyntheticSequence) -> None:
    network = Cameras(walk)
    network.metric = False
    mapper = Mapper(network, MapperConfig.from_flat({"scale.source": "network", "loop.background": False}))
    for i in range(0, 60, 3):
        mapper.add_frame(walk[i])
        if mapper.window_ready():
            mapper.process_window()
    assert mapper.map.keyframes
    assert not mapper.status().metres


def test_a_network_gets_the_poses_that_odometry_knows(walk: SyntheticSequence) -> None:
    seen: list[EncodedView] = []

    class Watching(Cameras):
        def reconstruct(self, views: Sequence[EncodedView]) -> Reconstruction:
            seen.extend(views)
            return super().reconstruct(views)

    base_from_camera = np.eye(4)
    base_from_camera[:3, 3] = [0.1, 0.2, 0.3]
    for known in (False, True):
        seen.clear()
        mapper = Mapper(Watching(walk), MapperConfig.from_flat({"loop.background": False}))
        if known:
            mapper.set_extrinsics(walk.camera, base_from_camera)
        for i in range(0, 60, 3):
            mapper.add_odometry(walk.stamp_ns(i), walk.world_from_camera[i] @ np.linalg.inv(base_from_camera))
            mapper.add_frame(walk[i])
            if mapper.window_ready():
                mapper.process_window()
        assert len(seen) >= 8
        for view in seen:
            if known:
                assert view.odom_from_camera is not None
                np.testing.assert_allclose(view.odom_from_camera, view.tokens.world_from_camera, atol=1e-9)
            else:
                assert view.odom_from_camera is None


def test_limits_are_the_networks_unless_given(walk: SyntheticSequence) -> None:
    network = Cameras(walk)
    network.descriptors = DescriptorLimits(redundant=0.5, similar=0.25)
    config = Mapper(network).config
    assert (config.keyframes.max_similarity, config.loop.min_similarity) == (0.5, 0.25)
    given = MapperConfig.from_flat({"keyframes.max_similarity": 0.9, "loop.min_similarity": 0.1})
    mapper = Mapper(network, given)
    assert (mapper.config.keyframes.max_similarity, mapper.config.loop.min_similarity) == (0.9, 0.1)
    mapper.set_config(MapperConfig())
    assert (mapper.config.keyframes.max_similarity, mapper.config.loop.min_similarity) == (0.5, 0.25)
    reference = Mapper(OracleNetwork(walk)).config
    assert (reference.keyframes.max_similarity, reference.loop.min_similarity) == (0.9999, 0.5)

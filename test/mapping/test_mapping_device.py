"""The mapper's device: that of the network's pointmaps, until points are published."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from second_device import DEVICE, SecondDevice

from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import EncodedView, Frame, Reconstruction, WindowNetwork
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.synthetic.oracle_network import Disturbance, OracleNetwork
from fast3r_ros.synthetic.sequence import loop_sequence

WIDTH, HEIGHT = 64, 48
LARGEST_FIT = 8 * 16 * 6 * 6  # bytes: the covariances of a window's camera poses
POINT = 16  # bytes: coordinates and confidence, float32


class OnDevice(WindowNetwork):
    """A network whose pointmaps are on a device."""

    def __init__(self, network: OracleNetwork, device: torch.device) -> None:
        self.network, self.device = network, device

    def encode(self, frame: Frame) -> EncodedView:
        return self.network.encode(frame)

    def reconstruct(self, views: list[EncodedView]) -> Reconstruction:
        maps = self.network.reconstruct(views)
        return Reconstruction(
            *(
                [view.to(self.device) for view in part]
                for part in (
                    maps.points_global,
                    maps.confidence_global,
                    maps.points_local,
                    maps.confidence_local,
                )
            )
        )


@pytest.fixture(scope="module")
def walk():
    """Every other frame of a walk's start and of its end at the same place."""
    sequence = loop_sequence(frames=600, width=WIDTH, height=HEIGHT)
    return sequence, [sequence[i] for i in (*range(0, 60, 2), *range(560, 600, 2))]


def mapped(walk, device, known=True):
    """A mapper after a walk, and the results of its windows; known: the cameras' intrinsics are given."""
    sequence, frames = walk
    network = OnDevice(OracleNetwork(sequence, Disturbance(missing=0.05)), device)
    mapper, results = Mapper(network, MapperConfig.from_flat({"loop.background": False})), []
    for frame in frames:
        mapper.add_frame(frame if known else replace(frame, intrinsics=None))
        if mapper.window_ready():
            results.append(mapper.process_window())
    results.append(mapper.finish())
    return mapper, [result for result in results if result is not None]


@pytest.fixture(scope="module")
def on_cpu(walk):
    """By whether intrinsics are given: the mapper after the walk, and its results."""
    return {known: mapped(walk, torch.device("cpu"), known) for known in (True, False)}


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False])
def test_another_device_gives_the_same_map(walk, on_cpu, other_device, known):
    (cpu, cpu_results), (there, results) = on_cpu[known], mapped(walk, other_device, known)
    assert len(there.trajectory()) > 15
    for one, other in zip(cpu.trajectory(), there.trajectory(), strict=True):
        assert np.allclose(one.map_from_camera, other.map_from_camera, atol=1e-6)
        assert np.allclose(one.covariance, other.covariance, rtol=1e-3, atol=1e-12)
    assert [result.reason for result in results] == [result.reason for result in cpu_results]
    assert there.map.points == pytest.approx(cpu.map.points, rel=1e-3)


def test_points_stay_on_the_device_until_they_are_published(walk):
    """Only the keyframes' points of placed views are transferred, in one copy."""
    with SecondDevice() as device:
        _, results = mapped(walk, DEVICE)
    published = sum(len(result.views) for result in results)
    assert published > 40
    maps = [size for size in device.reads if size > LARGEST_FIT]
    assert len(maps) == sum(result.accepted for result in results)
    assert sum(maps) <= published * HEIGHT * WIDTH * POINT
    assert len(device.reads) - len(maps) < 40 * len(results)
    assert device.numbers < 20 * len(results)


def test_the_second_device_is_none_that_lets_everything_pass():
    with SecondDevice() as device:
        there = torch.ones(3).to(DEVICE)
        assert (there + 1).tolist() == [2.0, 2.0, 2.0]
        assert device.reads == [12]
        for misuse in (lambda: there + torch.ones(3), there.numpy, lambda: np.asarray(there)):
            with pytest.raises(RuntimeError):
                misuse()

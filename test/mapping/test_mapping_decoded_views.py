"""The heads run for the views that are published or registered, and for no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import Module

from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import EncodedView, Frame, Reconstruction, WindowNetwork
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.mapping.network import Fast3RNetwork
from fast3r_ros.model import Fast3R
from fast3r_ros.synthetic.oracle_network import OracleNetwork
from fast3r_ros.synthetic.sequence import loop_sequence


class Noting(WindowNetwork):
    """The stand-in network; decoded: stamps of the views of every window whose pointmaps were requested."""

    def __init__(self, network: OracleNetwork) -> None:
        self._network = network
        self.decoded: list[set[int]] = []

    def encode(self, frame: Frame) -> EncodedView:
        view = self._network.encode(frame)
        return replace(view, tokens=(frame.stamp_ns, view))

    def reconstruct(self, views: Sequence[EncodedView]) -> Reconstruction:
        self.decoded.append({view.tokens[0] for view in views})
        return self._network.reconstruct([view.tokens[1] for view in views])


def test_every_view_of_a_window_is_published_or_registered() -> None:
    sequence = loop_sequence(frames=600, width=64, height=48)
    network = Noting(OracleNetwork(sequence))
    window = {"window.size": 8, "window.stride": 2, "window.overlap": 3}
    mapper = Mapper(network, MapperConfig.from_flat({"loop.background": False, **window}))
    unused: list[int] = []
    retrieved = 0
    for i in (*range(0, 60, 2), *range(560, 600, 2)):  # the end of the loop sees the beginning
        mapper.add_frame(sequence[i])
        if not mapper.window_ready():
            continue
        registered = {k.stamp_ns for k in mapper.map.keyframes.values() if k.points is not None}
        result = mapper.process_window()
        if result is None or not result.accepted:
            continue
        published = {view.stamp_ns for view in result.views}
        retrieved += len((network.decoded[-1] & registered) - published)
        unused += network.decoded[-1] - registered - published
    assert len(network.decoded) > 5
    assert retrieved > 0  # views that closed a loop are registered, but not published again
    assert unused == []


@pytest.mark.parametrize("chosen", [[2], [3, 0]])
def test_publishing_needs_the_local_head_for_the_published_views_only(
    network: Fast3R, chosen: list[int]
) -> None:
    behind = Fast3RNetwork(network)
    sequence = loop_sequence(frames=4, width=64, height=48)
    features = behind.fuse([behind.encode(frame) for frame in sequence])
    whole = behind.pointmaps(features)
    decoded = {"global": 0, "local": 0}

    def count(name: str) -> Callable[[Module, Any, Any], None]:
        def hook(head: Module, inputs: Any, result: Any) -> None:
            decoded[name] += len(result[0])

        return hook

    assert network.downstream_head_local is not None
    handles = [
        network.downstream_head.register_forward_hook(count("global")),
        network.downstream_head_local.register_forward_hook(count("local")),
    ]
    part = behind.local_pointmaps(features, chosen)
    for handle in handles:
        handle.remove()
    assert decoded == {"global": 0, "local": len(chosen)}
    for place, number in enumerate(chosen):
        torch.testing.assert_close(part.points_local[place], whole.points_local[number], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            part.confidence_local[place], whole.confidence_local[number], rtol=1e-5, atol=1e-5
        )

"""One pass over many views looks for the fastest attention kernel once, where there is a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fast3r_ros.cli.reconstruct import mapper_config
from fast3r_ros.mapping import one_pass
from fast3r_ros.mapping.data import EncodedView, Frame
from fast3r_ros.mapping.network import Fast3RNetwork
from fast3r_ros.mapping.one_pass import ManyViewNetwork, OnePass, take_fastest_attention
from fast3r_ros.model import Fast3R


class Arguments:
    """The options of `fast3r reconstruct --mode all`."""

    mode, scale, min_confidence, voxel_size, set = "all", "none", None, None, ()


def views_on(device: str, *grids: tuple[int, int]) -> list[Any]:
    """What is asked of encoded views; their numbers are elsewhere."""
    there = SimpleNamespace(device=torch.device(device))
    return [SimpleNamespace(tokens=SimpleNamespace(tokens=there, grid=grid)) for grid in grids]


@pytest.mark.parametrize(("device", "expected"), [("cuda", [3 * 4 + 5 * 6]), ("cpu", [])])
def test_kernels_are_timed_on_a_gpu_with_the_tokens_of_all_views(
    network: Fast3R, monkeypatch: pytest.MonkeyPatch, device: str, expected: list[int]
) -> None:
    asked: list[int] = []

    def choose(model: Fast3R, tokens: int) -> str:
        assert model is network
        asked.append(tokens)
        return "auto"

    monkeypatch.setattr(one_pass, "choose_attention", choose)
    views = views_on(device, (3, 4), (5, 6))
    take_fastest_attention(Fast3RNetwork(network), views)
    assert asked == expected
    stand_in: Any = SimpleNamespace()
    take_fastest_attention(stand_in, views)
    assert asked == expected


def test_a_pass_looks_once_before_it_fuses(network: Fast3R, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def looked(network: ManyViewNetwork, views: Sequence[EncodedView]) -> None:
        events.append(f"attention for {len(views)} views")

    many = Fast3RNetwork(network)
    fuse = many.fuse

    def fused(views: Sequence[EncodedView]) -> Any:
        events.append("fuse")
        return fuse(views)

    monkeypatch.setattr(one_pass, "take_fastest_attention", looked)
    monkeypatch.setattr(many, "fuse", fused)
    rng = np.random.default_rng(0)
    whole = OnePass(many, mapper_config(Arguments(), 4), chunk=2)
    for i in range(3):
        assert whole.add_frame(Frame(i, "a", rng.integers(0, 256, (48, 64, 3), np.uint8))) == ""
    for _ in whole.process():
        pass
    assert events[:2] == ["attention for 3 views", "fuse"]
    assert set(events[1:]) == {"fuse"}  # however many views are tried as the first one

"""The heads' maps and weights have the device's fastest layout, with equal results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from second_device import DEVICE, SecondDevice
from small_model import random_views, small_model
from torch.utils._python_dispatch import TorchDispatchMode

from fast3r_ros.model import Fast3R, FusedFeatures, Pointmap, fast3r, heads
from fast3r_ros.model.heads import PointmapHead

SIZES = [[(64, 80)], [(64, 80)] * 3, [(48, 80)] * 2, [(64, 80), (48, 48), (64, 80)]]
CONVOLUTIONS = ("convolution", "_nnpack_spatial_convolution")
RESIZING = ("upsample_bilinear2d",)


class Layouts(TorchDispatchMode):
    """Notes of every convolution and upsampling whether its maps and its weights are channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[bool] = []
        self.weights: list[bool] = []
        self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in CONVOLUTIONS + RESIZING:
            self.maps.append(args[0].is_contiguous(memory_format=torch.channels_last))
        if name in CONVOLUTIONS:
            self.weights.append(args[1].is_contiguous(memory_format=torch.channels_last))
        if name == "clone":
            self.copies += 1
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def fused(model: Fast3R, sizes: list[tuple[int, int]], batch: int = 1) -> FusedFeatures:
    return model.fuse([model.encode(image) for image in random_views(*sizes, batch=batch)])


def assert_alike(maps: list[Pointmap], expected: list[Pointmap]) -> None:
    for one, other in zip(maps, expected, strict=True):
        torch.testing.assert_close(one.points.cpu(), other.points, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(one.confidence.cpu(), other.confidence, rtol=1e-5, atol=1e-5)


def on_second_device(model: Fast3R) -> PointmapHead:
    """The global head on the second device, with the weights as `from_pretrained` leaves them on a GPU."""
    with torch.device("meta"):
        head = PointmapHead(model.config)
    model.downstream_head.to(memory_format=torch.channels_last)
    weights = {name: value.to(DEVICE) for name, value in model.downstream_head.state_dict().items()}
    head.load_state_dict(weights, assign=True)
    return head


@pytest.mark.parametrize("budget", [1, 1 << 30], ids=["one view at a time", "all views together"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_off_the_cpu_every_map_is_channels_last(sizes: list[tuple[int, int]], budget: int) -> None:
    model, views = small_model(), range(len(sizes))
    features = fused(model, sizes)
    with torch.no_grad():
        expected = model.downstream_head.predict(features, views, budget)
        with SecondDevice():
            head = on_second_device(model)
            there = FusedFeatures(tuple(hook.to(DEVICE) for hook in features.hooks), features.grids)
            with Layouts() as layouts:
                found = head.predict(there, views, budget)
            assert len(layouts.maps) > 30
            assert all(layouts.maps)
            assert all(layouts.weights)
            assert layouts.copies == 0  # the raw channels come out as they are read
            assert_alike(found, expected)


@pytest.mark.parametrize("batch", [1, 2])
def test_both_layouts_agree_and_on_the_cpu_it_is_planes(
    network: Fast3R, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = fused(network, [(64, 80), (48, 48), (64, 80)], batch)
    with torch.inference_mode():
        with Layouts() as layouts:
            planes = network.global_head(features)
        assert batch > 1 or not any(layouts.maps)
        monkeypatch.setattr(heads, "layout_on", lambda device: torch.channels_last)
        with Layouts() as layouts:
            pixels = network.global_head(features)
        assert layouts.maps[0]
    assert_alike(pixels, planes)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_weights_from_a_file_lie_as_the_device_wants_them(
    layout: torch.memory_format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = small_model()
    plain.save_pretrained(tmp_path)
    if layout == torch.channels_last:  # otherwise what the CPU has
        monkeypatch.setattr(fast3r, "layout_on", lambda device: layout)
    model = Fast3R.from_pretrained(tmp_path)
    assert model.downstream_head_local is not None
    for head in (model.downstream_head, model.downstream_head_local):
        weights = [weight for weight in head.parameters() if weight.dim() == 4]
        assert weights
        assert all(weight.is_contiguous(memory_format=layout) for weight in weights)
    model.save_pretrained(tmp_path / "again")  # a file holds planes, whatever the layout
    again = Fast3R.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in plain.state_dict().items())

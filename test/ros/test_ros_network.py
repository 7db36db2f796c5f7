"""The effect of the node's parameters on the network; runs without ROS."""

from __future__ import annotations

import pytest

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.network import Fast3RNetwork
from fast3r_ros.model.precision import name_of, resolve_dtype
from fast3r_ros.ros import worker as node_network
from fast3r_ros.ros.node_config import NodeConfig
from fast3r_ros.ros.worker import expected_size, load_network, prepare_network


@pytest.mark.parametrize(("dtype", "expected"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_precision_on_a_cpu(model_directory: str, dtype: str, expected: str) -> None:
    network = load_network(NodeConfig(model=model_directory, device="cpu", dtype=dtype))
    assert isinstance(network, Fast3RNetwork)
    assert network.captured == 0
    assert name_of(resolve_dtype(dtype, "cpu")) == expected


def test_the_expected_image_is_a_size_or_nothing() -> None:
    assert expected_size("640x480") == (640, 480)
    assert expected_size("") is None
    for text in ("640", "640x", "axb", "0x480", "640x480x3"):
        with pytest.raises(UserError, match="give WIDTHxHEIGHT"):
            expected_size(text)


@pytest.mark.parametrize(
    ("device", "expected", "size"),
    [("cuda:0", "640x480", (64, 48)), ("cuda:0", "", None), ("cpu", "640x480", None)],
)
def test_a_gpu_is_warmed_up_for_the_image_that_is_expected(
    model_directory: str,
    device: str,
    expected: str,
    size: tuple[int, int] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    warmed: list[object] = []
    network = load_network(NodeConfig(model=model_directory, device="cpu"))
    monkeypatch.setattr(node_network, "resolve_device", lambda name: name)
    monkeypatch.setattr(node_network, "warm_up", lambda network, config, size: warmed.append((network, size)))
    prepare_network(network, NodeConfig(device=device, expected_image=expected))
    assert warmed == ([] if size is None else [(network, size)])

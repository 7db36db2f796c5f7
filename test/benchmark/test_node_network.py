"""What the node's parameters make of the network; none of it needs ROS."""

from __future__ import annotations

import pytest
import torch

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.network import Fast3RNetwork
from fast3r_ros.ros.config import NodeConfig
from fast3r_ros.ros.network import expected_size, load_network, resolve_dtype


@pytest.mark.parametrize(("dtype", "expected"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_precision_on_a_cpu(model_directory: str, dtype: str, expected: str) -> None:
    network = load_network(NodeConfig(model=model_directory, device="cpu", dtype=dtype))
    assert isinstance(network, Fast3RNetwork)
    assert network.captured == 0
    assert resolve_dtype(dtype, "cpu") == expected


def test_a_gpu_without_bfloat16_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    for supported, expected in ((False, "float32"), (True, "bfloat16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, s=supported: s)
        assert resolve_dtype("auto", "cuda:0") == expected


def test_the_expected_image_is_a_size_or_nothing() -> None:
    assert expected_size("640x480") == (640, 480)
    assert expected_size("") is None
    for text in ("640", "640x", "axb", "0x480", "640x480x3"):
        with pytest.raises(UserError, match="give WIDTHxHEIGHT"):
            expected_size(text)

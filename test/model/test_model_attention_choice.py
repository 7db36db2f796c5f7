"""The fusion's attention kernel is the fastest of those that run, and changes no result."""

from __future__ import annotations

import copy

import pytest
import torch

from fast3r_ros.model import Fast3R
from fast3r_ros.model import attention_choice as choice
from fast3r_ros.model.attention import PYTORCH_KERNELS


def kernels(network: Fast3R) -> set[str]:
    return {module.kernel for module in network.decoder.modules() if hasattr(module, "kernel")}


def test_kernels_that_run_here_are_timed_and_others_left_out() -> None:
    query, key, value = torch.rand(3, 1, 2, 48, 16).unbind(0)
    found = choice.kernel_seconds(query, key, value)
    assert "auto" in found
    assert all(seconds > 0 for seconds in found.values())
    assert "math" not in found
    assert set(found) <= {"auto", *PYTORCH_KERNELS, "flash_attn"}
    if not torch.cuda.is_available():
        assert {"cudnn", "flash_attn"}.isdisjoint(found)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"auto": 1.0, "flash": 0.5, "cudnn": 0.7}, "flash"),
        ({"auto": 1.0, "flash": 0.97}, "auto"),
        ({"auto": 1.0}, "auto"),
    ],
)
def test_the_fastest_is_taken_if_it_is_worth_it(
    small_network: Fast3R, monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], expected: str
) -> None:
    monkeypatch.setattr(choice, "kernel_seconds", lambda query, key, value: seconds)
    network = copy.deepcopy(small_network)
    images = [torch.rand(1, 3, 32, 48) * 2 - 1 for _ in range(3)]
    with torch.inference_mode():
        before = network(images)
        assert choice.choose_attention(network, 18) == expected
        after = network(images)
    assert kernels(network) == {expected}
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one.global_points.points, other.global_points.points, rtol=1e-5, atol=1e-5)


def test_a_kernel_that_was_asked_for_stays(small_network: Fast3R) -> None:
    network = copy.deepcopy(small_network)
    network.set_attention("math")
    assert choice.choose_attention(network, 18) == "math"
    assert kernels(network) == {"math"}

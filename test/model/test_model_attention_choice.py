"""The fusion's attention kernel is the fastest of those that run, and changes no result."""

from __future__ import annotations

import contextlib
import copy
import math

import pytest
import torch
from small_model import random_views
from torch import Tensor

from fast3r_ros.model import Fast3R, attention
from fast3r_ros.model.attention import ATTENTION_NAMES, PACKAGES, attend
from fast3r_ros.model.layers import Attention
from fast3r_ros.model.speed import attention_choice as choice
from fast3r_ros.model.speed.acceleration import Acceleration, accelerate


def kernels(network: Fast3R) -> set[str]:
    return {module.kernel for module in network.decoder.modules() if hasattr(module, "kernel")}


def test_kernels_that_run_here_are_timed_and_others_left_out() -> None:
    query, key, value = torch.rand(3, 1, 2, 48, 16).unbind(0)
    found = choice.kernel_seconds(query, key, value)
    assert "auto" in found
    assert all(seconds > 0 for seconds in found.values())
    assert "math" not in found
    assert set(found) <= set(ATTENTION_NAMES)
    if not torch.cuda.is_available():
        assert {"cudnn", *PACKAGES}.isdisjoint(found)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"auto": 1.0, "flash": 0.5, "cudnn": 0.7}, "flash"),
        ({"auto": 1.0, "flash": 0.97}, "auto"),
        ({"auto": 1.0}, "auto"),
        ({"flash": 0.5, "efficient": 0.4}, "efficient"),
        ({}, "auto"),
    ],
)
def test_the_fastest_is_taken_if_it_is_worth_it(
    network: Fast3R, monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], expected: str
) -> None:
    monkeypatch.setattr(choice, "kernel_seconds", lambda query, key, value: seconds)
    network = copy.deepcopy(network)
    images = [torch.rand(1, 3, 32, 48) * 2 - 1 for _ in range(3)]
    with torch.inference_mode():
        before = network(images)
        assert choice.choose_attention(network, 18) == expected
        after = network(images)
    assert kernels(network) == {expected}
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one.global_points.points, other.global_points.points, rtol=1e-5, atol=1e-5)


def test_a_kernel_that_was_asked_for_stays(network: Fast3R) -> None:
    network = copy.deepcopy(network)
    network.set_attention("math")
    assert choice.choose_attention(network, 18) == "math"
    assert kernels(network) == {"math"}


def timed_inputs(network: Fast3R, tokens: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, ...]:
    """What is given to `kernel_seconds`."""
    given: list[tuple[Tensor, ...]] = []

    def record(*inputs: Tensor) -> dict[str, float]:
        given.append(inputs)
        return {"auto": 1.0}

    monkeypatch.setattr(choice, "kernel_seconds", record)
    choice.choose_attention(network, tokens)
    return given[0]


def test_timed_tensors_have_the_fusion_s_layout(network: Fast3R, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[tuple[Tensor, ...]] = []

    def record(query: Tensor, key: Tensor, value: Tensor, scale: float, kernel: str) -> Tensor:
        passed.append((query, key, value))
        return attend(query, key, value, scale, kernel)

    with torch.inference_mode():
        views = [network.encode(image) for image in random_views(*[(32, 48)] * 3)]
        network.fuse(views, function=record)
    timed = timed_inputs(network, 18, monkeypatch)
    for one, other in zip(timed, passed[0], strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


def test_long_scenes_are_timed_with_fewer_tokens(network: Fast3R, monkeypatch: pytest.MonkeyPatch) -> None:
    query, _, _ = timed_inputs(network, 10**9, monkeypatch)
    assert query.shape[2] == choice.MOST_TOKENS


def test_a_rank_times_the_heads_it_has(network: Fast3R, monkeypatch: pytest.MonkeyPatch) -> None:
    network = copy.deepcopy(network)
    for module in network.decoder.modules():
        if isinstance(module, Attention):
            module.heads //= 2
    query, _, _ = timed_inputs(network, 18, monkeypatch)
    assert query.shape[1] == network.config.decoder.num_heads // 2


@pytest.mark.parametrize("failing", [("auto",), ATTENTION_NAMES], ids=["PyTorch's choice", "all"])
def test_kernels_that_fail_are_left_out(
    network: Fast3R, monkeypatch: pytest.MonkeyPatch, failing: tuple[str, ...]
) -> None:
    def run(query: Tensor, key: Tensor, value: Tensor, scale: float, name: str) -> Tensor:
        if name in failing:
            raise RuntimeError(f"no {name} here")
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scale)

    monkeypatch.setattr(choice, "run_kernel", run)
    network = copy.deepcopy(network)
    chosen = choice.choose_attention(network, 18)
    assert kernels(network) == {chosen}
    assert (chosen == "auto") == (failing == ATTENTION_NAMES)


def test_out_of_memory_on_the_device_is_reported(network: Fast3R, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*inputs: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(choice, "run_kernel", run)
    with pytest.raises(torch.OutOfMemoryError):
        choice.choose_attention(copy.deepcopy(network), 18)


def test_cudnn_is_timed_only_where_its_results_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = torch.rand(3, 1, 2, 48, 16).unbind(0)

    def forced(kernel: object) -> contextlib.nullcontext[None]:  # the kernel itself is not on every machine
        tried.append(kernel)
        return contextlib.nullcontext()

    tried: list[object] = []
    monkeypatch.setattr(attention, "sdpa_kernel", forced)
    for version, right in ((91002, False), (91500, False), (91501, True), (92000, True), (None, True)):
        tried.clear()
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda version=version: version)
        assert ("cudnn" in choice.kernel_seconds(query, key, value)) == right
        assert (attention.PYTORCH_KERNELS["cudnn"] in tried) == right


def test_merged_tokens_keep_the_choice_of_pytorch(network: Fast3R, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "kernel_seconds", lambda *inputs: {"auto": math.inf, "flash": 1.0})
    network = accelerate(copy.deepcopy(network), Acceleration(merge=2))
    assert choice.choose_attention(network, 18) == "auto"
    assert kernels(network) == {"auto"}


def test_a_kernel_that_is_fast_and_wrong_is_left_out(
    network: Fast3R, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def run(query: Tensor, key: Tensor, value: Tensor, scale: float, name: str) -> Tensor:
        if name.startswith("flash"):
            return torch.zeros_like(query)
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scale)

    monkeypatch.setattr(choice, "run_kernel", run)
    chosen = choice.choose_attention(copy.deepcopy(network), 18)
    assert not chosen.startswith("flash")
    assert "attention flash differs from plain attention" in caplog.text


def test_a_kernel_that_fails_later_than_at_first_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, int] = {}

    def run(query: Tensor, key: Tensor, value: Tensor, scale: float, name: str) -> Tensor:
        calls[name] = calls.get(name, 0) + 1
        if name == "flash" and calls[name] == 3:
            raise attention.KernelError("no more")
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scale)

    monkeypatch.setattr(choice, "run_kernel", run)
    found = choice.kernel_seconds(*torch.rand(3, 1, 2, 48, 16).unbind(0))
    assert "flash" not in found
    assert "auto" in found

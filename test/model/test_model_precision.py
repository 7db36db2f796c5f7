"""The network's precision: one rule, float16 with float32 sums, and passes that overflow."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import random_views

from fast3r_ros.errors import UserError
from fast3r_ros.evaluation import golden
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import Frame
from fast3r_ros.mapping.network import Fast3RNetwork, no_lap
from fast3r_ros.mapping.one_pass import OnePass
from fast3r_ros.model import Fast3R
from fast3r_ros.model.layers import Block
from fast3r_ros.model.precision import exact_float32, name_of, resolve_device, resolve_dtype, stream_names
from fast3r_ros.model.speed.acceleration import Acceleration, accelerate, pointmap_error

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize(
    ("asked", "device", "has_bfloat16", "expected"),
    [
        ("auto", "cpu", True, "float32"),
        (None, "cpu", True, "float32"),
        ("auto", "cuda", True, "float16"),
        (None, "cuda:1", False, "float16"),
        ("bfloat16", "cuda", True, "bfloat16"),
        ("bfloat16", "cuda", False, "float16"),
        ("bfloat16", "cpu", False, "bfloat16"),
        ("float16", "cpu", False, "float16"),
    ],
)
def test_the_rule(
    asked: str | None, device: str, has_bfloat16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    assert name_of(resolve_dtype(asked, device)) == expected


def test_float32_on_a_gpu_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = True
        assert resolve_dtype("float32", "cuda") == torch.float32
        assert not torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = True
        with exact_float32():
            assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_golden_cases_are_checked_in_float32_and_leave_the_flags_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "metric"
    folder.mkdir()
    (folder / "broken.json").write_text("{}")
    before, check, within = torch.backends.cudnn.allow_tf32, golden.check_metric, list[bool]()

    def checked(case: dict[str, object]) -> tuple[float, float]:
        within.append(torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
        return check(case)

    monkeypatch.setattr(golden, "check_metric", checked)
    torch.backends.cudnn.allow_tf32 = True
    try:
        for result in golden.run(tmp_path):
            assert not result.ok
            assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.allow_tf32
        assert within == [False]
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_other_names_are_rejected() -> None:
    with pytest.raises(UserError, match="dtype is 'fp16', expected one of auto"):
        resolve_dtype("fp16", "cpu")
    with pytest.raises(UserError, match="device 'gpu' cannot be used"):
        resolve_device("gpu")


@pytest.fixture
def low(network: Fast3R, tmp_path: Path) -> Fast3R:
    """The small network loaded in float16."""
    network.save_pretrained(tmp_path)
    return Fast3R.from_pretrained(tmp_path, dtype=torch.float16)


def test_float16_weights_keep_norms_and_sums_in_float32(low: Fast3R) -> None:
    wide = stream_names(low)
    last = {f"{head}.dpt.head.4.weight" for head in ("downstream_head", "downstream_head_local")}
    assert {name for name in wide if "norm" not in name and name.endswith("weight")} == last
    assert {name for name, weight in low.named_parameters() if weight.dtype == torch.float32} == wide
    added: list[torch.dtype] = []
    inner: list[torch.dtype] = []
    for block in (*low.encoder.enc_blocks, *low.decoder.dec_blocks):
        block.register_forward_hook(lambda module, inputs, result: added.append(result.dtype))
        block.attn.qkv.register_forward_hook(lambda module, inputs, result: inner.append(result.dtype))
    with torch.inference_mode():
        views = [low.encode(image) for image in random_views((32, 48), (32, 48))]
        hooks = low.fuse(views).hooks
    assert (set(added), set(inner)) == ({torch.float32}, {torch.float16})
    assert {view.tokens.dtype for view in views} | {hook.dtype for hook in hooks} == {torch.float16}


@torch.inference_mode()
def test_auto_on_a_gpu_is_nearly_float32() -> None:
    """The arithmetic of a GPU's `auto`, emulated; bfloat16 is 1 % off.  A CPU needs small views for it."""
    case = json.loads((GOLDEN / "forward" / "landscape" / "case.json").read_text())
    images = golden.recipes.views(case["name"], case["batch"], 3 * [[16, 32]])
    indices = torch.tensor(case["image_indices"])
    exact = golden.golden_network(case)(images, indices)
    found = golden.golden_network(case, dtype=torch.float16)(images, indices)
    assert pointmap_error(exact, found).points_median < 0.003


@pytest.mark.parametrize("linears", ["exact", "int8"])
def test_a_result_that_is_not_finite_is_computed_again_once(
    network: Fast3R, low: Fast3R, linears: str, caplog: pytest.LogCaptureFixture
) -> None:
    exact, images = copy.deepcopy(network), random_views((32, 48), (32, 48))
    for network in (exact, low):  # a hidden value of some 1e5, and a weight that takes it back
        mlp = network.decoder.dec_blocks[0].mlp
        with torch.no_grad():
            mlp.fc1.bias.data[0] = 6e4
            mlp.fc1.weight.data[0] *= 1 / mlp.fc1.weight.data[0].abs().max()
            mlp.fc1.weight.data[0] *= 3e4
            mlp.fc2.weight.data[:, 0] = 1e-6
    low = accelerate(low, Acceleration(linears=linears))
    with torch.inference_mode():
        found = low(images)
        assert pointmap_error(exact(images), found).points_median < 0.1
        assert low.repeated_passes == 1
        low(images)
    assert low.repeated_passes == 2
    assert caplog.text.count("not finite in float16; such passes are repeated in bfloat16") == 1


def overflowing(block: Block) -> None:
    """A hidden value that float16 does not hold, and a weight that takes it back."""
    with torch.no_grad():
        block.mlp.fc1.weight.data *= 1e4
        block.mlp.fc1.bias.data[:] = 6e4
        block.mlp.fc2.weight.data *= 1e-4


def pictures(count: int) -> list[Frame]:
    rng = np.random.default_rng(0)
    shape = (32, 48, 3)
    return [Frame(number, "camera", rng.integers(0, 255, shape).astype(np.uint8)) for number in range(count)]


def one_warning(caplog: pytest.LogCaptureFixture) -> bool:
    return len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


def test_pictures_whose_tokens_are_not_finite_are_encoded_again(
    low: Fast3R, caplog: pytest.LogCaptureFixture
) -> None:
    overflowing(low.encoder.enc_blocks[0])
    network = Fast3RNetwork(low, 48)
    views = [network.encode(frame) for frame in pictures(2)]
    assert network.repeated_passes == 2
    for view in views:
        assert view.tokens.tokens.dtype == torch.float16
        assert view.tokens.tokens.isfinite().all()
        np.testing.assert_allclose(np.linalg.norm(view.descriptor), 1, rtol=1e-3)
    assert all(points.isfinite().all() for points in network.reconstruct(views).points_global)
    assert network.repeated_passes == 2
    assert one_warning(caplog)


def test_a_window_that_is_not_finite_is_computed_again_from_its_pictures(
    low: Fast3R, caplog: pytest.LogCaptureFixture
) -> None:
    overflowing(low.decoder.dec_blocks[0])
    network = Fast3RNetwork(low, 48)
    views = [network.encode(frame) for frame in pictures(2)]
    assert network.overflows(network._pass(views, no_lap))
    result = network.reconstruct(views)
    assert all(points.isfinite().all() for points in result.points_global)
    assert network.repeated_passes == 1
    assert one_warning(caplog)


def test_a_streamed_window_that_is_not_finite_leaves_no_cache(low: Fast3R) -> None:
    block = low.decoder.dec_blocks[0]
    sound = copy.deepcopy(block.state_dict())
    overflowing(block)
    network = Fast3RNetwork(accelerate(low, Acceleration(stream=4)), 48)
    views = [network.encode(frame) for frame in pictures(4)]
    network.reconstruct(views[:3])
    block.load_state_dict(sound)
    network.reconstruct(views)
    assert network.repeated_passes == 1


def test_one_pass_over_all_views_is_computed_again_once(
    low: Fast3R, caplog: pytest.LogCaptureFixture
) -> None:
    overflowing(low.decoder.dec_blocks[0])
    one_pass = OnePass(Fast3RNetwork(low, 48), MapperConfig(), chunk=2)
    for frame in pictures(3):
        assert not one_pass.add_frame(frame)
    list(one_pass.process())
    assert one_pass.status().repeated_passes == 1
    assert "not finite" not in one_pass.status().last_error
    assert one_warning(caplog)


def test_float32_has_nothing_safer(network: Fast3R) -> None:
    assert network.safer() is None
    assert network.repeated_passes == 0

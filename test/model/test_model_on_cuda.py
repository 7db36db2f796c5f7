"""Code paths for "cuda", run without a GPU.

No numbers are computed (those are the other tests'); seen are the branches, every result's device, dtype and
shape, that host and device are not mixed, and that what is recorded as CUDA graphs does not wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from fake_cuda import CUDA, Launches, device_guard, fake_cuda
from small_model import small_config
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException

from fast3r_ros.mapping.data import Frame
from fast3r_ros.mapping.network import Fast3RNetwork
from fast3r_ros.model import Fast3R, Pointmap, ViewTokens
from fast3r_ros.model.attention import PACKAGES, _warn_once
from fast3r_ros.model.memory import predict_memory
from fast3r_ros.model.precision import in_dtype, resolve_dtype
from fast3r_ros.model.preprocess import _weights
from fast3r_ros.model.speed.acceleration import Acceleration, accelerate
from fast3r_ros.model.speed.kv_cache import KvCache

__all__ = ["device_guard", "fake_cuda"]  # fixtures

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32
GRID, TOKENS = (2, 3), 6
OPERATORS = {
    "auto": "_scaled_dot_product_",
    "flash": "_scaled_dot_product_flash_attention",
    "efficient": "_scaled_dot_product_efficient_attention",
    "cudnn": "_scaled_dot_product_cudnn_attention",
    "math": "logsumexp",
}


@pytest.fixture(autouse=True)
def without_fakes() -> Iterator[None]:
    """Afterwards nothing made of fakes stays cached for a device."""
    yield
    _weights.cache_clear()


def network(dtype: torch.dtype = FP16, acceleration: str = "exact") -> Fast3R:
    """A small one on the GPU, as `Fast3R.from_pretrained` leaves it; widths that 8-bit products take."""
    with torch.device("cuda"):
        model = Fast3R(small_config(encoder_embed_dim=64, decoder_enc_embed_dim=64)).eval()
    in_dtype(model, dtype).lay_out_heads()
    return accelerate(model, Acceleration.parse(acceleration))


def encoded(model: Fast3R, views: int = 2, grid: tuple[int, int] = GRID) -> list[ViewTokens]:
    pixels = torch.zeros(1, 16 * grid[0], 16 * grid[1], 3, dtype=torch.uint8, device="cuda")
    return [model.encode_pixels(pixels) for _ in range(views)]


def assert_on_gpu(tensors: Sequence[Tensor], dtype: torch.dtype, *shape: int) -> None:
    assert tensors
    for tensor in tensors:
        assert (tensor.device, tensor.dtype, tuple(tensor.shape)) == (CUDA, dtype, shape)


def assert_hooks(hooks: Sequence[Tensor], dtype: torch.dtype, tokens: int) -> None:
    assert_on_gpu(hooks[:1], dtype, 1, tokens, 64)
    assert_on_gpu(hooks[1:], dtype, 1, tokens, 32)


def assert_maps(maps: Sequence[Pointmap], grid: tuple[int, int] = GRID) -> None:
    height, width = 16 * grid[0], 16 * grid[1]
    assert_on_gpu([view.points for view in maps], FP32, 1, height, width, 3)
    assert_on_gpu([view.confidence for view in maps], FP32, 1, height, width)


def test_the_stand_in_detects_errors(fake_cuda: Launches) -> None:
    there, here = torch.zeros(3, device="cuda"), torch.zeros(3)
    with pytest.raises(RuntimeError, match="device"):
        there + here
    with pytest.raises(DataDependentOutputException):
        bool((there > 0).all())
    with pytest.raises(AssertionError):
        assert_on_gpu([there], FP16, 3)
    fake_cuda.host.clear()
    there.cpu()
    assert "_to_copy" in fake_cuda.host


@pytest.mark.parametrize("dtype", [FP16, BF16, FP32])
def test_a_pass_stays_on_the_gpu_in_its_dtype(dtype: torch.dtype, fake_cuda: Launches) -> None:
    model = network(dtype)
    assert resolve_dtype("auto", CUDA) == FP16
    convolutions = [weight for weight in model.downstream_head.parameters() if weight.dim() == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in convolutions)
    norms = {weight.dtype for name, weight in model.named_parameters() if ".norm" in name}
    assert norms == {FP32 if dtype == FP16 else dtype}
    views = encoded(model)
    assert_on_gpu([view.tokens for view in views], dtype, 1, TOKENS, 64)
    features = model.fuse(views)
    assert_hooks(features.hooks, dtype, 2 * TOKENS)
    for head in (model.global_head, model.local_head):
        assert_maps(head(features))
        assert_maps(head(features, [1]))


def test_views_of_two_sizes_run_together(fake_cuda: Launches) -> None:
    model = network()
    features = model.fuse([*encoded(model, 1), *encoded(model, 1, (3, 2))])
    assert_hooks(features.hooks, FP16, 2 * TOKENS)
    landscape, portrait = model.global_head(features)
    assert_maps([landscape])
    assert_maps([portrait], (3, 2))


@pytest.mark.parametrize("kernel", [*OPERATORS, *PACKAGES])
def test_attention_stays_on_its_device_with_every_kernel(
    kernel: str, fake_cuda: Launches, caplog: pytest.LogCaptureFixture
) -> None:
    """PyTorch's CUDA part chooses the kernel, and may be missing here."""
    _warn_once.cache_clear()
    model = network()
    model.set_attention(kernel)
    assert_hooks(model.fuse(encoded(model)).hooks, FP16, 2 * TOKENS)
    assert ("is not installed" in caplog.text) == (kernel in PACKAGES)


@pytest.mark.parametrize(
    "kernel", [each if each == "auto" else pytest.param(each, marks=pytest.mark.slow) for each in OPERATORS]
)
def test_merged_attention_reaches_every_kernel_with_its_sums(kernel: str, fake_cuda: Launches) -> None:
    model = network(FP16, "merge=2")
    model.set_attention(kernel)
    features = model.fuse(encoded(model, 18))  # three groups: before, near and after
    assert_hooks(features.hooks, FP16, 18 * TOKENS)
    used = sum(count for name, count in fake_cuda.names.items() if name.startswith(OPERATORS[kernel]))
    assert used >= len(model.decoder.dec_blocks) * (2 + 3 + 2)
    assert "constant_pad_nd" not in fake_cuda.names  # heads keep their width


@pytest.mark.parametrize(("linears", "product"), [("int8", "_int_mm"), ("fp8", "_scaled_mm")])
@pytest.mark.parametrize("dtype", [FP16, BF16])
def test_linear_layers_of_eight_bits(
    linears: str, product: str, dtype: torch.dtype, fake_cuda: Launches
) -> None:
    model = network(dtype, f"linears={linears}")
    features = model.fuse(encoded(model))
    assert_hooks(features.hooks, dtype, 2 * TOKENS)
    assert_maps(model.global_head(features))
    blocks = len(model.decoder.dec_blocks) + 2 * len(model.encoder.enc_blocks)
    assert fake_cuda.names[product] == 4 * blocks


def test_a_window_continues_from_the_cache(fake_cuda: Launches) -> None:
    model, first = network(), KvCache()
    model.fuse(encoded(model, 3), function=first)
    memory = first.memory([TOKENS] * 3)
    assert_on_gpu([*memory.keys, *memory.values], FP16, 1, 4, 3 * TOKENS, 8)
    function = KvCache(memory, [0, 2])
    features = model.fuse(encoded(model, 1), torch.tensor([[500]]), function=function)
    assert_hooks(features.hooks, FP16, TOKENS)
    kept = function.memory([TOKENS])
    assert_on_gpu([*kept.keys, *kept.values], FP16, 1, 4, 3 * TOKENS, 8)


def test_pictures_are_prepared_there(fake_cuda: Launches) -> None:
    behind = Fast3RNetwork(network(), 48)
    prepared = behind.prepare(Frame(0, "a", np.zeros((60, 90, 3), np.uint8), np.eye(3)))
    assert_on_gpu([prepared.pixels], torch.uint8, 32, 48, 3)
    assert prepared.intrinsics is not None


@pytest.mark.parametrize("linears", ["exact", "int8", "fp8"])
def test_recorded_functions_do_not_synchronise(linears: str, fake_cuda: Launches) -> None:
    behind = Fast3RNetwork(network(FP16, f"linears={linears}" if linears != "exact" else linears))
    assert behind._captured._record is not None
    pixels = torch.zeros(3, 32, 48, 3, dtype=torch.uint8, device="cuda")
    rows = behind._rows(3)
    fake_cuda.host.clear()
    tokens, descriptors = behind._tokens_of(pixels)
    assert_on_gpu([tokens], FP16, 3, TOKENS, 64)
    assert_on_gpu([descriptors], FP32, 3, 64)
    together = tokens.flatten(0, 1)[None]
    hooks = behind._hooks_of(together, rows)
    assert_hooks(hooks, FP16, 3 * TOKENS)
    remembered = behind._hooks_and_memory_of(together, rows)
    blocks = len(behind.model.decoder.dec_blocks)
    assert_on_gpu(remembered[-2 * blocks :], FP16, 1, 4, 3 * TOKENS, 8)
    points, confidence, *local = behind._heads_of(GRID, 3)(*hooks)
    assert_on_gpu([points, local[0]], FP32, 3, 32, 48, 3)
    assert_on_gpu([confidence, local[1]], FP32, 3, 32, 48)
    assert fake_cuda.host == []


def test_the_plan_of_memory_is_made_without_a_gpu() -> None:
    assert predict_memory(small_config(), 4, (48, 32), FP16).peak > 0

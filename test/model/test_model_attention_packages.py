"""Attention of other packages: their rejection, inputs and results.

The packages are stand-ins that compute plain attention: the kernels themselves need the card, and were not
run by these tests.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fast3r_ros.model import attention
from fast3r_ros.model.attention import PACKAGES, KernelError, agrees, attend, kernel_problem, run_kernel


def plain(query: Tensor, key: Tensor, value: Tensor, softmax_scale: float) -> Tensor:
    """Attention of (B, N, heads, D) as the packages define it, (B, N, heads, D)."""
    logits = torch.einsum("bihd,bjhd->bhij", query, key) * softmax_scale
    return torch.einsum("bhij,bjhd->bihd", logits.softmax(dim=-1), value)


def with_sums(query: Tensor, key: Tensor, value: Tensor, softmax_scale: float) -> tuple[Tensor, Tensor]:
    """Like the first FlashAttention 3."""
    return plain(query, key, value, softmax_scale), query.new_zeros(query.shape[:3]).transpose(1, 2)


def install(monkeypatch: pytest.MonkeyPatch, name: str, function: Callable[..., Any] = plain) -> None:
    for part in range(PACKAGES[name].count("."), -1, -1):  # of a submodule the packages around it, too
        path = PACKAGES[name].rsplit(".", part)[0]
        monkeypatch.setitem(sys.modules, path, ModuleType(path))
    sys.modules[PACKAGES[name]].flash_attn_func = function  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resets the verdicts on kernels and the warnings."""
    monkeypatch.setattr(attention, "_verdicts", {})
    attention._warn_once.cache_clear()


def packed(tokens: int = 37) -> tuple[Tensor, ...]:
    """Queries, keys and values (2, 4, tokens, 16), in the memory layout of `Attention.mix`."""
    torch.manual_seed(0)
    return torch.randn(2, tokens, 3, 4, 16).permute(2, 0, 3, 1, 4).unbind()


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("function", [plain, with_sums])
def test_a_package_gets_tokens_before_heads_and_no_copy(
    name: str, function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    query, key, value = packed()
    expected = attend(query, key, value, 0.3, "auto")
    given: list[Tensor] = []

    def recorded(*inputs: Tensor, softmax_scale: float) -> Any:
        given.extend(inputs)
        return function(*inputs, softmax_scale)

    install(monkeypatch, name, recorded)
    monkeypatch.setattr(attention, "kernel_problem", lambda query, name: "")  # of tensors on a CPU
    result = attend(query, key, value, 0.3, name)
    assert [tensor.data_ptr() for tensor in given] == [tensor.data_ptr() for tensor in (query, key, value)]
    assert all(tensor.shape == (2, 37, 4, 16) and tensor.stride(3) == 1 for tensor in given)
    assert result.shape == query.shape
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "device", "dtype", "capability", "problem"),
    [
        ("flash_attn", CPU, torch.bfloat16, (9, 0), "it needs a CUDA device, the tokens are on cpu"),
        ("flash_attn", CUDA, torch.float32, (9, 0), "it needs float16 or bfloat16, the tokens are"),
        ("flash_attn", CUDA, torch.float16, (8, 0), ""),
        ("flash_attn_3", CUDA, torch.float32, (9, 0), "it needs float16 or bfloat16, the tokens are"),
        ("flash_attn_3", CUDA, torch.bfloat16, (8, 9), "it needs compute capability 9.x, the GPU has 8.9"),
        ("flash_attn_3", CUDA, torch.bfloat16, (10, 0), "it needs compute capability 9.x, the GPU has 10.0"),
        ("flash_attn_3", CUDA, torch.bfloat16, (9, 0), ""),
        ("flash_attn_4", CUDA, torch.float16, (8, 0), "it needs compute capability 9.x or 10.x, the GPU has"),
        ("flash_attn_4", CUDA, torch.float16, (12, 0), "it needs compute capability 9.x or 10.x, the GPU"),
        ("flash_attn_4", CUDA, torch.float16, (9, 0), ""),
        ("flash_attn_4", CUDA, torch.bfloat16, (10, 3), ""),
    ],
)
def test_rejections(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    capability: tuple[int, int],
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    query: Any = SimpleNamespace(device=device, dtype=dtype)
    found = kernel_problem(query, name)
    assert found.startswith(problem)
    assert bool(found) == bool(problem)


def on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow tensors of a CPU for packages."""
    monkeypatch.setattr(attention, "kernel_problem", lambda query, name: "")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def fails_with(error: Exception) -> Callable[..., Any]:
    def function(*inputs: Tensor, softmax_scale: float) -> Tensor:
        raise error

    return function


def shifted(*inputs: Tensor, softmax_scale: float) -> Tensor:
    """Wrong only in the last rows, like an address overflow."""
    result = plain(*inputs, softmax_scale)
    result[:, -5:] = result[:, :5].clone()
    return result


BROKEN: dict[str, Callable[..., Any]] = {
    "type": fails_with(TypeError("unexpected keyword 'softmax_scale'")),
    "attribute": fails_with(AttributeError("no attribute")),
    "import": fails_with(ImportError("undefined symbol")),
    "key": fails_with(KeyError("sm_87")),
    "assertion": fails_with(AssertionError()),
    "runtime": fails_with(RuntimeError("no kernel image\nis available")),
    "own": fails_with(type("CompilationError", (Exception,), {})("at 3:0")),
    "zeros": lambda query, key, value, softmax_scale: torch.zeros_like(query),
    "nan": lambda query, key, value, softmax_scale: torch.full_like(query, torch.nan),
    "other scale": lambda query, key, value, softmax_scale: plain(query, key, value, 1.5 * softmax_scale),
    "other shape": lambda query, key, value, softmax_scale: plain(query, key, value, softmax_scale)[:, :-1],
    "other dtype": lambda query, key, value, softmax_scale: plain(query, key, value, softmax_scale).double(),
    "nothing": lambda query, key, value, softmax_scale: None,
    "last rows": shifted,
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_failing_or_wrong_kernel_is_replaced_with_one_warning(
    broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, "flash_attn_3", BROKEN[broken])
    on_any_device(monkeypatch)
    inputs = packed()
    for _ in range(3):
        assert torch.equal(attend(*inputs, 0.3, "flash_attn_3"), attend(*inputs, 0.3, "auto"))
    (warning,) = warnings_of(caplog)
    assert warning.startswith("attention flash_attn_3 ")
    assert "\n" not in warning


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_that_is_missing_or_half_there_is_named_once(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    on_any_device(monkeypatch)
    inputs = packed()
    for half in (False, True):
        if half:  # as flash-attn-4 alone, which makes `flash_attn` a namespace
            install(monkeypatch, name)
            del sys.modules[PACKAGES[name]].flash_attn_func  # type: ignore[attr-defined]
        else:
            monkeypatch.setitem(sys.modules, PACKAGES[name].partition(".")[0], None)
        caplog.clear()
        attention._verdicts.clear()
        attention._warn_once.cache_clear()
        for _ in range(2):
            assert torch.equal(attend(*inputs, 0.3, name), attend(*inputs, 0.3, "auto"))
        (warning,) = warnings_of(caplog)
        assert f"attention {name} cannot run" in warning
        assert f"{PACKAGES[name]} is not installed" in warning


def test_a_namespace_package_in_a_folder_is_half_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
    (tmp_path / "flash_attn" / "cute" / "__init__.py").write_text("raise SyntaxError('half a file')")
    for module in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, module, ModuleType(module))  # so that it is taken out at the end
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(str(tmp_path))
    on_any_device(monkeypatch)
    with pytest.raises(KernelError, match="flash_attn is not installed: it has no flash_attn_func"):
        run_kernel(*packed(), 0.3, "flash_attn")
    with pytest.raises(KernelError, match="half a file"):
        run_kernel(*packed(), 0.3, "flash_attn_4")


def test_a_result_is_compared_once_for_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []

    def recorded(mixed: Tensor, *inputs: Any) -> bool:
        compared.append(mixed.shape[2])
        return agrees(mixed, *inputs)

    install(monkeypatch, "flash_attn_3")
    on_any_device(monkeypatch)
    monkeypatch.setattr(attention, "agrees", recorded)
    for tokens in (37, 37, 50, 37, 50):
        attend(*packed(tokens), 0.3, "flash_attn_3")
    assert compared == [37, 50]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sharpness", [0.0, 0.1, 1.0])
def test_rounding_is_no_disagreement_and_zeros_are(dtype: torch.dtype, sharpness: float) -> None:
    query, key, value = (tensor.to(dtype) for tensor in packed(5000)[0:3])
    mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=sharpness)
    assert agrees(mixed, query, key, value, sharpness)
    assert not agrees(torch.zeros_like(mixed), query, key, value, sharpness)
    assert not agrees(mixed.roll(1, dims=2), query, key, value, sharpness) or sharpness == 0.0


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("cuMemAlloc: out of memory")]
)
def test_out_of_memory_on_the_device_is_reported(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "flash_attn_3", fails_with(error))
    on_any_device(monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        attend(*packed(), 0.3, "flash_attn_3")

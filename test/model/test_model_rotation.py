"""The rotation as one kernel, and without a compiler step by step."""

from __future__ import annotations

import logging
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch

from fast3r_ros.model import layers
from fast3r_ros.model.layers import fused, rope_tables, stepwise

can_compile = shutil.which("g++") and (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file()


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_failures", [])
    layers._kernel.cache_clear()


def queries_and_keys(batch: int, grid: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """(B, N, 2, heads, D), which lie as `Attention.mix` passes them on: between values."""
    torch.manual_seed(0)
    return torch.randn(batch, grid[0] * grid[1], 3, 5, 16).to(dtype)[:, :, :2]


@pytest.mark.slow
@pytest.mark.skipif(not can_compile, reason="torch.compile needs g++ and Python's headers")
@torch.inference_mode()
def test_it_is_one_kernel_for_all_sizes() -> None:
    """The compiler that makes the GPU's kernel makes the CPU's of the same graph."""
    from torch._dynamo.utils import counters
    from torch._inductor import metrics

    counters.clear()
    metrics.reset()
    for batch, grid in ((3, (4, 6)), (4, (3, 5)), (7, (4, 4))):
        x = queries_and_keys(batch, grid, torch.float16)
        tables = rope_tables(grid, 16, 100.0, x)
        found, expected = fused(x, *tables), stepwise(x, *tables)
        assert found.dtype == torch.float16
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert counters["stats"]["unique_graphs"] == 1
    assert metrics.generated_kernel_count == 1
    assert not layers._failures


@torch.inference_mode()
def test_the_rotation_runs_step_by_step_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: torch.Tensor) -> torch.Tensor:
        raise TypeError("Failed to find C compiler\nand more")

    monkeypatch.setattr(layers, "_kernel", lambda: refuse)
    x = queries_and_keys(2, (3, 4), torch.float32)
    tables = rope_tables((3, 4), 16, 100.0, x)
    for _ in range(2):
        torch.testing.assert_close(fused(x, *tables), stepwise(x, *tables))
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "Failed to find C compiler" in warning.message


def test_missing_memory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(layers, "_kernel", lambda: full)
    x = queries_and_keys(1, (2, 2), torch.float32)
    with pytest.raises(torch.OutOfMemoryError):
        fused(x, *rope_tables((2, 2), 16, 100.0, x))
    assert not layers._failures

"""The accuracy of `auto` on a GPU, by emulation on a CPU."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fast3r_ros.benchmark import precision_error
from fast3r_ros.cli import main

LANDSCAPE = Path(__file__).parents[1] / "golden" / "forward" / "landscape" / "case.json"


@pytest.mark.parametrize(
    ("arguments", "auto", "bfloat16"),
    [
        pytest.param(["--golden", "CASE"], 0.003, 0.01, marks=pytest.mark.slow),
        (["--views", "3", "--size", "64x48"], 0.0006, 0.002),
    ],
    ids=["random network", "demo model"],
)
def test_auto_on_a_gpu_is_nearly_float32(
    arguments: list[str], auto: float, bfloat16: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On small views."""
    case = {**json.loads(LANDSCAPE.read_text()), "view_shapes_hw": 3 * [[16, 16]]}
    (tmp_path / "case.json").write_text(json.dumps(case))
    arguments = [str(tmp_path) if each == "CASE" else each for each in arguments]
    assert main(["benchmark", "precision", *arguments]) == 0
    found = {row["variant"]: row["points_median"] for row in json.loads(capsys.readouterr().out)["results"]}
    assert list(found) == list(precision_error.VARIANTS)
    assert found[precision_error.AUTO] < auto
    assert found["bfloat16"] > bfloat16


def test_emulated_products_are_the_rounded_exact_ones() -> None:
    """And not those of float32 factors; the CPU's own kernels give the same up to one rounding."""
    torch.manual_seed(0)
    image, weight = torch.randn(1, 32, 9, 12), 0.1 * torch.randn(32, 32, 3, 3)
    for product, factors in (
        (F.conv2d, (image, weight)),
        (partial(F.conv_transpose2d, stride=3), (image, weight)),
        (F.linear, (image.movedim(1, -1), weight[..., 0, 0])),
    ):
        rounded = [factor.half() for factor in factors]
        with precision_error.GpuProducts():
            found, wide = product(*rounded), product(*factors)
        exact = product(*(factor.double() for factor in rounded))
        assert (found.dtype, wide.dtype) == (torch.float16, torch.float32)
        torch.testing.assert_close(found.double(), exact, rtol=2**-11, atol=1e-4)
        torch.testing.assert_close(found, product(*rounded), rtol=2**-10, atol=1e-4)
        assert (wide.double() - exact).abs().mean() > (found.double() - exact).abs().mean()


def test_a_folder_that_is_no_case_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "precision", "--golden", str(tmp_path)]) == 2
    assert "has no case.json" in capsys.readouterr().err

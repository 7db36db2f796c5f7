"""8-bit layers make a minimum number of passes over their inputs and results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fast3r_ros.errors import UserError
from fast3r_ros.model.speed.quantised import Fp8Linear, Int8Linear, check_shapes

TOKENS, INPUTS, OUTPUTS = 40, 64, 48


class Passes(TorchDispatchMode):
    """Names of the operations that write a whole tensor of tokens, by its width."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[int, list[str]] = {INPUTS: [], OUTPUTS: []}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        width = result.shape[-1]
        if not func.is_view and name != "detach" and width in self.names and len(result) == TOKENS:
            self.names[width].append(name)
        return result


def linear(dtype: torch.dtype, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(INPUTS, OUTPUTS, bias=bias).to(dtype)


@pytest.mark.parametrize(
    ("layer", "of_inputs", "of_results"),
    [
        (Fp8Linear, ["div", "_to_copy"], ["_scaled_mm"]),
        (
            Int8Linear,
            ["div", "round_", "_to_copy"],
            ["_int_mm", "_to_copy", "mul_", "addcmul", "_to_copy"],
        ),
    ],
)
def test_passes_in_bfloat16(
    layer: type[Int8Linear] | type[Fp8Linear], of_inputs: list[str], of_results: list[str]
) -> None:
    rounded = layer(linear(torch.bfloat16))
    x = torch.randn(2, TOKENS // 2, INPUTS).bfloat16()
    with torch.no_grad(), Passes() as passes:
        result = rounded(x)
    assert (result.shape, result.dtype) == ((2, TOKENS // 2, OUTPUTS), torch.bfloat16)
    assert passes.names == {INPUTS: of_inputs, OUTPUTS: of_results}


@pytest.mark.parametrize("rows", [1, 16, 17, 40])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("layer", "bound"), [(Int8Linear, 0.02), (Fp8Linear, 0.06)])
def test_every_dtype_and_few_rows(
    layer: type[Int8Linear] | type[Fp8Linear], bound: float, dtype: torch.dtype, bias: bool, rows: int
) -> None:
    plain = linear(dtype, bias)
    x = torch.randn(rows, INPUTS).to(dtype)
    found = layer(plain)(x)  # gradients may be wanted of other things; there are none here
    expected = plain.float()(x.float()).detach()
    assert (found.dtype, found.requires_grad) == (dtype, False)
    assert float((found.float() - expected).norm() / expected.norm()) < bound


@pytest.mark.parametrize(
    ("name", "inputs", "outputs", "refused"),
    [
        ("int8", 24, 40, False),
        ("int8", 20, 40, True),
        ("int8", 24, 36, True),
        ("fp8", 32, 48, False),
        ("fp8", 24, 48, True),
    ],
)
def test_shapes_that_a_gpu_rejects_are_named(name: str, inputs: int, outputs: int, refused: bool) -> None:
    layers = [torch.nn.Linear(64, 64), torch.nn.Linear(inputs, outputs)]
    check_shapes(layers, name, torch.device("cpu"))
    if refused:
        with pytest.raises(UserError, match=f"a layer of {inputs} to {outputs}") as error:
            check_shapes(layers, name, torch.device("cuda"))
        assert "\n" not in str(error.value)
    else:
        check_shapes(layers, name, torch.device("cuda"))

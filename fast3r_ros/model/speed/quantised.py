"""Linear layers in 8 bits: weights rounded once, activations in every call (dynamic quantisation).

Scales are one per output of the weights and one per token of the activations (Dettmers et al., LLM.int8(),
2022, without its outlier columns; Micikevicius et al., FP8 Formats for Deep Learning, 2022).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast3r_ros.errors import UserError

LARGEST_INT8 = 127.0
FP8 = torch.float8_e4m3fn
LARGEST_FP8 = torch.finfo(FP8).max
FP8_CAPABILITY = (8, 9)  # Ada; Hopper is (9, 0)
FEWEST_ROWS = 17  # of CUDA's int8 product
CUDA_STEPS = {"int8": 8, "fp8": 16}  # required divisors of inputs and outputs


class Int8Linear(nn.Module):
    """A linear layer whose product is int8 x int8 with int32 sums."""

    weight: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        rounded, scales = _rounded(linear.weight, LARGEST_INT8)
        self.register_buffer("weight", rounded.to(torch.int8))
        self.register_buffer("scales", scales.T)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs), of x's dtype."""
        rows = x.flatten(0, -2)
        rounded, scales = _rounded(rows, LARGEST_INT8)
        whole = rounded.to(torch.int8)
        if len(rows) < FEWEST_ROWS:
            whole = F.pad(whole, (0, 0, 0, FEWEST_ROWS - len(rows)))
        result = torch._int_mm(whole, self.weight.T)[: len(rows)].float().mul_(scales)
        if self.bias is None:
            result *= self.scales
        else:
            torch.addcmul(self.bias.detach(), result, self.scales, out=result)
        return result.to(x.dtype).unflatten(0, x.shape[:-1])


class Fp8Linear(nn.Module):
    """A linear layer whose product is FP8 (e4m3) with float32 sums, rounded to bfloat16."""

    weight: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        rounded, scales = _rounded(linear.weight, LARGEST_FP8)
        self.register_buffer("weight", rounded.to(FP8))
        self.register_buffer("scales", scales.T.contiguous())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs), of x's dtype."""
        rounded, scales = _rounded(x.flatten(0, -2), LARGEST_FP8)
        # the product adds a bias only in its own dtype; any other bias is added after rounding
        inside = self.bias is not None and self.bias.dtype == torch.bfloat16
        result = torch._scaled_mm(
            rounded.to(FP8),
            self.weight.T,
            scales,
            self.scales,
            bias=self.bias.detach() if inside else None,
            out_dtype=torch.bfloat16,
        ).to(x.dtype)
        if self.bias is not None and not inside:
            result += self.bias.detach()
        return result.unflatten(0, x.shape[:-1])


def check_shapes(linears: Iterable[nn.Linear], name: str, device: torch.device) -> None:
    """Raise UserError for layers whose shapes CUDA's 8-bit product cannot take.  name: int8 or fp8."""
    if device.type != "cuda":
        return
    step = CUDA_STEPS[name]
    for linear in linears:
        if linear.in_features % step or linear.out_features % step:
            raise UserError(
                f"{name} linears need widths divisible by {step} on a GPU, this network has a layer of "
                f"{linear.in_features} to {linear.out_features}; use exact"
                + (" or int8" if name == "fp8" else "")
            )


def check_fp8(device: torch.device) -> None:
    """Raise UserError unless the device multiplies FP8 matrices."""
    if device.type != "cuda":
        raise UserError(f"fp8 linears need a CUDA GPU, the model is on {device.type}; int8 runs on it")
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise UserError(
            f"fp8 linears need compute capability {FP8_CAPABILITY[0]}.{FP8_CAPABILITY[1]}, {name} has "
            f"{capability[0]}.{capability[1]}; int8 runs on it"
        )


def _rounded(rows: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """(M, K) rows scaled to reach `largest` each (rounded for int8), and the scales (M, 1), both float32."""
    rows = rows.detach()
    peaks = torch.maximum(rows.amax(dim=1, keepdim=True), -rows.amin(dim=1, keepdim=True))
    scales = peaks.float().clamp_min(torch.finfo(torch.float32).tiny * 1e6) / largest
    scaled = rows / scales  # float32, like the scales
    return (scaled.round_() if largest == LARGEST_INT8 else scaled), scales

"""`fast3r benchmark precision`: the accuracy of each dtype, against float32.

The dtypes of a GPU are emulated on a CPU, see `GpuProducts`.  `auto` is the choice on a GPU.  Errors are of
the global points, relative to their distance from view 0's camera.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from fast3r_ros.benchmark.acceleration_error import walk
from fast3r_ros.benchmark.measure import add_keep_argument, collected, machine
from fast3r_ros.benchmark.models import parse_size
from fast3r_ros.errors import UserError
from fast3r_ros.evaluation import golden, golden_recipes
from fast3r_ros.model import Fast3R, ViewPrediction
from fast3r_ros.model.layers import Attention
from fast3r_ros.model.precision import set_inner_dtype, stream_names
from fast3r_ros.model.speed.acceleration import pointmap_error

Compute = Callable[[list[Tensor]], list[ViewPrediction]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    parser.add_argument("--model", default="demo", help="as for reconstruct (default: %(default)s)")
    parser.add_argument(
        "--golden",
        type=Path,
        metavar="FOLDER",
        help="use the random network and the views of a golden case, such as test/golden/forward/landscape",
    )
    parser.add_argument("--views", type=int, default=8, help="number of views (default: %(default)s)")
    parser.add_argument("--size", default="224x160", metavar="WxH", help="size of a view")
    parser.add_argument("--threads", type=int, help="CPU threads (PyTorch's choice by default)")
    add_keep_argument(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """The error of each variant; returns the JSON document."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device("cpu")
    if arguments.golden is None:
        model = Fast3R.from_pretrained(arguments.model)
        images = walk(arguments.views, parse_size(arguments.size), device)
        indices = None
    else:
        path = arguments.golden / "case.json"
        if not path.is_file():
            raise UserError(
                f"--golden {arguments.golden} has no case.json; give a folder of test/golden/forward"
            )
        case = json.loads(path.read_text(encoding="utf-8"))
        model = golden.golden_network(case)
        images = golden_recipes.views(case["name"], case["batch"], case["view_shapes_hw"])
        indices = torch.tensor(case["image_indices"])
    document = {
        "benchmark": "precision",
        "machine": machine(device),
        "model": arguments.model if arguments.golden is None else f"random, {arguments.golden.name}",
        "views": len(images),
    }
    return collected(document, errors(model, images, indices), arguments.keep)


@torch.inference_mode()
def errors(model: Fast3R, images: list[Tensor], indices: Tensor | None) -> Iterator[dict[str, Any]]:
    """For each variant the median and the 95th percentile of the relative error of the points."""
    exact = model(images, indices)
    for name, change in VARIANTS.items():
        with GpuProducts():
            found = change(copy.deepcopy(model))._pass(images, indices, None)
        error = pointmap_error(exact, found)
        yield {"variant": name, "points_median": error.points_median, "points_95": error.points_95}


class GpuProducts(TorchFunctionMode):
    """Inside, float16 products and convolutions on a CPU are computed as on a GPU: of rounded factors, with
    float32 sums, of which the result is rounded.

    The CPU's own float16 kernels differ by a rounding at most, but convolutions take 20 times as long.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in (F.linear, torch.conv2d, torch.conv_transpose2d) or args[0].dtype != torch.float16:
            return func(*args, **kwargs)
        args, kwargs = tree_map_only(Tensor, Tensor.float, (args, kwargs))
        return func(*args, **kwargs).half()


def in_dtypes(model: Fast3R, trunk: torch.dtype, stream: torch.dtype, heads: torch.dtype) -> Fast3R:
    """Convert a float32 network: its transformers' layers, their residual stream, and its heads."""
    wide = stream_names(model)
    for name, parameter in model.named_parameters():
        inside = heads if name.startswith("downstream_head") else trunk
        if name in wide:
            inside = inside if inside != trunk else stream
        parameter.data = parameter.data.to(inside)
    set_inner_dtype(model, trunk)
    return model


def _attention_in_bfloat16(model: Fast3R) -> Fast3R:
    for module in model.modules():
        if isinstance(module, Attention):
            mix = module.mix
            module.mix = lambda qkv, *rest, mix=mix: mix(qkv.bfloat16(), *rest).to(qkv.dtype)  # type: ignore[method-assign]
    return model


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
AUTO = "auto on a GPU: float16, sums float32"
VARIANTS: dict[str, Callable[[Fast3R], Fast3R]] = {
    "bfloat16": lambda model: in_dtypes(model, BF16, BF16, BF16),
    "bfloat16, heads float16": lambda model: in_dtypes(model, BF16, BF16, FP16),
    "float16": lambda model: in_dtypes(model, FP16, FP16, FP16),
    AUTO: lambda model: in_dtypes(model, FP16, FP32, FP16),
    "the same, attention bfloat16": lambda model: _attention_in_bfloat16(in_dtypes(model, FP16, FP32, FP16)),
}

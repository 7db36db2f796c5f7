"""`fast3r benchmark acceleration`: the time saved by each acceleration, and its error.

The views are a walk through the synthetic room.  The error is meaningful only for a trained model; with
random weights only the times count.  For streaming, the measured step is the one from a window to the next:
the last eighth of the views is processed with the cached keys and values of the others, and compared with a
full pass.
"""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from fast3r_ros.benchmark.measure import add_keep_argument, collected, machine, measure
from fast3r_ros.benchmark.models import (
    add_dtype_argument,
    add_model_arguments,
    chosen_device,
    default_dtype,
    load,
    parse_size,
)
from fast3r_ros.errors import UserError
from fast3r_ros.model import Fast3R, ViewPrediction, normalize
from fast3r_ros.model.precision import resolve_dtype
from fast3r_ros.model.speed.acceleration import Acceleration, accelerate, pointmap_error
from fast3r_ros.model.speed.kv_cache import KvCache
from fast3r_ros.synthetic.sequence import demo_sequence

DURATION = 20.0  # of the walk, in seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    add_model_arguments(parser)
    parser.add_argument("--views", type=int, default=32, help="number of views (default: %(default)s)")
    parser.add_argument("--size", default="512x384", metavar="WxH", help="size of a view")
    add_dtype_argument(parser)
    parser.add_argument(
        "--accelerate",
        nargs="+",
        default=["merge=2", "merge=4", "stream=2", "linears=int8", "merge=2,linears=int8"],
        metavar="WHAT",
        help="as for reconstruct (default: %(default)s)",
    )
    parser.add_argument("--runs", type=int, default=3, help="measured runs of each (default: %(default)s)")
    add_keep_argument(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """One exact pass and one with each acceleration; returns the JSON document."""
    device = chosen_device(arguments)
    accelerations = [Acceleration.parse(text) for text in arguments.accelerate]
    dtype = arguments.dtype or default_dtype(device)
    model = load(arguments.model, device, resolve_dtype(dtype, device), arguments.attention)
    images = walk(arguments.views, parse_size(arguments.size), device)
    with torch.inference_mode():
        exact, exact_time = measure(lambda: model(images), device, arguments.runs)
    document = {
        "benchmark": "acceleration",
        "machine": machine(device),
        "model": arguments.model,
        "dtype": dtype,
        "views": arguments.views,
        "size_wh": list(parse_size(arguments.size)),
        "exact": exact_time.content(),
    }
    results = (against(exact, model, each, images, arguments.runs) for each in accelerations)
    return collected(document, results, arguments.keep)


def walk(views: int, size: tuple[int, int], device: torch.device) -> list[Tensor]:
    """Views (1, 3, H, W) along a walk through the synthetic room.  Raises UserError for an invalid size."""
    if size[0] % 16 or size[1] % 16:
        raise UserError(f"--size {size[0]}x{size[1]}: both sides must be multiples of 16")
    sequence = demo_sequence(DURATION, width=size[0], height=size[1])
    places = [number * len(sequence) // views for number in range(views)]
    return [normalize(sequence[place].image, device)[None] for place in places]


@torch.inference_mode()
def against(
    exact: list[ViewPrediction], model: Fast3R, acceleration: Acceleration, images: list[Tensor], runs: int
) -> dict[str, Any]:
    """Time and error of one acceleration, or why it cannot run here."""
    try:
        faster = accelerate(copy.deepcopy(model), acceleration)
    except UserError as error:
        return {"acceleration": str(acceleration), "refused": str(error)}
    new = len(images)
    if acceleration.stream > 1:
        new = max(1, len(images) // 8)
        step = streamed_step(faster, images, new)
    else:
        step = functools.partial(faster, images)
    found, time = measure(step, images[0].device, runs)
    return {
        "acceleration": str(acceleration),
        "new_views": new,
        "error": asdict(pointmap_error(exact[-new:], found)),
        **time.content(),
    }


def streamed_step(model: Fast3R, images: list[Tensor], new: int) -> Callable[[], list[ViewPrediction]]:
    """A function that processes the last `new` images with the cached keys and values of all others."""
    known = [model.encode(image) for image in images[:-new]]
    first = KvCache()
    model.fuse(known, function=first)
    memory = first.memory([view.tokens.shape[1] for view in known])
    taken = model.default_indices(1, len(known))[0].tolist()
    indices = torch.tensor([model.further_indices(taken, new)])

    def step() -> list[ViewPrediction]:
        fresh = [model.encode(image) for image in images[-new:]]
        features = model.fuse(fresh, indices, function=KvCache(memory, range(len(known))))
        maps = zip(model.global_head(features), model.local_head(features), strict=True)
        return [ViewPrediction(*pair) for pair in maps]

    return step

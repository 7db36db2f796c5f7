"""`fast3r benchmark network`: the network's stages by number of views, size and dtype, and their roofline."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch

from fast3r_ros.benchmark.measure import add_keep_argument, collected, machine, measure
from fast3r_ros.benchmark.models import (
    add_dtype_argument,
    add_model_arguments,
    attention_kernel,
    chosen_device,
    default_dtype,
    load,
    parse_size,
)
from fast3r_ros.benchmark.roofline import (
    DevicePeaks,
    compared,
    fusion_attention,
    measure_device_peaks,
    stages,
)
from fast3r_ros.geometry.camera_pose import pointmap_weights, poses_from_pointmaps
from fast3r_ros.model import Fast3R, Pointmap, ViewTokens
from fast3r_ros.model.attention import attend
from fast3r_ros.model.layers import Attention
from fast3r_ros.model.precision import resolve_dtype


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    add_model_arguments(parser)
    parser.add_argument("--views", type=int, nargs="+", default=[8], help="numbers of views")
    parser.add_argument("--size", nargs="+", default=["512x384"], metavar="WxH", help="sizes of a view")
    add_dtype_argument(parser, several=True)
    parser.add_argument("--runs", type=int, default=5, help="measured runs of each stage")
    add_keep_argument(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure every combination; returns the JSON document."""
    device = chosen_device(arguments)
    sizes = [parse_size(text) for text in arguments.size]
    rates: dict[str, dict[str, float]] = {}  # dtype -> rates, measured on first use

    def results() -> Iterator[dict[str, Any]]:
        for dtype in arguments.dtype or [default_dtype(device)]:
            model = load(arguments.model, device, resolve_dtype(dtype, device), arguments.attention)
            peaks = measure_device_peaks(device, resolve_dtype(dtype, device))
            rates[dtype] = asdict(peaks)
            for size, views in itertools.product(sizes, arguments.views):
                kernel = attention_kernel(model, arguments.attention, views, size)
                setting = {"views": views, "size_wh": list(size), "dtype": dtype, "attention": kernel}
                yield {**setting, **measure_stages(model, views, size, arguments.runs, peaks)}

    document = {
        "benchmark": "network",
        "machine": machine(device),
        "model": arguments.model,
        "attention": arguments.attention,
        "ceilings": rates,
    }
    return collected(document, results(), arguments.keep)


@torch.inference_mode()
def measure_stages(
    model: Fast3R, views: int, size: tuple[int, int], runs: int, peaks: DevicePeaks
) -> dict[str, Any]:
    """Seconds, peak memory and roofline of encode, fuse, heads and pose for one scene, and their sum.

    `fusion_attention` is the part of `fuse` that grows with the square of the views, measured separately.
    """
    weight = next(model.parameters())
    device = weight.device
    source = torch.Generator().manual_seed(0)
    images = torch.rand(views, 3, size[1], size[0], generator=source).to(device, weight.dtype) * 2 - 1

    def encode() -> list[ViewTokens]:
        tokens = model.encode(images)
        return [ViewTokens(part, tokens.grid) for part in tokens.tokens.chunk(views)]

    def heads() -> tuple[list[Pointmap], list[Pointmap] | None]:
        local = model.local_head(features) if model.downstream_head_local is not None else None
        return model.global_head(features), local

    measured = {}
    tokens, measured["encode"] = measure(encode, device, runs)
    features, measured["fuse"] = measure(lambda: model.fuse(tokens), device, runs)
    (in_first, in_own), measured["heads"] = measure(heads, device, runs)
    if in_own is not None:
        local, world = (torch.cat([view.points for view in maps]) for maps in (in_own, in_first))
        confidences = (torch.cat([view.confidence for view in maps]) for maps in (in_own, in_first))
        weights = pointmap_weights(*confidences)
        measured["pose"] = measure(lambda: poses_from_pointmaps(local, world, weights), device, runs)[1]
    element = weight.element_size()
    work = stages(model.config, views, size, element)
    count = features.hooks[0].shape[1]
    attention = measure(_attention_of(model, count), device, runs)[1]
    one_block = fusion_attention(model.config, count, element)

    return {
        "stages": {name: compared(each, work.get(name), peaks, device) for name, each in measured.items()},
        "total_median_s": sum(each.median_s for each in measured.values()),
        "fusion_attention": compared(attention, model.config.decoder.depth * [one_block], peaks, device),
    }


def _attention_of(model: Fast3R, tokens: int) -> Callable[[], None]:
    """The attention of all fusion blocks on random tokens, without their linear layers."""
    config, weight = model.config.decoder, next(model.parameters())
    shape = (1, tokens, 3, config.num_heads, config.embed_dim // config.num_heads)
    query, key, value = torch.randn(shape, dtype=weight.dtype, device=weight.device).permute(2, 0, 3, 1, 4)
    kernel = next(module.kernel for module in model.decoder.modules() if isinstance(module, Attention))

    def run() -> None:
        for _ in range(config.depth):
            attend(query, key, value, model.decoder.logit_scale, kernel)

    return run

"""`fast3r benchmark network`: the network's stages by number of views, size and dtype."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from fast3r_ros.benchmark.measure import machine, measure
from fast3r_ros.errors import UserError
from fast3r_ros.geometry.camera_pose import pointmap_weights, poses_from_pointmaps
from fast3r_ros.model import Fast3R, Fast3RConfig, Pointmap, ViewTokens
from fast3r_ros.model.attention import ATTENTION_NAMES
from fast3r_ros.model.config import DecoderConfig, EncoderConfig, HeadConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
RANDOM_MODELS = {"large": (1024, 24, 16), "base": (768, 12, 12)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    parser.add_argument(
        "--model", default="large", help="large or base (random weights), demo, a directory or a hub name"
    )
    parser.add_argument("--views", type=int, nargs="+", default=[8], help="numbers of views")
    parser.add_argument("--size", nargs="+", default=["512x384"], metavar="WxH", help="sizes of a view")
    parser.add_argument(
        "--dtype", nargs="+", default=["float32"], choices=DTYPES, help="dtypes of the weights"
    )
    parser.add_argument("--attention", default="auto", choices=ATTENTION_NAMES, help="attention kernel")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--runs", type=int, default=5, help="measured runs of each stage")
    parser.add_argument("--threads", type=int, help="CPU threads (PyTorch's choice by default)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure every combination; returns the JSON document."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    sizes = [parse_size(text) for text in arguments.size]
    results = []
    for dtype in arguments.dtype:
        model = load(arguments.model, device, DTYPES[dtype], arguments.attention)
        for size in sizes:
            for views in arguments.views:
                stages = measure_stages(model, views, size, arguments.runs)
                results.append({"views": views, "size_wh": list(size), "dtype": dtype, **stages})
    return {
        "benchmark": "network",
        "machine": machine(device),
        "model": arguments.model,
        "attention": arguments.attention,
        "results": results,
    }


def parse_size(text: str) -> tuple[int, int]:
    """`512x384` as (width, height) in pixels.  Raises UserError."""
    width, mark, height = text.partition("x")
    if not (mark and width.isdigit() and height.isdigit()):
        raise UserError(f"size is {text!r}, expected WIDTHxHEIGHT as 512x384")
    return int(width), int(height)


def load(name: str, device: torch.device, dtype: torch.dtype, attention: str) -> Fast3R:
    """A model by name, or one of RANDOM_MODELS with random weights; no download is needed for those."""
    if name not in RANDOM_MODELS:
        return Fast3R.from_pretrained(name, device, dtype, attention)
    width, depth, heads = RANDOM_MODELS[name]
    config = Fast3RConfig(
        EncoderConfig(embed_dim=width, depth=depth, num_heads=heads),
        DecoderConfig(embed_dim=width, enc_embed_dim=width, depth=depth, num_heads=heads),
        HeadConfig(with_local_head=True),
    )
    torch.manual_seed(0)
    with device:
        model = Fast3R(config).to(dtype).eval()
    model.set_attention(attention)
    return model


@torch.inference_mode()
def measure_stages(model: Fast3R, views: int, size: tuple[int, int], runs: int) -> dict[str, Any]:
    """Seconds and peak memory of encode, fuse, heads and pose for one scene, and their sum."""
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

    stages = {}
    tokens, stages["encode"] = measure(encode, device, runs)
    features, stages["fuse"] = measure(lambda: model.fuse(tokens), device, runs)
    (in_first, in_own), stages["heads"] = measure(heads, device, runs)
    if in_own is not None:
        local, world = (torch.cat([view.points for view in maps]) for maps in (in_own, in_first))
        confidences = (torch.cat([view.confidence for view in maps]) for maps in (in_own, in_first))
        weights = pointmap_weights(*confidences)
        stages["pose"] = measure(lambda: poses_from_pointmaps(local, world, weights), device, runs)[1]
    return {
        "stages": {name: stage.content() for name, stage in stages.items()},
        "total_median_s": sum(stage.median_s for stage in stages.values()),
    }

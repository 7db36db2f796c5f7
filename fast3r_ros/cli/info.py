"""`fast3r info`: what a checkpoint, a map, a bag, a video or a folder of images holds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fast3r_ros.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sub-command's arguments."""
    parser.add_argument(
        "what",
        help="demo or a checkpoint folder; a folder of results, a .ply, .pcd, .glb or COLMAP folder; or any "
        "source of frames",
    )
    parser.add_argument("--topic", help="image topic of a bag that has several")
    parser.add_argument(
        "--views", type=int, metavar="N", help="of a checkpoint: the memory of one pass over N views on a GPU"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(arguments: argparse.Namespace) -> int:
    """Print `name: value` lines, or JSON."""
    facts = describe(arguments.what, arguments.topic, arguments.views)
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return 0
    width = max(map(len, facts))
    for name, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else value
        print(f"{name:<{width}}  {text}")
    return 0


def describe(what: str, topic: str | None = None, views: int | None = None) -> dict[str, Any]:
    """The facts about the file, folder or model `what`.

    views: number of views of one pass, to predict its memory.  Raises UserError when `what` cannot be read,
    and for `views` below 1 or without a checkpoint.
    """
    from fast3r_ros.io.results import is_result

    path = Path(what)
    if what == "demo" or (path / "config.json").is_file():
        return _describe_checkpoint(what, views)
    if views is not None:
        raise UserError(f"--views is for a checkpoint, and {what} is none")
    if is_result(path):
        return _describe_results(path)
    return _describe_source(what, topic)


def _describe_checkpoint(name: str, views: int | None) -> dict[str, Any]:
    import torch

    from fast3r_ros.model import Fast3R
    from fast3r_ros.model.checkpoint import locate, read_config

    files = locate(name)
    config = read_config(files)
    with torch.device("meta"):
        model = Fast3R(config)
    encoder, decoder = config.encoder, config.decoder
    facts = {
        "kind": "checkpoint",
        "parameters": sum(tensor.numel() for tensor in model.parameters()),
        "megabytes on disk": round(sum(file.stat().st_size for file in files.weights) / 1e6, 1),
        "image size": config.image_size,
        "encoder": f"{encoder.depth} blocks of width {encoder.embed_dim}",
        "fusion": f"{decoder.depth} blocks of width {decoder.embed_dim}",
        "local head": config.head.with_local_head,
    }
    if views is not None:
        from fast3r_ros.mapping.one_pass import CHUNK
        from fast3r_ros.model.memory import predict_memory

        if views < 1:
            raise UserError(f"--views is {views}; give the number of views of one pass, at least 1")
        patch = config.encoder.patch_size
        size = (config.image_size, config.image_size * 3 // 4 // patch * patch)
        plan = predict_memory(config, views, size, torch.float16, at_once=CHUNK)
        facts[f"GPU memory, {views} views of {size[0]} x {size[1]}"] = f"{plan.peak / 1e9:.1f} GB in float16"
    return facts


def _describe_results(path: Path) -> dict[str, Any]:
    import numpy as np

    from fast3r_ros.io.results import read_results

    results = read_results(path)
    facts: dict[str, Any] = {"kind": "map", "points": len(results.cloud.points), "unit": results.unit}
    if len(results.cloud.points):
        low, high = results.cloud.points.min(0), results.cloud.points.max(0)
        facts["extent x y z"] = [round(float(side), 3) for side in high - low]
        facts["median confidence"] = round(float(np.median(results.cloud.confidence)), 2)
    facts["cameras"] = len(results.cameras)
    if results.parts > 1:
        facts["unconnected parts"] = f"{results.parts}; the figures describe the main one"
    report = path / "report.json"
    if report.is_file():
        content = json.loads(report.read_text(encoding="utf-8"))
        facts["complete"] = content["complete"]
        facts["source"] = content.get("source", "unknown")
    return facts


def _describe_source(what: str, topic: str | None) -> dict[str, Any]:
    from fast3r_ros.io.sources import is_bag, open_source
    from fast3r_ros.io.sources.rosbag import bag_topics

    facts: dict[str, Any] = {"kind": "source"}
    if is_bag(Path(what)):
        facts = {"kind": "bag", "topics": bag_topics(Path(what))}
    try:
        source = open_source(what, topic=topic)
    except UserError as error:
        if facts["kind"] == "bag":  # its topics are known even without a readable frame
            return {**facts, "images": str(error)}
        raise
    frame = next(iter(source), None)  # the first that can be read
    if frame is None:
        raise UserError(f"no frame of {what} can be read")
    height, width = frame.image.shape[:2]
    facts["frames"] = len(source)
    if source.skipped:
        facts["not read"] = [f"{skipped.name}: {skipped.reason}" for skipped in source.skipped]
    facts["frames per second"] = round(source.rate_hz, 2)
    facts["image size"] = f"{width} x {height}"
    facts["camera"] = frame.camera
    facts["intrinsics"] = "known" if frame.intrinsics is not None else "unknown"
    return facts

"""`fast3r benchmark indices`: a model's accuracy by the choice of image indices.

Walks through held-out synthetic rooms are reconstructed with the same images and different rows of the
index table.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fast3r_ros.benchmark.measure import machine
from fast3r_ros.model import Fast3R
from fast3r_ros.model.transformer import counted_indices, drawn_indices, spread_indices
from fast3r_ros.training.objective import encode_views
from fast3r_ros.training.stream import Batch, held_out_batch
from fast3r_ros.training.training_config import DataConfig, read_config
from fast3r_ros.training.validation import accuracy

SEEDS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    parser.add_argument("--model", default="demo", help="demo, a directory or a hub name")
    parser.add_argument(
        "--config", type=Path, help="training configuration whose section `data` describes the rooms"
    )
    parser.add_argument("--views", type=int, nargs="+", default=[8], help="numbers of views")
    parser.add_argument("--scenes", type=int, default=16, help="held-out walks (default: %(default)s)")
    parser.add_argument("--motion", type=float, default=1.0, help="motion between views, as in training")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure every choice for every number of views; returns the JSON document."""
    model = Fast3R.from_pretrained(arguments.model)
    data = read_config(arguments.config).data if arguments.config else DataConfig()
    results = []
    for views in arguments.views:
        batches = [
            held_out_batch(data, range(scene, scene + 1), views, arguments.motion)
            for scene in range(arguments.scenes)
        ]
        for name, indices in choices(views).items():
            results.append({"views": views, "indices": name, **measure_accuracy(model, batches, indices)})
    return {
        "benchmark": "indices",
        "machine": machine(torch.device("cpu")),
        "model": arguments.model,
        "scenes": arguments.scenes,
        "results": results,
    }


def choices(views: int) -> dict[str, Tensor]:
    """Name -> indices (1, views)."""
    drawn = {f"drawn, seed {seed}": drawn_indices(1, views, seed) for seed in range(SEEDS)}
    return {"spread": spread_indices(1, views), **drawn, "counted": counted_indices(1, views)}


@torch.inference_mode()
def measure_accuracy(model: Fast3R, batches: list[Batch], indices: Tensor) -> dict[str, float]:
    """The measures of `training.validation.validate`, averaged over the scenes."""
    collected: dict[str, list[Tensor]] = {}
    for batch in batches:
        features = model.fuse(encode_views(model, batch.images), indices)
        in_first, confidence = (
            torch.stack(maps, 1)
            for maps in zip(
                *((view.points, view.confidence) for view in model.global_head(features)), strict=True
            )
        )
        local = None
        if model.downstream_head_local is not None:
            local = torch.stack([view.points for view in model.local_head(features)], 1)
        for name, values in accuracy(in_first, confidence, local, batch).items():
            collected.setdefault(name, []).append(values.flatten().double())
    return {name: float(torch.cat(values).mean()) for name, values in collected.items()}

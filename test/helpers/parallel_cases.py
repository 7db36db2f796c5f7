"""Cases for a network on one process and on several, and the processes that run them."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_model import random_views, small_model

from fast3r_ros.model import Fast3R, Pointmap
from fast3r_ros.model.layers import TOKENS_AT_ONCE, Block
from fast3r_ros.model.speed.parallel import parallelise


@dataclass(frozen=True)
class Case:
    """sizes: (H, W) per view; asked: views for the heads; gain: of inference; tokens_at_once: of blocks."""

    sizes: tuple[tuple[int, int], ...]
    asked: tuple[int, ...]
    batch: int = 1
    gain: bool = True
    tokens_at_once: int = TOKENS_AT_ONCE


CASES = {
    "even": Case(((32, 48),) * 4, (0, 1, 2, 3)),
    "odd number of views": Case(((32, 48),) * 5, (4, 0, 2)),
    "unequal sizes": Case(((32, 48), (48, 32), (64, 64), (32, 48), (16, 16)), (0, 1, 2, 3, 4)),
    "fewer views than ranks": Case(((48, 64),), (0,)),
    "a batch of scenes": Case(((32, 32), (32, 32), (16, 48)), (2, 1, 0), batch=2),
    "without the gain of inference": Case(((32, 48),) * 3, (0, 1, 2), gain=False),
    "blocks in parts": Case(((32, 48),) * 3, (0, 1, 2), tokens_at_once=5),
}


@torch.inference_mode()
def results(model: Fast3R, case: Case) -> list[torch.Tensor]:
    """Points and confidences of both heads for the views asked and for all, tokens of a batch of images."""
    views = random_views(*case.sizes, batch=case.batch)
    features = model.fuse([model.encode(view) for view in views])
    whole = model(views)
    together = model.encode(torch.cat(random_views(*[(32, 32)] * 3)))

    maps: list[Pointmap] = model.global_head(features, case.asked) + model.local_head(features, case.asked)
    for view in whole:
        assert view.local_points is not None
        maps += [view.global_points, view.local_points]
    return [tensor for each in maps for tensor in (each.points, each.confidence)] + [together.tokens]


def case_model(case: Case) -> Fast3R:
    """The network of a case, with weights that make its fusion prefer some tokens."""
    model = small_model(decoder_attn_bias_for_inference_enabled=case.gain)
    with torch.no_grad():
        for block in model.decoder.dec_blocks:
            cast(Block, block).attn.qkv.weight.mul_(3)
    return model


def run_ranks(count: int, folder: Path) -> None:
    """Every case in both modes on `count` processes; rank r writes folder/r.pt."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    mp.start_processes(_rank, args=(count, port, folder), nprocs=count, start_method="spawn")


def _rank(rank: int, count: int, port: int, folder: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=count)
    from fast3r_ros.model import layers

    found = {}
    for mode in ("tensor", "sequence"):
        for name, case in CASES.items():
            layers.TOKENS_AT_ONCE = case.tokens_at_once
            found[mode, name] = results(parallelise(case_model(case), mode), case)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()

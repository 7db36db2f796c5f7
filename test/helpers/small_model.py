"""A network small enough for property tests."""

from __future__ import annotations

from typing import Any

import torch

from fast3r_ros.model import Fast3R, Fast3RConfig


def small_config(**changes: Any) -> Fast3RConfig:
    """About 0.5 million parameters, every width different; `changes` go to the group with the key."""
    content: dict[str, dict[str, Any]] = {
        "encoder_args": {"embed_dim": 48, "depth": 2, "num_heads": 4, "img_size": 64},
        "decoder_args": {"embed_dim": 32, "enc_embed_dim": 48, "depth": 10, "num_heads": 4},
        "head_args": {
            "with_local_head": True,
            "dpt_reassemble_dims": [8, 12, 20, 24],
            "dpt_feature_dim": 16,
            "dpt_last_dim": 10,
        },
    }
    for key, value in changes.items():
        group = next(group for group in content if key.startswith(group.removesuffix("args")))
        content[group][key.removeprefix(group.removesuffix("args"))] = value
    return Fast3RConfig.from_dict(content)


def small_model(**changes: Any) -> Fast3R:
    """The network of `small_config` with repeatable random weights, in eval mode."""
    torch.manual_seed(0)
    return Fast3R(small_config(**changes)).eval()


def random_views(*sizes: tuple[int, int], batch: int = 1, seed: int = 0) -> list[torch.Tensor]:
    """One (batch, 3, H, W) image in [-1, 1] per (H, W)."""
    source = torch.Generator().manual_seed(seed)
    return [torch.rand(batch, 3, *size, generator=source) * 2 - 1 for size in sizes]

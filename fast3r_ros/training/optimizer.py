"""The optimisers of a run and their learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from fast3r_ros.errors import UserError
from fast3r_ros.training.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Linear warm-up, then cosine to the final rate at `steps`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = min((step - config.warmup_steps) / max(steps - config.warmup_steps, 1), 1.0)
    swing = 0.5 * (1 + math.cos(math.pi * done))
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * swing


def make_optimizers(objective: nn.Module, options: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the transformers' matrices and AdamW for the rest.

    Each parameter group has a key `relative_rate`: its learning rate relative to that of `learning_rate`.
    Muon's steps are scaled to the size of AdamW's, so that one rate serves both (Liu and others, Muon is
    Scalable for LLM Training, 2025).  Raises UserError when this PyTorch has no Muon.
    """
    if options.kind == "muon" and not hasattr(torch.optim, "Muon"):
        raise UserError(f"PyTorch {torch.__version__} has no Muon; use optimizer.kind adamw or update it")
    turned: list[nn.Parameter] = []
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in objective.named_parameters():
        heads = "downstream_head" in name
        if not parameter.requires_grad:
            continue
        if options.kind == "muon" and parameter.ndim == 2 and not heads:
            turned.append(parameter)
        else:
            groups.setdefault((heads, parameter.ndim > 1), []).append(parameter)
    chosen: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [_group(members, options, *kind) for kind, members in groups.items()],
            lr=options.learning_rate,
            betas=options.betas,
            fused=True,
        )
    ]
    if turned:
        chosen.append(
            torch.optim.Muon(
                [{"params": turned, "relative_rate": 1.0}],
                lr=options.learning_rate,
                weight_decay=options.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return chosen


def _group(
    members: list[nn.Parameter], options: OptimizerConfig, heads: bool, matrices: bool
) -> dict[str, Any]:
    """One group of AdamW: heads have their own rate, and vectors decay only if configured."""
    return {
        "params": members,
        "weight_decay": options.weight_decay if matrices or options.decay_vectors else 0.0,
        "relative_rate": options.head_rate if heads else 1.0,
    }

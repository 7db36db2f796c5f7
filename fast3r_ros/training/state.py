"""The state of a run on disk, written whole or not at all: a kill at any moment leaves one to resume."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fast3r_ros.errors import UserError

NAME = "state-{step:08d}.pt"
KEPT = 2


def save_state(directory: Path, step: int, content: dict[str, Any]) -> Path:
    """Write the state after `step` steps and remove all but the newest two."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / NAME.format(step=step)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save({"step": step, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    for old in sorted(directory.glob("state-*.pt"))[:-KEPT]:
        old.unlink()
    return path


def load_state(directory: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """The newest state, or None if there is none.  Raises UserError if it cannot be read."""
    states = sorted(directory.glob("state-*.pt"))
    if not states:
        return None
    try:
        content: dict[str, Any] = torch.load(states[-1], map_location=device, weights_only=True)
    except Exception as error:
        raise UserError(
            f"cannot read {states[-1]}: {error}; delete it to resume from an older one"
        ) from error
    return content


class Average:
    """Exponential moving average of a module's state, in float32.  tensors: by their names in the module."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: tensor.detach().float().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Blend in the weights after `step` steps; early steps count more, so that the start is forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        names, current = zip(*module.state_dict().items(), strict=True)
        own = [self.tensors[name] for name in names]
        torch._foreach_lerp_(own, [tensor.detach().float() for tensor in current], 1 - decay)

    def load(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        """Continue from the `tensors` of an earlier average."""
        self.tensors = {name: tensor.to(device) for name, tensor in tensors.items()}

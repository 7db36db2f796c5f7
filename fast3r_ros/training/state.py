"""The state of a run on disk, written atomically: after a kill at any moment, one can be resumed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fast3r_ros.errors import UserError
from fast3r_ros.files import whole_file, writable
from fast3r_ros.model.checkpoint import read_pickle

NAME = "state-{step:08d}.pt"
KEPT = 2


def save_state(directory: Path, step: int, content: dict[str, Any]) -> Path:
    """Write the state after `step` steps and remove all but the newest two.

    Raises UserError when it cannot be written; the older states stay, the partial new one is removed.
    """
    path = directory / NAME.format(step=step)
    with writable(path):
        directory.mkdir(parents=True, exist_ok=True)
        for left in directory.glob(".state-*"):  # left by a run that was killed while writing
            left.unlink()
    with whole_file(path, durable=True) as partial:
        try:
            with partial.open("wb") as file:
                torch.save({"step": step, **content}, file)
        except RuntimeError as error:  # PyTorch's type for a failed write
            raise UserError(
                f"cannot write {path}: the disk is full or failing; free some space and start with --resume"
            ) from error
    with suppress(OSError):
        for old in sorted(directory.glob("state-*.pt"))[:-KEPT]:
            old.unlink()
    return path


def load_state(directory: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """The newest state, or None if there is none.  Raises UserError if it cannot be read."""
    states = sorted(directory.glob("state-*.pt"))
    if not states:
        return None
    content = read_pickle(states[-1], "delete it to resume from an older one", device)
    step = content.get("step") if isinstance(content, dict) else None
    if type(step) is not int or step < 0:
        raise UserError(f"{states[-1]} is not a run's state; delete it to resume from an older one")
    return dict(content)


class Average:
    """Exponential moving average of a module's state, in float32.  tensors: by name in the module."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: tensor.detach().float().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Blend in the weights after `step` steps; early steps weigh more, so that the start fades."""
        decay = min(self.decay, (1 + step) / (10 + step))
        names, current = zip(*module.state_dict().items(), strict=True)
        own = [self.tensors[name] for name in names]
        torch._foreach_lerp_(own, [tensor.detach().float() for tensor in current], 1 - decay)

    def load(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        """Continue from an earlier average's `tensors`.  Raises ValueError if they are another module's."""
        own = {name: tensor.shape for name, tensor in self.tensors.items()}
        if {name: tensor.shape for name, tensor in tensors.items()} != own:
            raise ValueError("its average belongs to another model")
        self.tensors = {name: tensor.to(device) for name, tensor in tensors.items()}

"""ZeRO stage 2 through DeepSpeed (optional): gradients and optimiser state in shards (Rajbhandari, 2020).

The paper's model was trained with it.  An engine replaces the wrapped objective; it averages gradients, clips
them and steps the optimiser itself.  Its optimiser state is saved in DeepSpeed's own files, which can only be
read by the same number of processes.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fast3r_ros.errors import UserError
from fast3r_ros.training.processes import Process
from fast3r_ros.training.training_config import TrainConfig

FOLDER, TAG = "deepspeed", "{step:08d}"
KEPT = 2  # like `training.state`


def wrap(
    objective: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, process: Process
) -> nn.Module:
    """The objective as a DeepSpeed engine, which steps the optimiser; unchanged for one process.

    All processes must call it.  Raises UserError when there is no DeepSpeed.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            "run.parallel is deepspeed, which is not installed; install the package deepspeed, or use fsdp, "
            "which shards the weights, too"
        )
    if process.count == 1:
        return objective
    if process.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    engine, *_ = deepspeed.initialize(
        model=objective,
        optimizer=optimizer,
        config={
            "train_micro_batch_size_per_gpu": 1,  # only for its log; the batch size is ours
            "gradient_accumulation_steps": config.run.accumulation,
            "gradient_clipping": config.optimizer.clip,
            "zero_optimization": {"stage": 2},
            "torch_autocast": {"enabled": config.run.precision == "bfloat16", "dtype": "bfloat16"},
            "steps_per_print": 2**31,
        },
    )
    return engine


def is_engine(objective: nn.Module) -> bool:
    """Whether it is an engine from `wrap`."""
    return type(objective).__name__ == "DeepSpeedEngine"


def backward(engine: Any, loss: Tensor, last: bool) -> None:
    """Backward pass; the engine divides by the number of passes.  last: the step's last pass."""
    engine.backward(loss)
    if not last:
        engine.step()  # only counts the pass


def update(engine: Any) -> float:
    """Step the optimiser; returns the norm of the gradient before clipping."""
    engine.step()
    return float(engine.get_global_grad_norm())


def save(engine: Any, output: Path, step: int) -> None:
    """Write the optimiser's shards after `step` steps, and remove all but the newest two.

    The run's own state file must be written after this: a kill in between then leaves the older pair intact.
    Raises UserError when they cannot be written; the older shards stay, the partial new ones are removed.
    """
    folder = output / FOLDER
    try:
        engine.save_checkpoint(str(folder), tag=TAG.format(step=step), save_latest=False)
    except (OSError, RuntimeError) as error:  # RuntimeError: PyTorch's type for a failed write
        remove(output, step)
        raise UserError(
            f"cannot write {folder / TAG.format(step=step)}: the disk is full or failing; free some space "
            "and start with --resume"
        ) from error
    if engine.global_rank == 0:
        for old in sorted(path for path in folder.iterdir() if path.is_dir())[:-KEPT]:
            shutil.rmtree(old)


def remove(output: Path, step: int) -> None:
    """Remove the complete or partial state saved after `step` steps."""
    shutil.rmtree(output / FOLDER / TAG.format(step=step), ignore_errors=True)


def load(engine: Any, output: Path, step: int) -> None:
    """Restore weights and optimiser after `step` steps.

    Raises UserError when they were saved by another number of processes, or not by DeepSpeed.
    """
    folder = output / FOLDER / TAG.format(step=step)
    shards = len(list(folder.glob("*_optim_states.pt")))
    if shards != engine.dp_world_size:
        raise UserError(
            f"{folder} holds the optimiser of {shards} processes, this run has {engine.dp_world_size}; "
            "resume with the same number of processes and the same run.parallel"
        )
    engine.load_checkpoint(str(folder.parent), tag=folder.name)

"""ZeRO stage 2 through DeepSpeed, where it is installed: gradients and optimiser state in shards (Rajbhandari
and others, 2020).  The paper's model was trained like that.

An engine stands in the place of the wrapped objective; it averages gradients, clips them and steps the
optimiser by itself.  Its optimiser state is saved in DeepSpeed's own files, which need the same number of
processes to be read again.
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
from fast3r_ros.training.config import TrainConfig
from fast3r_ros.training.process import Process

FOLDER, TAG = "deepspeed", "{step:08d}"
KEPT = 2  # as many states as `training.state` keeps


def wrap(
    objective: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, process: Process
) -> nn.Module:
    """The objective as a DeepSpeed engine, which steps the optimiser; as it is for one process.

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
            "train_micro_batch_size_per_gpu": 1,  # for its log only; a batch has as many samples as we give
            "gradient_accumulation_steps": config.run.accumulation,
            "gradient_clipping": config.optimizer.clip,
            "zero_optimization": {"stage": 2},
            "torch_autocast": {"enabled": config.run.precision == "bfloat16", "dtype": "bfloat16"},
            "steps_per_print": 2**31,
        },
    )
    return engine


def is_engine(objective: nn.Module) -> bool:
    """Whether `wrap` made an engine of it."""
    return type(objective).__name__ == "DeepSpeedEngine"


def backward(engine: Any, loss: Tensor, last: bool) -> None:
    """Backward pass; the engine divides by the number of passes.  last: of its step, which `update` ends."""
    engine.backward(loss)
    if not last:
        engine.step()  # counts the pass


def update(engine: Any) -> float:
    """Step the optimiser; returns the norm of the gradient before clipping."""
    engine.step()
    return float(engine.get_global_grad_norm())


def save(engine: Any, output: Path, step: int) -> None:
    """Write the optimiser's shards after `step` steps, and remove all but the newest two.

    The run's own state file is to be written after this: a kill between the two leaves the older pair whole.
    Raises UserError when they cannot be written; the older ones stay then, and nothing of the new ones.
    """
    folder = output / FOLDER
    try:
        engine.save_checkpoint(str(folder), tag=TAG.format(step=step), save_latest=False)
    except (OSError, RuntimeError) as error:  # the latter is how PyTorch reports that a write failed
        remove(output, step)
        raise UserError(
            f"cannot write {folder / TAG.format(step=step)}: the disk is full or failing; free some space "
            "and start with --resume"
        ) from error
    if engine.global_rank == 0:
        for old in sorted(path for path in folder.iterdir() if path.is_dir())[:-KEPT]:
            shutil.rmtree(old)


def remove(output: Path, step: int) -> None:
    """Take back what was saved after `step` steps, whole or in part."""
    shutil.rmtree(output / FOLDER / TAG.format(step=step), ignore_errors=True)


def load(engine: Any, output: Path, step: int) -> None:
    """Put back weights and optimiser after `step` steps.

    Raises UserError when they were saved by another number of processes, or not by DeepSpeed.
    """
    folder = output / FOLDER / TAG.format(step=step)
    shards = len(list(folder.glob("*_optim_states.pt")))
    if shards != engine.dp_world_size:
        raise UserError(
            f"{folder} holds the optimiser of {shards} processes, this run has {engine.dp_world_size}; "
            "resume with as many processes and the same run.parallel as before"
        )
    engine.load_checkpoint(str(folder.parent), tag=folder.name)

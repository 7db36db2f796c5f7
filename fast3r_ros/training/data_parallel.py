"""Wrapping a module, stepping it and saving its state, on one or several processes."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.nn.parallel import DistributedDataParallel

from fast3r_ros.errors import UserError
from fast3r_ros.model import Fast3R
from fast3r_ros.training import zero
from fast3r_ros.training.objective import Objective
from fast3r_ros.training.processes import Process
from fast3r_ros.training.stream import Batch
from fast3r_ros.training.training_config import RunConfig


def wrap(objective: Objective, process: Process, kind: str) -> nn.Module:
    """The objective ready for this process group; kind is ddp, fsdp or deepspeed (wrapped later)."""
    if process.count == 1 or kind == "deepspeed":
        return objective
    if kind == "ddp":
        return DistributedDataParallel(
            objective, device_ids=[process.device.index] if process.device.type == "cuda" else None
        )
    from torch.distributed.fsdp import fully_shard

    network = objective.network
    for block in [*network.encoder.enc_blocks, *network.decoder.dec_blocks]:
        fully_shard(block)
    for head in (network.downstream_head, network.downstream_head_local):
        if head is not None:
            fully_shard(head)
    fully_shard(objective)
    return objective


def network_of(objective: nn.Module) -> Fast3R:
    """The network inside a wrapped objective."""
    wrapped = zero.is_engine(objective) or isinstance(objective, DistributedDataParallel)
    inner: Any = objective.module if wrapped else objective
    network = inner.network
    assert isinstance(network, Fast3R)
    return network


def forward_backward(
    objective: nn.Module, batch: Batch, chosen: list[int], config: RunConfig, last: bool
) -> Tensor:
    """One forward and backward pass of a step; returns the loss and the errors of `Objective`, (4,).

    last: whether it is the step's last pass, after which gradients are exchanged.
    """
    waits = isinstance(objective, DistributedDataParallel) and not last
    with objective.no_sync() if waits else nullcontext():  # type: ignore[operator]
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            loss, errors = objective(batch, chosen)
        if zero.is_engine(objective):
            zero.backward(objective, loss, last)
        else:
            (loss / config.accumulation).backward()
    return torch.cat([loss.detach()[None], errors])


def update(objective: nn.Module, optimizers: list[torch.optim.Optimizer], clip: float) -> float:
    """Step the optimisers with the gradients, clipped to the norm `clip`; returns the norm before that."""
    if zero.is_engine(objective):
        return zero.update(objective)
    norm = nn.utils.clip_grad_norm_(objective.parameters(), clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(norm)


_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def full_state(objective: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
    """Network and optimisers' state as whole CPU tensors; all processes must call it.

    For a DeepSpeed engine only the network, see `zero.save`.
    """
    if zero.is_engine(objective):
        tensors = network_of(objective).state_dict()
        return {"network": {name: tensor.cpu() for name, tensor in tensors.items()}}
    return {
        "network": get_model_state_dict(network_of(objective), options=_FULL),
        "optimizer": get_optimizer_state_dict(objective, optimizers, options=_FULL),
    }


def load_full_state(
    objective: nn.Module, optimizers: list[torch.optim.Optimizer], state: dict[str, Any]
) -> None:
    """Restore the result of `full_state`, with any number of processes.

    Raises UserError for the state of a DeepSpeed engine.
    """
    if "optimizer" not in state:
        raise UserError("the state was saved with run.parallel deepspeed; resume with it, or start again")
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(network_of(objective), state["network"], options=options)
    set_optimizer_state_dict(objective, optimizers, state["optimizer"], options=options)

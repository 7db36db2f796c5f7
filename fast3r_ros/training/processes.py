"""The rank and device of one of several training processes."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as distributed
from torch import Tensor

from fast3r_ros.errors import UserError


@dataclass(frozen=True)
class Process:
    """This process among all: rank of count, and its device."""

    rank: int
    count: int
    device: torch.device

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values / self.count


def join_processes(device: str = "auto") -> Process:
    """Join the group that torchrun started (gloo on the CPU, nccl on GPUs), or be the only process.

    device: auto, cpu or cuda.  Raises UserError for cuda when PyTorch finds no GPU.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but PyTorch finds no GPU; use --device cpu")
    count, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if device == "cuda" and count > 1:
        device = f"cuda:{os.environ.get('LOCAL_RANK', rank)}"
        torch.cuda.set_device(device)
    if count > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return Process(rank, count, torch.device(device))


def leave_processes() -> None:
    """End the process group, if there is one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()

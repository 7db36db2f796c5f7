"""A sub-command on the processes that torchrun started."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout

import torch.distributed as dist

from fast3r_ros.errors import UserError
from fast3r_ros.model.parallel import join_processes


def run_on_ranks(arguments: argparse.Namespace, work: Callable[[argparse.Namespace, bool], int]) -> int:
    """`work(arguments, first)` on every process; only the first prints.

    Raises UserError outside torchrun.
    """
    arguments.device = join_processes(arguments.device)
    try:
        if dist.get_rank() == 0:
            return work(arguments, True)
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            return work(arguments, False)
    except UserError:
        if dist.get_rank() == 0:
            raise
        return 2  # the first process reports the error
    finally:
        dist.destroy_process_group()

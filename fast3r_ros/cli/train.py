"""`fast3r train`: train a model on the synthetic stream; restart with --resume after any interruption."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
from pathlib import Path

from fast3r_ros.errors import UserError

EXAMPLE = "fast3r train --config config/train/demo.yaml --output runs/demo --resume"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fast3r train`."""
    parser.epilog = f"example: {EXAMPLE}"
    parser.add_argument("--config", type=Path, required=True, help="YAML file, see config/train/")
    parser.add_argument("--output", type=Path, required=True, help="folder for states, logs and weights")
    parser.add_argument("--resume", action="store_true", help="continue from the newest state in --output")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="stop cleanly after this many minutes"
    )
    parser.add_argument("--steps", type=int, help="number of steps, instead of run.steps of the config")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))


def run(arguments: argparse.Namespace) -> int:
    """Train and print the last evaluation; returns 0."""
    from fast3r_ros.training.processes import join_processes, leave_processes
    from fast3r_ros.training.trainer import train
    from fast3r_ros.training.training_config import read_config

    for name in ("steps", "minutes"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name} is {value}, it must be greater than 0")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    config = read_config(arguments.config)
    if arguments.steps is not None:
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, steps=arguments.steps))
    process = join_processes(arguments.device)
    try:
        metrics = train(config, arguments.output, process, arguments.resume, arguments.minutes)
    finally:
        leave_processes()
    if process.rank == 0:
        print("  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    return 0

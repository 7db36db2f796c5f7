"""`fast3r golden FOLDER`: check this implementation against numbers of the official release."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sub-command's arguments."""
    parser.add_argument("folder", type=Path, help="folder of golden cases, as test/golden")
    parser.add_argument("--device", default="cpu", help="device of the network (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Print one JSON line per case; returns 1 when any case fails."""
    from fast3r_ros.evaluation import golden

    good = True
    for result in golden.run(arguments.folder, arguments.device):
        print(result.line(), flush=True)
        good = good and result.ok
    return 0 if good else 1

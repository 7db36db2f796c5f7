"""Image sequences with ground truth, in the usual formats of public datasets.

`open_dataset("tum", root)` gives a list of `PosedSequence`s; each format is one module with one function.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from fast3r_ros.datasets.posed import PosedFrame, PosedSequence
from fast3r_ros.errors import UserError

__all__ = ["DATASETS", "PosedFrame", "PosedSequence", "open_dataset"]

# name -> module with `sequences(root) -> list[PosedSequence]`
DATASETS = {
    "7scenes": "seven_scenes",
    "nrgbd": "nrgbd",
    "dtu": "dtu",
    "tum": "tum",
    "scannet": "scannet",
    "co3d": "co3d",
}


def open_dataset(name: str, root: Path) -> list[PosedSequence]:
    """All sequences below `root`, sorted by name.

    Raises UserError when the format is unknown, or the folder holds no sequence of it, or a file of one is
    missing or broken.
    """
    if name not in DATASETS:
        raise UserError(f"no dataset format is called {name!r}; known are {', '.join(DATASETS)}")
    if not root.is_dir():
        raise UserError(f"--data-root {root} is no folder; give the folder of the {name} dataset")
    module = importlib.import_module(f"{__name__}.{DATASETS[name]}")
    sequences: list[PosedSequence] = module.sequences(root)
    if not sequences:
        layout = " ".join((module.__doc__ or "").split())
        raise UserError(f"{root} holds no sequence of the format {name}.  {layout}")
    return sorted(sequences, key=lambda sequence: sequence.name)

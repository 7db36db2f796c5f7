"""Image sequences with ground truth, in the usual formats of public datasets.

`open_dataset("tum", root)` gives a list of `PosedSequence`s; each format is one function of a module.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from fast3r_ros.datasets.posed import PosedFrame, PosedSequence
from fast3r_ros.errors import UserError

__all__ = ["DATASETS", "PosedFrame", "PosedSequence", "open_dataset"]

# name -> module and its function (root) -> list[PosedSequence]
DATASETS = {
    "7scenes": ("seven_scenes", "sequences"),
    "nrgbd": ("nrgbd", "sequences"),
    "dtu": ("mvsnet", "dtu"),
    "tum": ("tum", "sequences"),
    "scannet": ("scannet", "sequences"),
    "scannetpp": ("scannetpp", "sequences"),
    "arkitscenes": ("arkitscenes", "sequences"),
    "habitat": ("habitat", "sequences"),
    "blendedmvs": ("mvsnet", "blended_mvs"),
    "megadepth": ("megadepth", "sequences"),
    "co3d": ("co3d", "sequences"),
    "nerfstudio": ("nerfstudio", "sequences"),
    "colmap": ("colmap", "sequences"),
}


def open_dataset(name: str, root: Path) -> list[PosedSequence]:
    """All sequences below `root`, sorted by name.

    Raises UserError when the format is unknown, the folder holds no sequence of it, or a file is missing or
    damaged.
    """
    if name not in DATASETS:
        raise UserError(f"no dataset format is called {name!r}; known are {', '.join(DATASETS)}")
    if not root.is_dir():
        raise UserError(f"--data-root {root} is not a folder; give the folder of the {name} dataset")
    module_name, function = DATASETS[name]
    module = importlib.import_module(f"{__name__}.{module_name}")
    sequences: list[PosedSequence] = [each for each in getattr(module, function)(root) if each.frames]
    if not sequences:
        layout = " ".join((module.__doc__ or "").split())
        raise UserError(f"{root} holds no sequence of the format {name}.  {layout}")
    return sorted(sequences, key=lambda sequence: sequence.name)

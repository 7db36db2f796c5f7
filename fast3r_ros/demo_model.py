"""The demo model's limit, for every command that may get images the model was not trained for.

Imports nothing heavy, so that the warning can be printed before PyTorch is loaded.
"""

from __future__ import annotations

import shlex
from pathlib import Path

DEMO = "demo"
DEMO_DIRECTORY = Path(__file__).resolve().parent / "weights" / "demo"
REAL_MODEL = "jedyang97/Fast3R_ViT_Large_512"
ABOUT_REAL_MODEL = "2.6 GB, FAIR Noncommercial Research License"


def is_demo(model: str | Path) -> bool:
    """Whether a model's name, or its folder, is the demo model."""
    name = str(model).removeprefix("fast3r:") or DEMO
    return name == DEMO or Path(name).expanduser().resolve() == DEMO_DIRECTORY


def caveat(model: str | Path, synthetic: bool, command: str) -> str:
    """The warning before and after a run: one sentence and the command for real images.

    synthetic: whether the images are rendered rooms.  command: the same work with a model for real images.
    Empty when no warning is needed.
    """
    if synthetic or not is_demo(model):
        return ""
    return (
        "the demo model only knows synthetic rooms: do not trust this map. For real images "
        f"({ABOUT_REAL_MODEL}; others: docs/models.md):\n  {command}"
    )


def reconstruct_caveat(model: str | Path, synthetic: bool, source: str, output: str | Path) -> str:
    """`caveat` with the line for `fast3r reconstruct`."""
    words = ("fast3r", "reconstruct", source, "--model", REAL_MODEL, "--output", str(output))
    return caveat(model, synthetic, shlex.join(words))

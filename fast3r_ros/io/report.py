"""report.json: what was made, of what, with what, and how long it took."""

from __future__ import annotations

import json
import math
import platform
import resource
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from fast3r_ros import __version__
from fast3r_ros.files import whole_file

_LIBRARIES = ("torch", "numpy", "scipy", "opencv-python-headless")


def write_report(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a JSON report; numbers that are not finite become null, as JSON has none.

    Raises UserError when it cannot be written.
    """
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(_finite(content), indent=2, default=str) + "\n", encoding="utf-8")


def _finite(content: Any) -> Any:
    """The content with None for numbers that JSON cannot say."""
    if isinstance(content, Mapping):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def versions() -> dict[str, str]:
    """The versions of this package, Python and the libraries that results depend on."""
    found = {"fast3r_ros": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def peak_memory() -> dict[str, float]:
    """Peak memory of this process in MiB: `host`, and when CUDA was used `device`, of all GPUs together."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peaks = {"host": round(kilobytes / 1024, 1)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        # not of the current device, which is the first one whatever GPU the model is on
        taken = sum(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count())))
        peaks["device"] = round(taken / 2**20, 1)
    return peaks

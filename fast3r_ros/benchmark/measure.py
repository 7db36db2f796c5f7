"""Timing, peak memory, statistics and a description of the machine, alike for every benchmark; finished cases
are printed and kept at once.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

import fast3r_ros
from fast3r_ros.files import whole_file


def summarised(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Name -> statistics over the runs.

    Numbers: median, minimum and maximum.  Booleans: the number of True.  Texts: the distinct ones.  Numbers
    that are not finite are ignored; without any finite one the median is None.
    """
    return {name: _summary([run[name] for run in runs]) for name in runs[0]}


def _summary(values: Sequence[Any]) -> dict[str, Any]:
    if all(isinstance(value, bool) for value in values):
        return {"yes": sum(values), "runs": len(values)}
    if any(isinstance(value, str) for value in values):
        return {"texts": sorted({str(value) for value in values}), "runs": len(values)}
    numbers = [value for value in values if math.isfinite(value)]
    if not numbers:
        return {"median": None, "least": None, "most": None, "runs": 0}
    middle = statistics.median(numbers)
    return {"median": middle, "least": min(numbers), "most": max(numbers), "runs": len(numbers)}


def add_keep_argument(parser: argparse.ArgumentParser) -> None:
    """--keep."""
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FILE",
        help="also write the document to this file after every case, for runs that may be aborted",
    )


def collected(
    document: dict[str, Any], results: Iterable[dict[str, Any]], path: Path | None
) -> dict[str, Any]:
    """The document with all `results`, which are measured while iterating.

    Each result is reported on stderr.  The file holds the results so far, with the key `unfinished`, until it
    holds the returned document.  Raises UserError for a file that cannot be written.
    """
    found: list[dict[str, Any]] = []
    document = {**document, "results": found}
    for result in results:
        found.append(result)
        print(f"{document['benchmark']}: {_line(result)}", file=sys.stderr, flush=True)
        keep({**document, "unfinished": True}, path)
    keep(document, path)
    return document


def keep(document: dict[str, Any], path: Path | None) -> None:
    """Replace the file's content by the document, if `path` is given.  Raises UserError."""
    if path is not None:
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _line(result: dict[str, Any]) -> str:
    """The numbers and texts of a case, without nested values."""
    cells = {name: value for name, value in result.items() if isinstance(value, (int, float, str))}
    return ", ".join(f"{name} {_short(value)}" for name, value in cells.items())


def _short(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


Result = TypeVar("Result")


@dataclass(frozen=True)
class Measurement:
    """Wall time of several runs of one stage in seconds, and the memory above the initial usage.

    peak_bytes: the peak of one run: of the GPU's allocator, or of the process's resident memory on the CPU;
    None if the system does not report it.  processor_s: median processor time of all threads, nearly
    independent of other work on the machine; None if not measured.
    """

    median_s: float
    fastest_s: float
    slowest_s: float
    runs: int
    peak_bytes: int | None = None
    processor_s: float | None = None

    def content(self) -> dict[str, Any]:
        """The measurement as a JSON object, without missing values."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def measure(
    stage: Callable[[], Result], device: torch.device, runs: int = 5, warmup: int = 1, memory: bool = True
) -> tuple[Result, Measurement]:
    """Run a stage `warmup` times unmeasured, then `runs` times; also returns the last result.

    memory: whether to measure the peak, which takes longer than a short stage.
    """
    for _ in range(warmup):
        stage()
    times, processor, peaks = [], [], []
    for _ in range(max(runs, 1)):
        synchronize(device)
        with PeakMemory(device) if memory else nullcontext() as peak:
            start, busy = time.perf_counter(), time.process_time()
            result = stage()
            synchronize(device)
            times.append(time.perf_counter() - start)
            processor.append(time.process_time() - busy)
        peaks.append(peak.bytes if peak is not None else None)
    known = [peak for peak in peaks if peak is not None]
    peak_bytes = max(known) if known else None
    return result, replace(summary(times), peak_bytes=peak_bytes, processor_s=statistics.median(processor))


def summary(seconds: Sequence[float]) -> Measurement:
    """Median and spread of the wall times of several runs."""
    return Measurement(statistics.median(seconds), min(seconds), max(seconds), len(seconds))


class PeakMemory:
    """Peak memory of a block of code above the initial usage: `with PeakMemory(device) as peak`.

    bytes: see `Measurement.peak_bytes`; set after the block.
    """

    def __init__(self, device: torch.device) -> None:
        self.bytes: int | None = None
        self._device = device
        self._before: int | None = None

    def __enter__(self) -> PeakMemory:
        self._before = _start_peak(self._device)
        return self

    def __exit__(self, *_: object) -> None:
        after = _peak(self._device)
        if self._before is not None and after is not None:
            self.bytes = max(after - self._before, 0)


def machine(device: torch.device) -> dict[str, Any]:
    """The machine of the measurement: names, counts and versions, no host name."""
    content = {
        "device": device.type,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fast3r_ros": fast3r_ros.__version__,
    }
    if device.type == "cuda":
        content["gpu"] = torch.cuda.get_device_name(device)
        content["cuda"] = torch.version.cuda
    return content


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _start_peak(device: torch.device) -> int | None:
    """Reset the peak; returns the memory in use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    _return_free_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return _resident("VmRSS")
    except OSError:
        return None


def _return_free_memory() -> None:
    """Return freed memory to the system, so that reusing it is counted (glibc only)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")


def _resident(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    values = [int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")]
    return values[0] if values else None

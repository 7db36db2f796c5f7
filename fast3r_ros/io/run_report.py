"""report.json: results, inputs, settings, versions and times of a run; and which files belong to a run.

Only files that an earlier run's report lists are removed or replaced, never the user's own.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import resource
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from fast3r_ros import __version__
from fast3r_ros.errors import UserError
from fast3r_ros.files import read_json, whole_file, writable

PROGRAM = "fast3r_ros"
REPORT = "report.json"
UNFINISHED = {"program": PROGRAM, "complete": False, "stopped": "still running, or killed", "frames": 0}
MAX_REPORT_BYTES = 1 << 26  # a very long run has one line per picture
INSIDE = ("000000.png", "000000.jpg", "0/cameras.txt", "cameras.txt")  # for `Results` in a folder
_LIBRARIES = ("torch", "numpy", "scipy", "opencv-python-headless")


def write_report(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a JSON report; numbers that are not finite become null.

    Raises UserError when it cannot be written.
    """
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(_finite(content), indent=2, default=str) + "\n", encoding="utf-8")


def _finite(content: Any) -> Any:
    """The content with None for numbers that JSON cannot represent."""
    if isinstance(content, Mapping):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def claim_folder(
    directory: Path,
    sources: Sequence[Path],
    written: re.Pattern[str],
    listed: re.Pattern[str] | None = None,
) -> None:
    """Prepare an output folder: the files of an earlier run are removed, all others stay.

    sources: files and folders that the run reads.  written: names that the run may write, relative to the
    folder.  listed: names that belong to a run only if its report lists them; others stay.  Raises UserError,
    before any file is changed, when the folder contains or lies in a source, contains files of these names
    that do not belong to an earlier run, or is not writable.
    """
    place = directory.resolve()
    for source in (source.resolve() for source in sources):
        if source == place or place in source.parents:
            raise UserError(f"the output folder {directory} holds the source {source}; choose another folder")
        if source in place.parents:
            raise UserError(
                f"the output folder {directory} lies in the source {source}; choose another folder"
            )
    with writable(directory):
        present = _files_like(directory, written)
        own = _own_files(directory)
        foreign = [name for name in present if own is None or (own and name not in own)]
        if foreign:
            raise UserError(
                f"{directory / foreign[0]} is not from an earlier run and would be replaced; choose another "
                "folder"
            )
        directory.mkdir(parents=True, exist_ok=True)
        if listed is not None:
            present += [name for name in own or () if listed.fullmatch(name) and name not in present]
            present = [
                name for name in present if not (directory / name).is_dir() or (directory / name).is_symlink()
            ]
        for name in present:
            (directory / name).unlink(missing_ok=True)
        for folder in sorted({(directory / name).parent for name in present} - {directory}, reverse=True):
            for empty in (folder, *(p for p in folder.parents if directory in p.parents)):
                with suppress(OSError):  # it still holds files of the user
                    empty.rmdir()
    write_report(directory / REPORT, {**UNFINISHED, "files": []})


def list_files(directory: Path, written: re.Pattern[str]) -> list[str]:
    """The files that a run has written to its claimed folder, relative to it; for the report."""
    return [name for name in _files_like(directory, written) if name != REPORT]


def _files_like(directory: Path, written: re.Pattern[str]) -> list[str]:
    """The files of these names below a folder; a link to another folder counts as a file."""
    found = []
    for folder, folders, files in os.walk(directory):
        relative = Path(folder).relative_to(directory)
        found += [name for file in files if written.fullmatch(name := (relative / file).as_posix())]
        for link in (relative / name for name in folders if Path(folder, name).is_symlink()):
            if any(written.fullmatch((link / inside).as_posix()) for inside in INSIDE):
                found.append(link.as_posix())
    return sorted(found)


def _own_files(directory: Path) -> set[str] | None:
    """The files listed in an earlier run's report; empty for a killed run, None without a report."""
    try:
        content = read_json(directory / REPORT, MAX_REPORT_BYTES)
    except UserError:
        return None
    if not isinstance(content, dict) or not {"complete", "stopped", "frames"} <= content.keys():
        return None
    files = content.get("files")
    return {REPORT, *map(str, files)} if isinstance(files, list) and files else set()


def require_own_recording(path: Path, directory: Path) -> None:
    """Raises UserError when `path` is a file that the previous run in `directory` did not record."""
    if not os.path.lexists(path):
        return
    try:
        settings = read_json(directory / REPORT, MAX_REPORT_BYTES)["settings"]
        own = Path(settings["rerun"]).resolve() == path.resolve()
    except (UserError, KeyError, TypeError):
        own = False
    if not own:
        raise UserError(f"{path} exists and would be replaced; remove it or choose another name for --rerun")


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
        # not of the current device, which is the first GPU even if the model is on another
        taken = sum(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count())))
        peaks["device"] = round(taken / 2**20, 1)
    return peaks

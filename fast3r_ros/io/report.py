"""report.json: what was made, of what, with what, and how long it took; and which files are ours.

Nothing of the user's is ever removed or replaced: only files that an earlier run wrote, by its report, are.
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
MAX_REPORT_BYTES = 1 << 26  # a line for each picture of a very long run
INSIDE = ("000000.png", "000000.jpg", "0/cameras.txt", "cameras.txt")  # what a folder of results may hold
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


def claim_folder(
    directory: Path,
    sources: Sequence[Path],
    written: re.Pattern[str],
    listed: re.Pattern[str] | None = None,
) -> None:
    """Make an output folder ready: the files of an earlier run are removed, anything else is left alone.

    sources: files and folders that the run reads.  written: names that the run may write, relative to the
    folder.  listed: names that are a run's where its report lists them, and else may stay.  Raises UserError,
    before anything is touched, when the folder holds or lies in a source, or holds files of these names that
    are not an earlier run's, or cannot be written.
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
                with suppress(OSError):  # it is not empty: something of the user's is in it
                    empty.rmdir()
    write_report(directory / REPORT, {**UNFINISHED, "files": []})


def list_files(directory: Path, written: re.Pattern[str]) -> list[str]:
    """What a run has written to a folder that it had claimed, relative to it; for the report."""
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
    """The files that an earlier run's report lists; empty for one that was killed, None without a report."""
    try:
        content = read_json(directory / REPORT, MAX_REPORT_BYTES)
    except UserError:
        return None
    if not isinstance(content, dict) or not {"complete", "stopped", "frames"} <= content.keys():
        return None
    files = content.get("files")
    return {REPORT, *map(str, files)} if isinstance(files, list) and files else set()


def require_own_recording(path: Path, directory: Path) -> None:
    """Raises UserError when a file is at `path` that is no recording of the run before in `directory`."""
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
        # not of the current device, which is the first one whatever GPU the model is on
        taken = sum(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count())))
        peaks["device"] = round(taken / 2**20, 1)
    return peaks

"""A benchmark's results so far, reported and saved case by case: an aborted run loses only one case."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fast3r_ros.files import whole_file


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

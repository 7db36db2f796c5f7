"""`fast3r benchmark report FILES --output DIR`: other benchmarks' documents as tables and figures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fast3r_ros.errors import UserError
from fast3r_ros.files import whole_file, writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options: documents and output folder."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSON printed by a benchmark")
    parser.add_argument("--output", type=Path, required=True, help="folder for report.md and its figures")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write report.md and the figures; returns their paths.  Raises UserError for an invalid file."""
    documents = [(path, read_document(path)) for path in arguments.files]
    with writable(arguments.output):
        arguments.output.mkdir(parents=True, exist_ok=True)
    from fast3r_ros.benchmark.plots import figures
    from fast3r_ros.benchmark.tables import tables

    parts, written = ["# Benchmarks\n"], []
    for path, document in documents:
        parts.append(f"# {document['benchmark']} ({path.name})\n")
        for name, figure in figures(document).items():
            picture = arguments.output / f"{path.stem}_{name}.png"
            with whole_file(picture) as temporary:
                figure.savefig(temporary, dpi=110, format="png")
            parts.append(f"![{name}]({picture.name})\n")
            written.append(str(picture))
        parts += [table.markdown() for table in tables(document)]
    report = arguments.output / "report.md"
    with whole_file(report) as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")
    return {"benchmark": "report", "written": [str(report), *written]}


def read_document(path: Path) -> dict[str, Any]:
    """A benchmark's document, read from a file.  Raises UserError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}; give the output of fast3r benchmark") from error
    if not isinstance(document, dict) or "benchmark" not in document:
        raise UserError(f"{path} is not from a benchmark; give the output of fast3r benchmark")
    return document

"""`fast3r benchmark report FILES --output DIR`: the documents of other benchmarks as tables and pictures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fast3r_ros.errors import UserError
from fast3r_ros.files import whole_file, writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which documents, and where to."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSON that a benchmark printed")
    parser.add_argument("--output", type=Path, required=True, help="folder for report.md and its pictures")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write report.md and the pictures; returns which files.  Raises UserError naming a file that is none."""
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
    """The document that a benchmark printed into a file.  Raises UserError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}; give what fast3r benchmark printed") from error
    if not isinstance(document, dict) or "benchmark" not in document:
        raise UserError(f"{path} names no benchmark; give what fast3r benchmark printed")
    return document

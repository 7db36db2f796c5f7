"""`fast3r benchmark report FILES --output DIR`: the documents of other benchmarks as tables and pictures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fast3r_ros.errors import UserError
from fast3r_ros.files import whole_file, writable


@dataclass(frozen=True)
class Table:
    """title: one line.  rows: one cell per column each."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The table in Markdown, with a heading."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return f"## {self.title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def tables(document: Mapping[str, Any]) -> list[Table]:
    """The results, the machine and the settings."""
    name = document["benchmark"]
    body = _TABLES.get(name, _everything)(document)
    setting = {key: value for key, value in document.items() if key not in _SHOWN_ELSEWHERE}
    return [*body, Table("Setting", ("what", "value"), [list(pair) for pair in _flat(setting)])]


def _network(document: Mapping[str, Any]) -> list[Table]:
    return [_stage_times(document["results"]), _floors(document)]


def _stage_times(results: Sequence[Mapping[str, Any]]) -> Table:
    names = list(dict.fromkeys(stage for result in results for stage in result["stages"]))
    rows = [
        [
            str(result["views"]),
            _size(result),
            result["dtype"],
            *(_spread(result["stages"].get(stage)) for stage in names),
            _milliseconds(result["total_median_s"]),
            _mebibytes(max(stage.get("peak_bytes", 0) for stage in result["stages"].values())),
        ]
        for result in results
    ]
    columns = ("views", "size", "dtype", *names, "sum", "peak MiB")
    return Table("Time per stage in ms: median (fastest to slowest)", columns, rows)


def _floors(document: Mapping[str, Any]) -> Table:
    rows = []
    for result in document["results"]:
        parts = {**result["stages"], "attention of fuse": result["fusion_attention"]}
        for name, stage in parts.items():
            if "floor_s" in stage:
                rows.append(
                    [
                        str(result["views"]),
                        _size(result),
                        result["dtype"],
                        name,
                        f"{stage['flops'] / 1e9:,.1f}",
                        f"{stage['bytes'] / 2**20:,.0f}",
                        _milliseconds(stage["floor_s"]),
                        f"{stage['times_floor']:.2f}",
                        f"{stage['share_of_matrix_rate']:.0%}",
                    ]
                )
    ceilings = ", ".join(
        f"{dtype} {each['matrix_rate'] / 1e9:,.1f} GFLOP/s, {each['bandwidth'] / 1e9:.1f} GB/s"
        for dtype, each in document["ceilings"].items()
    )
    columns = (
        "views",
        "size",
        "dtype",
        "stage",
        "GFLOP",
        "MiB",
        "roofline ms",
        "times the roofline",
        "matrix rate",
    )
    return Table(f"Roofline, with the rates measured on this device: {ceilings}", columns, rows)


def _window(document: Mapping[str, Any]) -> list[Table]:
    results = document["results"]
    names = [name for name in results[0]["stages"] if name != "total"]
    rows = [
        [
            str(result["slide"]),
            *(_milliseconds(result["stages"][name]["median_s"]) for name in names),
            _spread(result["stages"]["total"]),
            f"{result['share_of_full_pass']:.2f}",
            f"{result['outside_share']:.1%}",
            f"{result['windows_accepted']} of {result['windows_accepted'] + result['windows_rejected']}",
        ]
        for result in results
    ]
    columns = (
        "slide",
        *names,
        "frame to message",
        "mean, of a full pass",
        "outside of the network",
        "windows accepted",
    )
    views, full = results[0]["views"], _spread(document["full_pass"])
    title = (
        f"From the newest frame to the packed message, {views} views, medians in ms; a full pass takes {full}"
    )
    return [Table(title, columns, rows)]


def _scale(document: Mapping[str, Any]) -> list[Table]:
    rows = []
    for result in document["results"]:
        row = [str(result["views"]), _size(result), result["dtype"]]
        if result.get("failed"):
            rows.append([*row, result["failed"], "", "", "", "", "", ""])
            continue
        stages = result["stages"]
        row += [f"{stages[name]['median_s']:.2f}" for name in ("encode", "fuse", "heads")]
        row += [f"{result['total_s']:.2f}", _mebibytes(result["peak_bytes"])]
        rows.append([*row, _mebibytes(result["host_peak_bytes"]), f"{stages['fuse']['times_floor']:.2f}"])
    columns = (
        "views",
        "size",
        "dtype",
        "encode s",
        "fuse s",
        "heads s",
        "sum s",
        "peak MiB",
        "host peak MiB",
        "fuse, times its roofline",
    )
    return [Table("One pass over many views, medians; memory above the weights", columns, rows)]


def _everything(document: Mapping[str, Any]) -> list[Table]:
    content = {
        key: value
        for key, value in document.items()
        if isinstance(value, (Mapping, list)) and key not in ("machine", "setting")
    }
    rows = [list(pair) for pair in _flat(content)]
    return [Table(str(document["benchmark"]), ("what", "value"), rows)]


def _mapping(document: Mapping[str, Any]) -> list[Table]:
    rows = [
        [scenario, what, *_cells(summary), str(summary["runs"])]
        for scenario, numbers in document["scenarios"].items()
        for what, summary in numbers.items()
    ]
    columns = ("scenario", "what", "median", "least", "most", "runs")
    return [Table("The mapper against synthetic ground truth", columns, rows)]


def _cells(summary: Mapping[str, Any]) -> list[str]:
    """Median, minimum and maximum of numbers; the count of True or the texts, in the first of three cells."""
    if "yes" in summary:
        return [f"yes {summary['yes']} times", "", ""]
    if "texts" in summary:
        return ["; ".join(summary["texts"]), "", ""]
    return [_text(summary[name]) for name in ("median", "least", "most")]


_TABLES = {"network": _network, "window": _window, "scale": _scale, "mapping": _mapping}
_SHOWN_ELSEWHERE = ("benchmark", "results", "ceilings", "scenarios")


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every number and text of nested mappings and lists, with its path."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(item, (Mapping, list)) for item in value):
        for number, item in enumerate(value):
            yield from _flat(item, f"{name}[{number}]")
    elif isinstance(value, list):
        yield name, ", ".join(_text(item) for item in value)
    else:
        yield name, _text(value)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _size(result: Mapping[str, Any]) -> str:
    return "x".join(str(side) for side in result["size_wh"])


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"


def _spread(stage: Mapping[str, Any] | None) -> str:
    if stage is None:
        return ""
    median, fastest, slowest = (_milliseconds(stage[name]) for name in ("median_s", "fastest_s", "slowest_s"))
    return f"{median} ({fastest} to {slowest})"


def _mebibytes(count: int | None) -> str:
    return "not measured" if count is None else f"{count / 2**20:,.0f}"


SIZE = (8.0, 4.5)
FEWEST_BARS = 3  # fewer bars would be drawn wider


def figures(document: Mapping[str, Any]) -> dict[str, Figure]:
    """Name -> figure; empty for a benchmark without curves."""
    draw = _FIGURES.get(document["benchmark"])
    return {} if draw is None else draw(document)


def _plot_network(document: Mapping[str, Any]) -> dict[str, Figure]:
    """Stages by number of views, one figure per size and dtype, with the roofline as a line."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for result in document["results"]:
        size = "x".join(str(side) for side in result["size_wh"])
        groups.setdefault((size, result["dtype"]), []).append(result)
    drawn = {}
    for (size, dtype), results in groups.items():
        figure, axes = _start(f"{document['model']}, {size}, {dtype}: {_where(document)}")
        stacks = [{name: stage["median_s"] for name, stage in result["stages"].items()} for result in results]
        _stack(axes, [str(result["views"]) for result in results], stacks)
        floors = [sum(stage.get("floor_s", 0.0) for stage in result["stages"].values()) for result in results]
        axes.plot(range(len(results)), floors, "k_", markersize=30, label="roofline of encode, fuse, heads")
        axes.set_xlabel("views")
        figure.legend(loc="outside right upper", fontsize="small")
        drawn[f"network_{size}_{dtype}"] = figure
    return drawn


def _plot_window(document: Mapping[str, Any]) -> dict[str, Figure]:
    """Stages by slide."""
    results = document["results"]
    title = f"{document['model']}, window of {results[0]['views']} views: {_where(document)}"
    figure, axes = _start(title)
    stacks = [
        {name: stage["median_s"] for name, stage in result["stages"].items() if name != "total"}
        for result in results
    ]
    _stack(axes, [str(result["slide"]) for result in results], stacks)
    axes.set_xlabel("new frames per window")
    figure.legend(loc="outside right upper", fontsize="small")
    return {"window": figure}


def _plot_scale(document: Mapping[str, Any]) -> dict[str, Figure]:
    """Time and memory over the number of views."""
    results = [result for result in document["results"] if not result.get("failed")]
    if not results:
        return {}
    figure, axes = _start(f"{document['model']}, one pass: {_where(document)}")
    views = [result["views"] for result in results]
    axes.loglog(views, [result["total_s"] for result in results], "o-", label="seconds")
    known = [result for result in results if result["peak_bytes"]]
    memory = [result["peak_bytes"] / 2**30 for result in known]
    axes.loglog([result["views"] for result in known], memory, "s--", label="peak GiB above the weights")
    axes.set_xticks(views, [str(count) for count in views])
    axes.set_xticks([], minor=True)
    axes.set_ylabel("s, GiB")
    axes.set_xlabel("views")
    axes.legend()
    return {"scale": figure}


_FIGURES = {"network": _plot_network, "window": _plot_window, "scale": _plot_scale}


def _start(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize="medium")
    axes.set_ylabel("seconds")
    axes.grid(axis="y", alpha=0.3)
    return figure, axes


def _stack(axes: Axes, labels: Sequence[str], stacks: Sequence[Mapping[str, float]]) -> None:
    """One bar per label, made of its parts."""
    base = np.zeros(len(stacks))
    for name in dict.fromkeys(name for stack in stacks for name in stack):
        heights = np.array([stack.get(name, 0.0) for stack in stacks])
        axes.bar(range(len(stacks)), heights, bottom=base, width=0.6, label=name)
        base += heights
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlim(-0.6, max(len(labels), FEWEST_BARS) - 0.4)


def _where(document: Mapping[str, Any]) -> str:
    machine = document["machine"]
    return str(machine.get("gpu") or f"{machine['processor']}, {machine['threads']} threads")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options: documents and output folder."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSON printed by a benchmark")
    parser.add_argument("--output", type=Path, required=True, help="folder for report.md and its figures")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write report.md and the figures; returns their paths.  Raises UserError for an invalid file."""
    documents = [(path, read_document(path)) for path in arguments.files]
    with writable(arguments.output):
        arguments.output.mkdir(parents=True, exist_ok=True)

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

"""A benchmark's document as human-readable tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


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
    views, anew = results[0]["views"], _spread(document["full_pass"])
    title = (
        f"From the newest frame to the packed message, {views} views, medians in ms; a full pass takes {anew}"
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

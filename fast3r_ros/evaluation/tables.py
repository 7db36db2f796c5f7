"""Evaluation results as Markdown, JSON and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fast3r_ros.errors import UserError
from fast3r_ros.evaluation.published import published_rows
from fast3r_ros.evaluation.runner import SAME_FRAMES, SETTING, Row
from fast3r_ros.files import read_json, whole_file

PERCENT = (
    *("RRA", "RTA", "mAA", "delta", "valid", "placed", "f_score", "point_error", "tracked", "rejected"),
    "map_outliers",
)
MAX_RESULTS_BYTES = 1 << 28
WHOLE = ("views", "scenes", "failed", "poses", "keyframes", "windows")
LABELS = (*SETTING, "source", "method", "model")
DEGREES = ("rotation", "rotation_error", "direction_error", "rpe_rotation")
# picture -> its panels: table, column, title
PICTURES = {
    "pose": (
        ("pose", "RRA@15", "RRA@15 (%)"),
        ("pose", "RTA@15", "RTA@15 (%)"),
        ("pose", "mAA(30)", "mAA(30) (%)"),
    ),
    "reconstruction": (
        ("reconstruction", "point_error", "median point error (% of depth)"),
        ("reconstruction", "chamfer", "chamfer distance (m)"),
    ),
    "more_views": (
        ("pose" + SAME_FRAMES, "rotation_error", "rotation error (°)"),
        ("pose" + SAME_FRAMES, "direction_error", "error of the direction of motion (°)"),
        ("pose" + SAME_FRAMES, "RRA@15", "RRA@15 (%)"),
        ("pose" + SAME_FRAMES, "RTA@15", "RTA@15 (%)"),
        ("reconstruction" + SAME_FRAMES, "point_error", "median point error (% of depth)"),
    ),
}


def markdown(report: Mapping[str, Any]) -> str:
    """The report of `cli.evaluate` as a Markdown page; published rows are marked as such."""
    lines = [f"# {report['model']} on {report['dataset']}", ""]
    lines += [f"{name}: {value}  " for name, value in report["settings"].items() if value != ""]
    for table, content in report["tables"].items():
        rows = list(content["mean"])
        lines += ["", f"## {table}", ""]
        if not rows:
            lines.append("Nothing to score: the dataset lacks what this table needs.")
            continue
        published = published_rows(report["dataset"], table)
        for row in published:
            rows.append({"source": f"published: {row.method} ({row.source})", **row.values})
        if published:
            rows = [{"source": row.pop("source", "measured"), **row} for row in (dict(row) for row in rows)]
        lines += _table(rows)
    if report.get("problems"):
        lines += ["", "## failed", "", *(f"- {problem}" for problem in report["problems"])]
    return "\n".join(lines) + "\n"


def check_folder(folder: Path) -> None:
    """Raises UserError when `write` would replace files that are not from an earlier evaluation."""
    names = ["results.json", "results.md", *(f"{name}.png" for name in PICTURES)]
    present = [name for name in names if (folder / name).exists()]
    if not present:
        return
    try:
        content = read_json(folder / "results.json", MAX_RESULTS_BYTES)
    except UserError:
        content = None
    if not isinstance(content, dict) or not {"dataset", "model", "tables"} <= content.keys():
        raise UserError(
            f"{folder / present[0]} is not from an earlier evaluation and would be replaced; choose another "
            "--output"
        )


def write(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write results.json, results.md and the pictures; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    texts = {"results.json": json.dumps(_json_ready(report), indent=1), "results.md": markdown(report)}
    for name, text in texts.items():
        with whole_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
        written.append(folder / name)
    for name, panels in PICTURES.items():
        filled = [panel for panel in panels if report["tables"].get(panel[0], {}).get("mean")]
        if filled:
            with whole_file(folder / f"{name}.png") as temporary:
                _figure(report["tables"], filled).savefig(temporary, dpi=120)
            written.append(folder / f"{name}.png")
    return written


def _table(rows: Sequence[Row]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    heading = [_heading(name) for name in names]
    lines = ["| " + " | ".join(heading) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(_cell(name, row.get(name)) for name in names) + " |" for row in rows]
    return lines


def _heading(name: str) -> str:
    if name.startswith(PERCENT):
        return f"{name} (%)"
    return f"{name} (°)" if name in DEGREES else name


def _cell(name: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, str) or name in LABELS:
        return str(value)
    if name in WHOLE:
        return f"{value:.0f}"
    return f"{100 * value:.1f}" if name.startswith(PERCENT) else f"{value:.4g}"


def _figure(tables: Mapping[str, Any], panels: Sequence[tuple[str, str, str]]) -> Figure:
    """One panel per score."""
    figure = Figure(figsize=(3.4 * len(panels), 3.4), layout="constrained")
    places = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (table, name, title) in zip(places, panels, strict=True):
        _draw(axes, tables[table]["mean"], tables[table]["scenes"], name)
        axes.set(title=title, xlabel="views", ylim=(0, None))
        axes.grid(alpha=0.3)
    places[0].legend(title="mean over scenes", fontsize=8)
    return figure


def _draw(axes: Axes, mean: Sequence[Row], scenes: Sequence[Row], name: str) -> None:
    """A score over the number of views: a line per head and index strategy, dots for the scenes."""
    factor = 100 if name.startswith(PERCENT) else 1
    kinds = list(dict.fromkeys(_kind(row) for row in mean))
    networks = [kind for kind in kinds if kind[2]]
    for kind in kinds:
        lines = [
            ([row["views"] for row in chosen], [factor * row.get(name, math.nan) for row in chosen])
            for rows in (mean, scenes)
            for chosen in [[row for row in rows if _kind(row) == kind]]
        ]
        color = f"C{networks.index(kind)}" if kind in networks else "0.6"
        axes.plot(*lines[0], "o-", color=color, label=_label(*kind))
        axes.plot(*lines[1], ".", color=color, alpha=0.15)
    axes.set_xticks(sorted({row["views"] for row in mean}))


def _kind(row: Row) -> tuple[str, str, str]:
    return row.get("model", ""), row["head"], row["indices"]


def _label(model: str, head: str, indices: str) -> str:
    return f"{model} {head} head, {indices}".strip() if indices else head


def _json_ready(value: Any) -> Any:
    """NaN and infinity become null, because strict JSON has neither."""
    if isinstance(value, Mapping):
        return {key: _json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_ready(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Evaluation results as Markdown, JSON and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fast3r_ros.evaluation.published import published_rows
from fast3r_ros.evaluation.runner import SETTING, Row
from fast3r_ros.io.files import whole_file

PERCENT = ("RRA", "RTA", "mAA", "delta", "valid", "placed", "f_score", "point_error", "tracked", "rejected")
WHOLE = ("views", "scenes", "failed", "poses", "keyframes", "windows")
LABELS = (*SETTING, "source")
# table -> (column, title) of its pictures
CURVES = {
    "pose": (("RRA@15", "RRA@15 (%)"), ("RTA@15", "RTA@15 (%)"), ("mAA(30)", "mAA(30) (%)")),
    "reconstruction": (
        ("point_error", "median point error (% of depth)"),
        ("chamfer", "chamfer distance (m)"),
    ),
}


def markdown(report: Mapping[str, Any]) -> str:
    """The report of `cli.evaluate` as a page: a table each, with published rows named as such."""
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
    return "\n".join(lines) + "\n"


def write(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write results.json, results.md and the pictures; returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    texts = {"results.json": json.dumps(_json_ready(report), indent=1), "results.md": markdown(report)}
    for name, text in texts.items():
        with whole_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
        written.append(folder / name)
    for table, curves in CURVES.items():
        content = report["tables"].get(table)
        if not content or not content["mean"]:
            continue
        figure = _figure(content["mean"], content["scenes"], curves)
        with whole_file(folder / f"{table}.png") as temporary:
            figure.savefig(temporary, dpi=120)
        written.append(folder / f"{table}.png")
    return written


def _table(rows: Sequence[Row]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    heading = [f"{name} (%)" if name.startswith(PERCENT) else name for name in names]
    lines = ["| " + " | ".join(heading) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(_cell(name, row.get(name)) for name in names) + " |" for row in rows]
    return lines


def _cell(name: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, str) or name in LABELS:
        return str(value)
    if name in WHOLE:
        return f"{value:.0f}"
    return f"{100 * value:.1f}" if name.startswith(PERCENT) else f"{value:.4g}"


def _figure(mean: Sequence[Row], scenes: Sequence[Row], curves: Sequence[tuple[str, str]]) -> Figure:
    """Each score over the number of views, one line per head and index strategy, over dots for the scenes."""
    figure = Figure(figsize=(4.2 * len(curves), 3.4), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
        factor = 100 if name.startswith(PERCENT) else 1
        for kind in dict.fromkeys((row["head"], row["indices"]) for row in mean):
            chosen = [row for row in mean if (row["head"], row["indices"]) == kind]
            heights = [factor * row.get(name, math.nan) for row in chosen]
            (line,) = axes.plot([row["views"] for row in chosen], heights, "o-", label=_label(*kind))
            dots = [row for row in scenes if (row["head"], row["indices"]) == kind]
            axes.plot(
                [row["views"] for row in dots],
                [factor * row.get(name, math.nan) for row in dots],
                ".",
                color=line.get_color(),
                alpha=0.15,
            )
        axes.set(title=title, xlabel="views", ylim=(0, None))
        axes.set_xticks(sorted({row["views"] for row in mean}))
        axes.grid(alpha=0.3)
        axes.legend(title="mean over scenes", fontsize=8)
    return figure


def _label(head: str, indices: str) -> str:
    return f"{head} head, {indices}" if indices else head


def _json_ready(value: Any) -> Any:
    """NaN and infinity as null, which strict JSON has no word for."""
    if isinstance(value, Mapping):
        return {key: _json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_ready(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

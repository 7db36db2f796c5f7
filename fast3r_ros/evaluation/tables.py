"""The tables of an evaluation, and published numbers of others, never mixed with measured ones.

All published rows are from the paper "Fast3R: Towards 3D Reconstruction of 1000+ Images in One Forward Pass"
(Yang et al., CVPR 2025, arXiv 2501.13928v2), those of other methods as given in that paper.  Lengths are
converted to metres: the paper scales those of 7-Scenes and NRGBD by 100, and gives no unit for DTU, whose own
unit is the millimetre.  The paper's other numbers are omitted: they have no counterpart in our tables (frames
per second; Table 5, where means and medians cannot be distinguished) or no loader (RealEstate10K, ETH3D).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fast3r_ros.errors import UserError
from fast3r_ros.evaluation.runner import SAME_FRAMES, SETTING, Row
from fast3r_ros.files import read_json, whole_file

PAPER = "Yang et al., Fast3R, CVPR 2025"


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published table.

    values: with the names and units of our tables; missing ones were not published.  source: the paper, its
    table and conditions.
    """

    dataset: str
    table: str
    method: str
    source: str
    values: Mapping[str, float]


def _co3d_poses() -> list[PublishedRow]:
    """Table 1, in percent.  None: not given."""
    names = ("RRA@15", "RRA@5", "RTA@15", "RTA@5", "mAA(30)")
    rows: dict[str, tuple[float | None, ...]] = {
        "COLMAP + SuperPoint/SuperGlue": (36.1, 24.4, 27.3, 17.2, 25.3),
        "PixSfM": (33.7, 26.1, 32.9, 17.6, 30.1),
        "RelPose": (57.1, None, None, None, None),
        "PosReg": (53.2, None, 49.1, None, 45.0),
        "PoseDiffusion": (80.5, 59.5, 79.8, 61.7, 66.5),
        "RelPose++, 8 views": (85.5, None, None, None, None),
        "DUSt3R": (96.2, None, 86.8, None, 76.7),
        "MASt3R": (94.6, 93.2, 91.9, 86.2, 81.8),
        "Fast3R without outdoor training data": (99.7, 97.4, 87.1, 76.1, 82.5),
        "Fast3R": (96.2, 90.2, 81.6, 68.2, 75.0),
    }
    return [
        PublishedRow(
            "co3d",
            "pose",
            method,
            f"{PAPER}, Table 1, 10 random views",
            {name: value / 100 for name, value in zip(names, values, strict=True) if value is not None},
        )
        for method, values in rows.items()
    ]


def _medians(
    dataset: str, conditions: str, metres: float, rows: Mapping[str, tuple[float, float]]
) -> list[PublishedRow]:
    """Median accuracy and completion.  metres: length of the table's unit."""
    return [
        PublishedRow(
            dataset,
            "reconstruction",
            method,
            f"{PAPER}, {conditions}",
            {"accuracy_median": accuracy * metres, "completion_median": completion * metres},
        )
        for method, (accuracy, completion) in rows.items()
    ]


def _depth(dataset: str, percent: Mapping[str, float]) -> list[PublishedRow]:
    """AbsRel of the multi-view depth evaluation."""
    source = f"{PAPER}, Table 7"
    return [
        PublishedRow(dataset, "depth", method, source, {"AbsRel": value / 100})
        for method, value in percent.items()
    ]


PUBLISHED = (
    *_co3d_poses(),
    *_medians(
        "7scenes",
        "Table 3, every 20th frame",
        0.01,
        {
            "FrozenRecon": (7.62, 2.31),
            "DUSt3R, 224 px": (1.23, 0.91),
            "Spann3R": (1.48, 0.85),
            "Fast3R": (1.58, 0.93),
        },
    ),
    *_medians(
        "nrgbd",
        "Table 3, every 40th frame",
        0.01,
        {
            "FrozenRecon": (20.59, 6.31),
            "DUSt3R, 224 px": (2.51, 1.03),
            "Spann3R": (3.15, 1.10),
            "Fast3R": (3.40, 1.01),
        },
    ),
    *_medians(
        "dtu",
        "Table 4, every 5th of 49 frames",
        0.001,
        {
            "DUSt3R": (1.159, 0.914),
            "DUSt3R, 224 px": (1.297, 1.002),
            "Spann3R": (2.268, 1.295),
            "Fast3R": (1.706, 0.857),
        },
    ),
    *_depth("scannet", {"COLMAP dense": 38.0, "DUSt3R, 224 px": 5.86, "DUSt3R": 4.93, "Fast3R": 6.27}),
    *_depth("dtu", {"COLMAP dense": 20.8, "DUSt3R, 224 px": 2.76, "DUSt3R": 3.52, "Fast3R": 3.92}),
)


def published_rows(dataset: str, table: str) -> list[PublishedRow]:
    """The published rows for a table of a dataset."""
    return [row for row in PUBLISHED if row.dataset == dataset and row.table == table]


PERCENT = (
    *("RRA", "RTA", "mAA", "delta", "valid", "placed", "f_score", "point_error", "tracked", "rejected"),
    "map_outliers",
)
MAX_RESULTS_BYTES = 1 << 28
WHOLE = ("views", "scenes", "failed", "poses", "keyframes", "windows")
LABELS = (*SETTING, "source", "method", "model")
DEGREES = ("rotation", "rotation_error", "direction_error", "rpe_rotation")
_TRAJECTORY = (
    "ate: RMSE of positions after one similarity, ate_percent: of the path; ate_se3: after a rigid "
    "alignment; rotation: RMSE of attitudes; rpe: RMSE between consecutive poses; scale: true by estimated "
    "length; path: true length."
)
# table -> what its columns are; lengths are the ground truth's
EXPLANATIONS = {
    "pose": "RRA@t, RTA@t: share of view pairs whose relative rotation, direction of translation (up to "
    "sign) is within t degrees. mAA(30): mean over t to 30 of both together. rotation_error, "
    "direction_error: medians. placed: views with a pose.",
    "reconstruction": "After one similarity fitted to the 15 % most confident pixels. point_error: median "
    "distance of a pixel's point from the true one, of the mean depth. accuracy: distance of a point from "
    "the nearest true one; completion: the reverse; chamfer: their mean. normal_consistency: cosine of the "
    "normals. f_score: share of points within 5 % of the mean depth.",
    "depth": "After one scale per view. AbsRel: mean error relative to the depth. delta<1.25: share of "
    "pixels within that factor. valid: pixels with a depth.",
    "trajectory": f"Of one pass. {_TRAJECTORY}",
    "mapper": f"Of the sliding window's keyframes. {_TRAJECTORY} rejected: share of windows. tracked: share "
    "of the time from the first to the last keyframe. map_error: median distance to the true cloud. "
    "map_outliers: points farther than 5 % of the mean depth. thickness: robust standard deviation across "
    "planes.",
}
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
        explanation = EXPLANATIONS.get(table.removesuffix(SAME_FRAMES))
        lines += ["", explanation] if explanation else []
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

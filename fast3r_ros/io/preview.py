"""preview.png: one picture that shows at a glance whether a reconstruction worked.

It holds a verdict, the main numbers, the map from above and from the side with trajectory and frusta, and
some input frames with their depth and confidence.  Drawn without a display.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec, SubplotSpec

from fast3r_ros.files import whole_file
from fast3r_ros.io.map_picture import ESTIMATE, FAINT, INK, draw_from_above, draw_from_the_side, prepare, some
from fast3r_ros.io.trajectory import trajectory_error
from fast3r_ros.mapping.data import Cloud, Float64, PoseEstimate, ViewEstimate

_COLUMNS = 6  # number of views shown
_TITLE = 100  # characters
_SIZES = ((12, 165), (9, 220), (7, 285))  # of the verdict: font size in points, characters per line
_HIGH = 28  # maximum height of its lines together, in points
# limits of the error relative to the static baseline
GOOD, FAIR = 0.2, 0.6


def write_preview(
    path: str | Path,
    *,
    cloud: Cloud,
    trajectory: Sequence[PoseEstimate],
    views: Sequence[ViewEstimate],
    numbers: Mapping[str, object],
    title: str = "",
    truth: Mapping[int, Float64] | None = None,
    unit: str = "map units",
    parts: Sequence[int] = (),
    caveat: str = "",
) -> None:
    """Draw the picture (1600 pixels wide) and write it as PNG.

    cloud, trajectory: in the map frame (z up).  views: in time order; six of them, evenly spread, are shown
    with depth and confidence.  numbers: label -> value, shown in this order, about six of them.  title: name
    of the source.
    truth: stamp in ns -> (4, 4) `world_from_camera` in any frame; it is aligned to the trajectory by one
    similarity before it is drawn.  unit: the map's unit of length.  parts: keyframes of each submap, see
    `Map.parts`.  caveat: reason not to trust the map, whatever it looks like.
    Anything may be empty.
    """
    figure = Figure(figsize=(16, 13), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    left = 0.04
    grid = figure.add_gridspec(
        3, 1, height_ratios=(0.8, 6.2, 6.1), hspace=0.16, left=left, right=0.985, top=0.927, bottom=0.02
    )
    text: dict[str, Any] = {"color": INK, "va": "center"}
    figure.text(left, 0.982, _shortened(title), fontsize=17, fontweight="bold", **text)
    text |= {"va": "top", "color": ESTIMATE if caveat else INK}
    sentence = verdict(cloud, trajectory, truth, parts, caveat)
    figure.text(left, 0.968, **_fitted(sentence), **text)
    lengths = {"lengths": "metres"} if unit == "m" else {"lengths: ratios only,\nno metres": "up to scale"}
    _draw_numbers(figure.add_subplot(grid[0]), {**numbers, **lengths})
    drawing = prepare(cloud, trajectory, views, truth)
    maps = GridSpecFromSubplotSpec(1, 2, grid[1], width_ratios=(1.1, 1), wspace=0.09)
    for column, draw in enumerate((draw_from_above, draw_from_the_side)):
        axes = figure.add_subplot(maps[column])
        draw(axes, drawing)
        axes.set_xlabel(unit, color=FAINT)
    if views:
        _draw_views(figure, grid[2], some(views, _COLUMNS), unit)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png")


def verdict(
    cloud: Cloud,
    trajectory: Sequence[PoseEstimate],
    truth: Mapping[int, Float64] | None,
    parts: Sequence[int] = (),
    caveat: str = "",
) -> str:
    """The caveat, if any; otherwise whether it worked, or, without ground truth, how to check it."""
    if caveat:
        return caveat[0].upper() + caveat[1:]
    if not len(cloud.points):
        return "There is no map: the model could not reconstruct these images."
    if len(parts) > 1:  # one error over all parts would mix their scales
        return (
            f"The camera lost track: {len(parts)} unconnected parts with an unknown scale between "
            f"them; the largest has {parts[0]} of {sum(parts)} keyframes."
        )
    error = trajectory_error(trajectory, truth)
    if error is None:
        return (
            "It worked if walls are single and straight, the trajectory is smooth and depths look like their "
            "images."
        )
    off = f"the error is {error['share_of_path']:.1%} of its length"
    if error["rmse"] < GOOD * error["standing_still"]:
        return f"Good: the trajectory follows the ground truth; {off}."
    if error["rmse"] < FAIR * error["standing_still"]:
        return f"Fair: the trajectory follows the ground truth roughly; {off}."
    return f"Poor: the trajectory has little to do with the ground truth; {off}. Do not trust this map."


def _shortened(text: str) -> str:
    """One line that fits into the picture."""
    return text if len(text) <= _TITLE else f"{text[: _TITLE - 1]}…"


def _fitted(text: str) -> dict[str, Any]:
    """Text and font size of lines that fit between title and numbers, even with long paths in a command."""
    for size, letters in _SIZES:
        lines = [textwrap.fill(line, letters, subsequent_indent="    ") for line in text.splitlines()]
        shown = "\n".join(lines).splitlines()
        if len(shown) * size <= _HIGH:
            break
    return {"s": "\n".join(shown[: int(_HIGH / size)]), "fontsize": size}


def _draw_numbers(axes: Axes, numbers: Mapping[str, object]) -> None:
    axes.axis("off")
    for index, (label, value) in enumerate(numbers.items()):
        x = index / len(numbers)
        axes.text(x, 0.75, str(value), fontsize=17, fontweight="bold", color=INK, va="center")
        axes.text(x, 0.15, label, fontsize=10.5, color=FAINT, va="center")


def _draw_views(figure: Figure, cell: SubplotSpec, views: Sequence[ViewEstimate], unit: str) -> None:
    """One column per view: the frame, its depth and its confidence, with one colour scale per row."""
    depths = [np.where(view.valid, view.points_camera[..., 2], np.nan) for view in views]
    known = np.concatenate([depth[np.isfinite(depth)] for depth in depths])
    near, far = np.percentile(known, (2, 98)) if len(known) else (0.0, 1.0)
    surest = max(float(np.percentile(np.concatenate([view.confidence.ravel() for view in views]), 99)), 1.01)
    depth_style: dict[str, Any] = {"cmap": "turbo_r", "vmin": near, "vmax": far}
    confidence_style: dict[str, Any] = {"cmap": "magma", "norm": LogNorm(1.0, surest, clip=True)}
    labels = (
        "image",
        f"depth\nred {near:.1f} … blue {far:.1f} {unit}\nwhite: not used",
        f"confidence\ndark 1 … bright {surest:.1f}",
    )
    start_ns = min(view.stamp_ns for view in views)
    grid = GridSpecFromSubplotSpec(3, _COLUMNS, cell, hspace=0.04, wspace=0.04)
    for column, (view, depth) in enumerate(zip(views, depths, strict=True)):
        rows: tuple[tuple[Any, dict[str, Any]], ...] = (
            (view.image, {}),
            (depth, depth_style),
            (view.confidence, confidence_style),
        )
        for row, (picture, style) in enumerate(rows):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(picture, **style)
            axes.set(xticks=[], yticks=[], facecolor="white")
            for spine in axes.spines.values():
                spine.set_visible(False)
            if row == 0:
                seconds = (view.stamp_ns - start_ns) / 1e9
                axes.set_title(f"{seconds:.1f} s", loc="left", fontsize=9, color=FAINT, pad=3)
            if column == 0:
                axes.set_ylabel(labels[row], fontsize=9, color=INK)

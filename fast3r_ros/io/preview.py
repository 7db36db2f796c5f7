"""preview.png: one picture that shows at a glance whether a reconstruction worked.

The map from above and from the side with the camera's way and its frusta, some input frames with their depth
and confidence, and the main numbers.  Drawn without a display.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec, SubplotSpec

from fast3r_ros.io.files import whole_file
from fast3r_ros.io.map_picture import FAINT, INK, draw_from_above, draw_from_the_side, prepare, some
from fast3r_ros.mapping.data import Cloud, Float64, PoseEstimate, ViewEstimate

_COLUMNS = 6  # views that are shown


def write_preview(
    path: str | Path,
    *,
    cloud: Cloud,
    trajectory: Sequence[PoseEstimate],
    views: Sequence[ViewEstimate],
    numbers: Mapping[str, object],
    truth: Mapping[int, Float64] | None = None,
    unit: str = "map units",
) -> None:
    """Draw the picture (1600 pixels wide) and write it as PNG.

    cloud, trajectory: in the map frame (z up).  views: in time order; six of them, evenly spread, are shown
    with depth and confidence.  numbers: label -> value, shown in this order, about six of them.
    truth: stamp in ns -> (4, 4) `world_from_camera` in any frame; it is fitted to the trajectory by one
    similarity before it is drawn.  unit: the map's unit of length.  Anything may be empty.
    Raises UserError when the file cannot be written.
    """
    figure = Figure(figsize=(16, 12.4), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        3, 1, height_ratios=(0.8, 6.2, 5.9), hspace=0.17, left=0.04, right=0.985, top=0.985, bottom=0.02
    )
    _draw_numbers(figure.add_subplot(grid[0]), numbers)
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


def _draw_numbers(axes: Axes, numbers: Mapping[str, object]) -> None:
    axes.axis("off")
    for index, (label, value) in enumerate(numbers.items()):
        x = index / len(numbers)
        axes.text(x, 0.75, str(value), fontsize=17, fontweight="bold", color=INK, va="center")
        axes.text(x, 0.15, label, fontsize=10.5, color=FAINT, va="center")


def _draw_views(figure: Figure, cell: SubplotSpec, views: Sequence[ViewEstimate], unit: str) -> None:
    """A column per view: the frame, its depth and its confidence, with one colour scale per row."""
    depths = [np.where(view.valid, view.points_camera[..., 2], np.nan) for view in views]
    known = np.concatenate([depth[np.isfinite(depth)] for depth in depths])
    near, far = np.percentile(known, (2, 98)) if len(known) else (0.0, 1.0)
    surest = max(float(np.percentile(np.concatenate([view.confidence.ravel() for view in views]), 99)), 1.01)
    depth_style: dict[str, Any] = {"cmap": "turbo_r", "vmin": near, "vmax": far}
    confidence_style: dict[str, Any] = {"cmap": "magma", "norm": LogNorm(1.0, surest, clip=True)}
    labels = ("input", f"depth\n{near:.1f} to {far:.1f} {unit}", f"confidence\n1 to {surest:.1f}")
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
            axes.set(xticks=[], yticks=[], facecolor="#f4f5f7")
            for spine in axes.spines.values():
                spine.set_visible(False)
            if column == 0:
                axes.set_ylabel(labels[row], fontsize=9, color=INK)

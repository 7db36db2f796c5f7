"""A map drawn from above and from the side: its points, the trajectory and the camera's frusta."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec, SubplotSpec
from numpy.typing import NDArray

from fast3r_ros.files import whole_file
from fast3r_ros.geometry.similarity import fit_similarity
from fast3r_ros.io.cameras import frustum_segments, trajectory_error
from fast3r_ros.mapping.data import Cloud, Float64, PoseEstimate, UInt8, ViewEstimate

MAX_FRUSTA = 24
INK, FAINT, LINE = "#1f2430", "#6b7280", "#d9dce1"
ESTIMATE, TRUTH = "#e4572e", "#2a9d8f"
_VIEW_COLUMNS = 760  # pixels across a drawn cloud


@dataclass(frozen=True)
class MapDrawing:
    """The content of a drawing, in the map frame rotated about z so that the longer side lies along x.

    points: (N, 3).  colors: (N, 3) uint8.  trajectory, ground_truth: (M, 3) camera positions.
    frusta: (F, 2, 3) lines.  low, high: (3,) corners of the part that is drawn.
    """

    points: Float64
    colors: UInt8
    trajectory: Float64
    ground_truth: Float64
    frusta: Float64
    low: Float64
    high: Float64


def prepare(
    cloud: Cloud,
    trajectory: Sequence[PoseEstimate],
    views: Sequence[ViewEstimate],
    truth: Mapping[int, Float64] | None,
) -> MapDrawing:
    """Rotate a map, its trajectory and its views for drawing; see `write_preview` for the arguments."""
    positions = np.array([pose.map_from_camera[:3, 3] for pose in trajectory], np.float64).reshape(-1, 3)
    ground_truth = _aligned_truth(trajectory, truth or {})
    points = cloud.points.astype(np.float64)
    turn = _turn_longer_side_to_x(points if len(points) >= 3 else positions)
    points, positions, ground_truth = points @ turn.T, positions @ turn.T, ground_truth @ turn.T
    low, high = _extent(points, np.vstack([positions, ground_truth]))
    size = _frustum_size(positions, float(np.hypot(*(high - low)[:2])))
    if views:
        lines = [_view_frustum(view, size) for view in some(views, MAX_FRUSTA)]
    else:
        lines = [frustum_segments(pose.map_from_camera, size=size) for pose in some(trajectory, MAX_FRUSTA)]
    frusta = np.concatenate(lines) @ turn.T if lines else np.zeros((0, 2, 3))
    inside = np.all((points >= low) & (points <= high), axis=1)
    return MapDrawing(points[inside], cloud.colors[inside], positions, ground_truth, frusta, low, high)


def _frustum_size(trajectory: Float64, across: float) -> float:
    """Depth of the frusta: small enough not to hide the trajectory, large enough to be visible.

    trajectory: (M, 3) camera positions.  across: the map's diagonal from above.
    """
    reach = float(np.linalg.norm(np.ptp(trajectory, axis=0))) if len(trajectory) else across
    return float(np.clip(0.1 * reach, 0.018 * across, 0.045 * across))


def some(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly spread, including the first and the last."""
    if len(items) <= count:
        return list(items)
    return [items[round(index)] for index in np.linspace(0, len(items) - 1, count)]


def draw_from_above(axes: Axes, drawing: MapDrawing) -> None:
    """The map as a floor plan; points above the camera, such as a ceiling, are omitted."""
    visible = np.ones(len(drawing.points), bool)
    if len(drawing.trajectory):
        margin = 0.1 * (drawing.high[2] - drawing.low[2])
        visible = drawing.points[:, 2] <= drawing.trajectory[:, 2].max() + margin
    nearer = drawing.points[visible, 2]
    _draw(axes, drawing, 1, drawing.points[visible], drawing.colors[visible], nearer)
    axes.set_title("from above, up to the camera", loc="left", fontsize=12, color=INK)


def draw_from_the_side(axes: Axes, drawing: MapDrawing) -> None:
    """The map as an elevation, seen along +y; the half in front of the trajectory is cut away."""
    visible = np.ones(len(drawing.points), bool)
    if len(drawing.trajectory):
        margin = 0.05 * (drawing.high[1] - drawing.low[1])
        visible = drawing.points[:, 1] >= drawing.trajectory[:, 1].min() - margin
    nearer = -drawing.points[visible, 1]
    _draw(axes, drawing, 2, drawing.points[visible], drawing.colors[visible], nearer)
    axes.set_title("from the side, cut open", loc="left", fontsize=12, color=INK)


def _draw(
    axes: Axes, drawing: MapDrawing, vertical: int, points: Float64, colors: UInt8, nearer: Float64
) -> None:
    """x to the right, the axis `vertical` upwards; the point with the largest `nearer` covers the others."""
    low, high, plane = drawing.low, drawing.high, [0, vertical]
    order = np.argsort(nearer, kind="stable")
    picture = _splat(points[order][:, plane], colors[order], low[plane], high[plane])
    axes.imshow(picture, extent=(low[0], high[0], low[vertical], high[vertical]), zorder=1)
    axes.add_collection(
        LineCollection(
            list(drawing.frusta[:, :, plane]), colors=ESTIMATE, linewidths=0.7, alpha=0.45, zorder=3
        )
    )
    if len(drawing.trajectory):
        axes.plot(
            *drawing.trajectory[:, plane].T,
            color=ESTIMATE,
            lw=4.5,
            label="estimated trajectory and views",
            zorder=4,
        )
    if len(drawing.ground_truth):  # thin and in front, so that the estimate stays visible
        axes.plot(
            *drawing.ground_truth[:, plane].T, color=TRUTH, lw=2.2, ls="--", label="ground truth", zorder=5
        )
    if len(drawing.trajectory):
        start: dict[str, Any] = {"marker": "o", "ms": 9, "mfc": "white", "mec": ESTIMATE, "mew": 2, "ls": ""}
        axes.plot(*drawing.trajectory[:1, plane].T, label="start", zorder=6, **start)
        outside: dict[str, Any] = {"bbox_to_anchor": (1.0, 1.0), "loc": "lower right", "frameon": False}
        # outside the plot, so that it hides no point
        axes.legend(ncols=3, fontsize=9, columnspacing=1.2, handlelength=1.6, **outside)
    axes.set_facecolor("#f4f5f7")
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_axisbelow(True)
    axes.grid(color=LINE, lw=0.6)
    axes.tick_params(colors=FAINT, labelsize=9)
    for spine in axes.spines.values():
        spine.set_color(LINE)


def _splat(points: Float64, colors: UInt8, low: Float64, high: Float64) -> UInt8:
    """Points (N, 2) as an image (rows, columns, 4); later ones cover earlier ones, gaps are transparent."""
    span = high - low
    rows = min(max(round(_VIEW_COLUMNS * span[1] / span[0]), 1), 4 * _VIEW_COLUMNS)
    spacing = np.sqrt(rows * _VIEW_COLUMNS / max(len(points), 1))
    size = int(np.clip(round(1.2 * spacing), 2, 6))  # sparse maps need larger dots to look solid
    picture = np.zeros((rows + size, _VIEW_COLUMNS + size, 4), np.uint8)
    column = ((points[:, 0] - low[0]) / span[0] * (_VIEW_COLUMNS - 1)).astype(int)
    row = ((high[1] - points[:, 1]) / span[1] * (rows - 1)).astype(int)
    for down in range(size):
        for right in range(size):
            picture[row + down, column + right, :3] = colors
            picture[row + down, column + right, 3] = 255
    return picture[:rows, :_VIEW_COLUMNS]


def _aligned_truth(trajectory: Sequence[PoseEstimate], truth: Mapping[int, Float64]) -> Float64:
    """Ground-truth positions aligned to the map by a similarity, (N, 3) in time order; none on failure."""
    both = [pose for pose in trajectory if pose.stamp_ns in truth]
    try:
        # same direction of the fit as in evaluations: a stationary estimate shows a large ground truth
        world_from_map = fit_similarity(
            np.array([pose.map_from_camera[:3, 3] for pose in both]).reshape(-1, 3),
            np.array([truth[pose.stamp_ns][:3, 3] for pose in both]).reshape(-1, 3),
        )
    except ValueError:
        return np.zeros((0, 3))
    ground_truth = np.array([truth[stamp][:3, 3] for stamp in sorted(truth)])
    return np.asarray(world_from_map.inverse().apply(ground_truth))


def _view_frustum(view: ViewEstimate, size: float) -> Float64:
    height, width = view.image.shape[:2]
    return frustum_segments(view.map_from_camera, view.intrinsics, width, height, size=size)


def _turn_longer_side_to_x(points: NDArray[np.floating]) -> Float64:
    """(3, 3) rotation about z after which the smallest upright box around the points is widest along x."""
    ground = points[:: max(1, len(points) // 20000), :2]
    if len(ground) < 3:
        return np.eye(3)
    turns = [_turn_about_z(angle) for angle in np.deg2rad(np.arange(0.0, 180.0, 3.0))]
    corners = [np.percentile(ground @ turn[:2, :2].T, (2, 98), axis=0) for turn in turns]
    sides = [high - low for low, high in corners]
    areas = [width * depth if width >= depth else np.inf for width, depth in sides]
    return turns[int(np.argmin(areas))]


def _turn_about_z(angle: float) -> Float64:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def _extent(points: Float64, positions: Float64) -> tuple[Float64, Float64]:
    """Lowest and highest corner around nearly all points and all camera positions, with a margin."""
    corners = [positions]
    if len(points):
        corners.append(np.percentile(points[:: max(1, len(points) // 200000)], (1, 99), axis=0))
    shown = np.vstack(corners)
    if not len(shown):
        return np.full(3, -1.0), np.full(3, 1.0)
    low, high = shown.min(0), shown.max(0)
    margin = 0.05 * max(float((high - low).max()), 1e-6)
    return low - margin, high + margin


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

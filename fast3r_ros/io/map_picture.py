"""A map drawn from above and from the side: its points, the trajectory and the camera's frusta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from numpy.typing import NDArray

from fast3r_ros.geometry.similarity import fit_similarity
from fast3r_ros.io.frusta import frustum_segments
from fast3r_ros.mapping.data import Cloud, Float64, PoseEstimate, UInt8, ViewEstimate

MAX_FRUSTA = 24
INK, FAINT, LINE = "#1f2430", "#6b7280", "#d9dce1"
ESTIMATE, TRUTH = "#e4572e", "#2a9d8f"
_COLUMNS = 760  # pixels across a drawn cloud


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
        axes.legend(
            ncols=3, fontsize=9, columnspacing=1.2, handlelength=1.6, **outside
        )  # outside the plot, so that it hides no point
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
    rows = min(max(round(_COLUMNS * span[1] / span[0]), 1), 4 * _COLUMNS)
    spacing = np.sqrt(rows * _COLUMNS / max(len(points), 1))
    size = int(np.clip(round(1.2 * spacing), 2, 6))  # sparse maps need larger dots to look solid
    picture = np.zeros((rows + size, _COLUMNS + size, 4), np.uint8)
    column = ((points[:, 0] - low[0]) / span[0] * (_COLUMNS - 1)).astype(int)
    row = ((high[1] - points[:, 1]) / span[1] * (rows - 1)).astype(int)
    for down in range(size):
        for right in range(size):
            picture[row + down, column + right, :3] = colors
            picture[row + down, column + right, 3] = 255
    return picture[:rows, :_COLUMNS]


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

"""The plan of a ring of rooms: the grid cells that are rooms, the route through them, and their doors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def ring_cells(columns: int, rows: int) -> list[tuple[int, int]]:
    """The border cells of a grid, counter-clockwise."""
    if rows == 1:
        return [(column, 0) for column in range(columns)]
    bottom = [(column, 0) for column in range(columns)]
    right = [(columns - 1, row) for row in range(1, rows)]
    top = [(column, rows - 1) for column in range(columns - 2, -1, -1)]
    left = [(0, row) for row in range(rows - 2, 0, -1)]
    return bottom + right + top + left


def route_through(
    cells: Sequence[tuple[int, int]], x_edges: Float64, y_edges: Float64, rng: np.random.Generator
) -> tuple[Float64, Float64]:
    """The closed polyline centre, door, centre, ... and the (D, 2) doors."""
    centers = [
        np.array([(x_edges[column] + x_edges[column + 1]) / 2, (y_edges[row] + y_edges[row + 1]) / 2])
        for column, row in cells
    ]
    closed = len(cells) > 2 and all(abs(a - b) <= 1 for a, b in zip(cells[0], cells[-1], strict=True))
    points, doors = [], []
    for index, center in enumerate(centers):
        points.append(center)
        if index + 1 == len(cells) and not closed:
            break
        after = (index + 1) % len(cells)
        first, second = np.array(cells[index]), np.array(cells[after])
        door = (center + centers[after]) / 2
        axis = int(np.argmax(np.abs(second - first)))
        edges = (x_edges, y_edges)[axis]
        door[axis] = edges[max(first[axis], second[axis])]
        door[1 - axis] = (center + rng.uniform(-0.1, 0.1, 2))[1 - axis]
        points.append(door)
        doors.append(door)
    points += [centers[0]] if closed else points[-2::-1]
    return np.array(points), np.array(doors)


def on_border(door: Float64, cell: Float64) -> bool:
    """Whether a door (2,) lies on the border of a cell: x_min, y_min, x_max, y_max."""
    x0, y0, x1, y1 = cell
    inside = (x0 - 1e-6 <= door[0] <= x1 + 1e-6) and (y0 - 1e-6 <= door[1] <= y1 + 1e-6)
    return inside and bool(np.isclose([door[0] - x0, door[0] - x1, door[1] - y0, door[1] - y1], 0).any())

"""Rooms painted by role: a small model learns them quickly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fast3r_ros.synthetic.textures import GREY, textures_of

Float64 = NDArray[np.float64]


def painted_by_role(
    look: NDArray[np.float32],
    center: Float64,
    axes: Float64,
    half: Float64,
    room: Float64,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """The look (Q, 11) with grey textures, tinted by the role of each rectangle; pictures stay.

    look, center, axes, half: of a `SyntheticScene`.  room: (4,) inner x_min, y_min, x_max, y_max, centred at
    0.
    """
    look = look.copy()
    pictures = np.isin(look[:, 0].astype(np.int64), textures_of("picture"))
    normal, along_wall = axes[:, 2], np.full(len(look), -1)
    on_border = np.abs(np.abs(center[:, :2]) - room[2:]) < 1e-6
    for side in range(4):  # the four walls
        axis, sign = divmod(side, 2)
        along_wall[on_border[:, axis] & (normal[:, axis] * (2 * sign - 1) > 0.99)] = side
    hue = rng.uniform() + np.arange(4) / 4
    for index in np.flatnonzero(~pictures):
        height, upward = center[index, 2], normal[index, 2]
        kinds: tuple[str, ...]
        if upward > 0.5 and height == 0:
            kinds, color, tile = ("planks", "tiles"), np.array([0.85, 0.55, 0.3]), 1.6
        elif upward < -0.5:
            kinds, color, tile = ("noise",), np.array([1.5, 1.5, 1.5]), 1.6
        elif along_wall[index] >= 0:
            kinds, tile = ("bricks", "checks", "tiles", "stripes"), 1.6
            color = 1.25 * _hue(hue[along_wall[index]], 0.55)
        else:
            kinds, color, tile = ("noise", "planks"), 0.75 * _hue(rng.uniform(), 0.9), 0.8
        choice = textures_of(*(GREY + kind for kind in kinds))
        look[index, 0] = choice[rng.integers(len(choice))]
        look[index, 1:3] = 2 * half[index] / tile
        light = 0.85 + 0.15 * abs(normal[index] @ [0.6, 0.3, 0.74])
        look[index, 5:8], look[index, 8:] = color * light * rng.uniform(0.92, 1.08), 0.0
    return look


def _hue(hue: float, saturation: float) -> Float64:
    """An RGB colour of full value."""
    wheel = np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    return 1 - saturation * (1 - wheel.clip(0, 1))

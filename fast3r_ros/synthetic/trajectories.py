"""Seeded camera paths through synthetic scenes.

Poses are (V, 4, 4) float64 `world_from_camera` with the camera in optical axes (x right, y down, z forward)
and the world z up.  Yaw is counter-clockwise from the world's x axis, pitch is positive upwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d

from fast3r_ros.synthetic.rooms import SyntheticScene, is_free

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Motion:
    """The motion of a walking camera; ranges are (low, high), drawn once per walk.

    step: metres between consecutive views.  turn: largest change of yaw between them, radians.
    height: metres above the floor.  pitch, roll: largest tilt, radians, also the size of its sway.
    """

    step: tuple[float, float] = (0.03, 0.25)
    turn: tuple[float, float] = (0.0, 0.12)
    height: tuple[float, float] = (1.0, 1.6)
    pitch: float = 0.1
    roll: float = 0.03


def look(
    position: Float64, yaw: Float64, pitch: Float64 | float = 0.0, roll: Float64 | float = 0.0
) -> Float64:
    """(V, 4, 4) poses of cameras at position (V, 3) with these angles in radians, each (V,)."""
    yaw, pitch, roll = np.broadcast_arrays(np.asarray(yaw, dtype=np.float64), pitch, roll)
    zero = np.zeros_like(yaw)
    forward = np.stack([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)], axis=-1)
    level = np.stack([np.sin(yaw), -np.cos(yaw), zero], axis=-1)
    downward = np.cross(forward, level)
    cosine, sine = np.cos(roll)[..., None], np.sin(roll)[..., None]
    poses = np.zeros((*yaw.shape, 4, 4))
    poses[..., :3, 0] = cosine * level + sine * downward
    poses[..., :3, 1] = cosine * downward - sine * level
    poses[..., :3, 2] = forward
    poses[..., :3, 3] = position
    poses[..., 3, 3] = 1
    return poses


def walk(
    scene: SyntheticScene, rng: np.random.Generator, views: int, motion: Motion | None = None
) -> Float64:
    """A smooth walk of `views` poses inside one room, away from walls and furniture.

    The camera looks roughly ahead, sideways or back; it follows the bends of the path, or turns
    independently.
    """
    motion = motion or Motion()
    for attempt in range(20):
        shrink = 0.8**attempt  # retries a path that does not fit with smaller steps
        step, turn = shrink * rng.uniform(*motion.step), rng.uniform(*motion.turn)
        start = _free_place(scene, rng)
        bend = turn * (rng.uniform(-1, 1) + 0.4 * _smooth(rng, views))
        course = rng.uniform(-np.pi, np.pi) + np.cumsum(bend)
        speed = 1 + 0.4 * _smooth(rng, views)
        moves = np.stack([np.cos(course), np.sin(course)], axis=-1) * (speed * step)[:, None]
        xy = start + np.cumsum(moves, axis=0) - moves[0]
        if is_free(scene, xy, margin=0.35).all() or attempt == 19:
            break
    gaze = rng.choice([0, 0, 0, np.pi / 2, -np.pi / 2, np.pi]) + rng.uniform(-0.6, 0.6)
    swing = bend if rng.random() < 0.5 else turn * (rng.uniform(-1, 1) + 0.4 * _smooth(rng, views))
    yaw = course[0] + gaze + np.cumsum(swing)
    height = rng.uniform(*motion.height) + 0.02 * _smooth(rng, views)
    pitch = motion.pitch * (rng.uniform(-0.7, 0.7) + 0.3 * _smooth(rng, views))
    roll = motion.roll * (rng.uniform(-0.7, 0.7) + 0.3 * _smooth(rng, views))
    return look(np.concatenate([xy, height[:, None]], axis=1), yaw, pitch, roll)


def scattered(
    scene: SyntheticScene,
    rng: np.random.Generator,
    views: int,
    spread: float,
    angle: float,
    motion: Motion | None = None,
) -> Float64:
    """Unordered views, within `spread` metres of the first and `angle` radians of its direction."""
    motion = motion or Motion()
    first = _free_place(scene, rng)
    xy = np.empty((views, 2))
    for index in range(views):
        for _ in range(30):
            xy[index] = first + (rng.uniform(-spread, spread, 2) if index else 0)
            if is_free(scene, xy[index : index + 1])[0]:
                break
        else:
            xy[index] = first
    yaw = rng.uniform(-np.pi, np.pi) + np.where(np.arange(views) == 0, 0, rng.uniform(-angle, angle, views))
    height = rng.uniform(*motion.height) + rng.uniform(-0.3, 0.3, views) * min(spread, 1)
    tilt = rng.uniform(-1, 1, (2, views)) * [[motion.pitch], [motion.roll]]
    return look(np.concatenate([xy, height[:, None]], axis=1), yaw, tilt[0], tilt[1])


def look_around(
    scene: SyntheticScene, rng: np.random.Generator, views: int, sweep: float, radius: float = 0.25
) -> Float64:
    """The camera turns through `sweep` radians on a circle of `radius` metres, looking outwards."""
    center = _free_place(scene, rng, margin=radius + 0.3)
    yaw = rng.uniform(-np.pi, np.pi) + np.linspace(0, sweep, views) * rng.choice([-1, 1])
    xy = center + radius * np.stack([np.cos(yaw), np.sin(yaw)], axis=-1)
    return look(np.concatenate([xy, np.full((views, 1), rng.uniform(1.0, 1.6))], axis=1), yaw)


def route_path(
    scene: SyntheticScene,
    frames: int,
    seed: int = 0,
    laps: float = 1.0,
    height: float = 1.4,
    sway: float = 0.15,
) -> Float64:
    """`frames` evenly spaced poses along the scene's route, looking ahead; the last pose closes the lap.

    sway: maximum deviation of the viewing direction from the direction of travel, radians.
    """
    rng = np.random.default_rng([seed, 11])
    corners = scene.route
    knots = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))])
    fine = np.linspace(0, knots[-1], 4000)
    wrap: Literal["wrap", "nearest"] = "wrap" if np.allclose(corners[0], corners[-1]) else "nearest"

    def smoothed(values: Float64, metres: float) -> Float64:
        sigma = metres / (knots[-1] / len(fine))
        return np.asarray(gaussian_filter1d(values, sigma, axis=0, mode=wrap))

    # straight through doors, rounded in rooms; the viewing direction turns more slowly than the path
    straight = np.stack([np.interp(fine, knots, corners[:, axis]) for axis in (0, 1)], axis=-1)
    curve = smoothed(straight, 0.5)
    direction = smoothed(np.gradient(curve, axis=0), 0.9)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    progress = np.linspace(0, laps, frames)
    at = np.where((progress > 0) & np.isclose(progress % 1.0, 0), 1.0, progress % 1.0) * length[-1]
    xy, heading = (
        np.stack([np.interp(at, length, values[:, axis]) for axis in (0, 1)], axis=-1)
        for values in (curve, direction)
    )
    lap = 2 * np.pi * progress
    wander = sway * np.sin(np.round(length[-1] / 12) * lap + rng.uniform(0, 6))
    bob = 0.02 * np.sin(np.round(length[-1] / 2) * lap)
    course = np.arctan2(heading[:, 1], heading[:, 0])
    return look(np.concatenate([xy, (height + bob)[:, None]], axis=1), course + wander, 0.3 * bob)


def room_path(
    scene: SyntheticScene, frames: int, seed: int = 0, height: float = 1.3, speed: float = 0.05
) -> Float64:
    """A calm walk of `frames` poses, `speed` metres apart, on a closed spline through free places."""
    rng = np.random.default_rng([seed, 12])
    best: Float64 | None = None
    low, high = scene.rooms[0, :2] + 0.8, scene.rooms[0, 2:] - 0.8
    for _ in range(200):
        angle = np.linspace(0, 2 * np.pi, 9)
        radius = np.append(rng.uniform(0.55, 1.0, 8), 0)
        radius[-1] = radius[0]
        points = (low + high) / 2 + np.stack([np.cos(angle), np.sin(angle)], -1) * radius[:, None] * (
            high - low
        ) / 2
        points[-1] = points[0]
        curve = CubicSpline(angle, points, bc_type="periodic")(np.linspace(0, 2 * np.pi, 2000))
        if is_free(scene, curve, margin=0.3).all():
            best = curve
            break
        best = curve if best is None else best
    assert best is not None
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(best, axis=0), axis=1))])
    at = (speed * np.arange(frames)) % length[-1]
    xy = np.stack([np.interp(at, length, best[:, axis]) for axis in (0, 1)], axis=-1)
    center = scene.rooms[0].reshape(2, 2).mean(0)
    # look across the room and slightly ahead, so that neighbouring views overlap
    yaw = np.unwrap(np.arctan2(*(center - xy).T[::-1])) - 0.4
    return look(np.concatenate([xy, np.full((frames, 1), height)], axis=1), yaw)


def _smooth(rng: np.random.Generator, count: int) -> Float64:
    """(count,) values in [-1, 1] that change slowly."""
    knots = max(3, count // 6 + 2)
    values = rng.uniform(-1, 1, knots + 1)
    at = np.linspace(0, knots - 1, count)
    left = np.minimum(at.astype(np.int64), knots - 1)
    share = at - left
    share = share * share * (3 - 2 * share)  # smoothstep: no kink at the knots
    return np.asarray((1 - share) * values[left] + share * values[left + 1])


def _free_place(scene: SyntheticScene, rng: np.random.Generator, margin: float = 0.5) -> Float64:
    """(2,) a free place in a random room; the room's centre if it is too crowded."""
    room = scene.rooms[rng.integers(len(scene.rooms))]
    tries = rng.uniform(room[:2], room[2:], (64, 2))
    for wanted in (margin, margin / 2, 0.1):
        free = tries[is_free(scene, tries, wanted)]
        if len(free):
            return np.asarray(free[0])
    return np.asarray(room.reshape(2, 2).mean(0))

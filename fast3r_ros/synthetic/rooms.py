"""Synthetic indoor scenes of textured rectangles: rooms, corridors, and rings of rooms with doors.

The world is x, y level and z up (REP-103), in metres, with the floor at z = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fast3r_ros.synthetic.floor_plan import on_border, ring_cells, route_through
from fast3r_ros.synthetic.textures import painted_by_role, textures_of

Float64 = NDArray[np.float64]
WALL = 0.15  # thickness of inner walls, metres
DOOR_WIDTH, DOOR_HEIGHT = 1.3, 2.1
CLEARANCE = 0.7  # distance of furniture from the route, metres


@dataclass(frozen=True)
class SyntheticScene:
    """Q one-sided textured rectangles, and the free space for a camera path.

    center: (Q, 3) metres.  axes: (Q, 3, 3), rows are unit u, unit v and the unit normal of the visible side.
    half: (Q, 2) half extents along u and v.  look: (Q, 11) float32: texture index, repeats of the texture
    along u and v, offset along u and v (in repeats), gain (r, g, b), lift (r, g, b).
    rooms: (R, 4) inner x_min, y_min, x_max, y_max.  height: of the rooms.  obstacles: (K, 5) footprints of
    furniture, x, y, half length, half width, yaw.  route: (P, 2) closed polyline through the doors, or empty.
    """

    center: Float64
    axes: Float64
    half: Float64
    look: NDArray[np.float32]
    rooms: Float64
    height: float
    obstacles: Float64
    route: Float64


@dataclass(frozen=True)
class _Rectangle:
    center: Float64
    u: Float64
    v: Float64
    half: tuple[float, float]
    look: NDArray[np.float32]


@dataclass(frozen=True)
class _Paint:
    """A texture, the side of one tile in metres (0: show the texture once), and a colour cast."""

    texture: int
    tile: float
    gain: Float64
    lift: float


@dataclass(frozen=True)
class _Light:
    """Ambient share and the direction to the light; baked into the look of every rectangle."""

    direction: Float64
    ambient: float
    brightness: float

    def on(self, normal: Float64) -> float:
        return self.brightness * (
            self.ambient + (1 - self.ambient) * max(0.0, float(normal @ self.direction))
        )


def room_scene(
    seed: int,
    size: tuple[float, float, float] | None = None,
    furniture: int | None = None,
    painted: bool = False,
) -> SyntheticScene:
    """One closed room with furniture and pictures.

    size: (length, width, height) in metres, drawn at random if None.
    painted: a wooden floor, a white ceiling and one colour per wall, instead of any texture at any place.
    """
    rng = np.random.default_rng([seed, 1])
    if size is None:
        size = (rng.uniform(3.5, 7.5), rng.uniform(3.0, 6.0), rng.uniform(2.3, 3.2))
    length, width, height = size
    room = np.array([-length / 2, -width / 2, length / 2, width / 2])
    count = int(rng.integers(3, 8)) if furniture is None else furniture
    rectangles, obstacles = _furnished_room(rng, room, height, count, doors=(), route=np.zeros((0, 2)))
    scene = _assemble(rectangles, room[None], height, obstacles, np.zeros((0, 2)))
    if not painted:
        return scene
    paint = np.random.default_rng([seed, 4])
    look = painted_by_role(scene.look, scene.center, scene.axes, scene.half, scene.rooms[0], paint)
    return replace(scene, look=look)


def corridor_scene(seed: int) -> SyntheticScene:
    """A long, narrow room."""
    rng = np.random.default_rng([seed, 2])
    return room_scene(seed, (rng.uniform(7, 12), rng.uniform(1.8, 2.6), rng.uniform(2.3, 2.8)), furniture=2)


def ring_scene(seed: int, route_length: float = 60.0, columns: int = 4, rows: int = 3) -> SyntheticScene:
    """Rooms on the border of a columns x rows grid, each joined to the next by a door: a loop to walk.

    The straight route through the doors has about `route_length` metres.  With 2 columns and 1 row the route
    goes through a single door and back.
    """
    rng = np.random.default_rng([seed, 3])
    cells = ring_cells(columns, rows)
    x_edges = np.concatenate([[0], np.cumsum(rng.uniform(0.75, 1.25, columns))])
    y_edges = np.concatenate([[0], np.cumsum(rng.uniform(0.75, 1.25, rows))])
    route, doors = route_through(cells, x_edges, y_edges, rng)
    scale = route_length / float(np.linalg.norm(np.diff(route, axis=0), axis=1).sum())
    x_edges, y_edges, route, doors = x_edges * scale, y_edges * scale, route * scale, doors * scale
    height = float(rng.uniform(2.5, 3.0))
    rectangles: list[_Rectangle] = []
    obstacles: list[Float64] = []
    rooms = []
    for column, row in cells:
        cell = np.array([x_edges[column], y_edges[row], x_edges[column + 1], y_edges[row + 1]])
        room = cell + np.array([1, 1, -1, -1]) * WALL / 2
        own_doors = [door for door in doors if on_border(door, cell)]
        faces, boxes = _furnished_room(rng, room, height, int(rng.integers(4, 8)), own_doors, route)
        rectangles += faces
        obstacles += boxes
        rooms.append(room)
    for door in doors:
        rectangles += _door_frame(rng, door, bool(np.isclose(x_edges, door[0]).any()))
    return _assemble(rectangles, np.array(rooms), height, obstacles, route)


def is_free(scene: SyntheticScene, xy: Float64, margin: float = 0.3) -> NDArray[np.bool_]:
    """(N,) bool: whether the (N, 2) places are in a room and at least `margin` metres from obstacles."""
    low, high = scene.rooms[:, :2] + margin, scene.rooms[:, 2:] - margin
    inside = ((xy[:, None] >= low) & (xy[:, None] <= high)).all(-1).any(-1)
    if len(scene.obstacles) == 0:
        return np.asarray(inside)
    offset = xy[:, None] - scene.obstacles[:, :2]
    cosine, sine = np.cos(scene.obstacles[:, 4]), np.sin(scene.obstacles[:, 4])
    along = np.abs(offset[..., 0] * cosine + offset[..., 1] * sine) - scene.obstacles[:, 2]
    across = np.abs(-offset[..., 0] * sine + offset[..., 1] * cosine) - scene.obstacles[:, 3]
    distance = np.hypot(along.clip(0), across.clip(0))
    return np.asarray(inside & (distance > margin).all(-1))


def _assemble(
    rectangles: Sequence[_Rectangle],
    rooms: Float64,
    height: float,
    obstacles: Sequence[Float64],
    route: Float64,
) -> SyntheticScene:
    u = np.array([rectangle.u for rectangle in rectangles])
    v = np.array([rectangle.v for rectangle in rectangles])
    return SyntheticScene(
        center=np.array([rectangle.center for rectangle in rectangles]),
        axes=np.stack([u, v, np.cross(u, v)], axis=1),
        half=np.array([rectangle.half for rectangle in rectangles], dtype=np.float64),
        look=np.array([rectangle.look for rectangle in rectangles], dtype=np.float32),
        rooms=rooms,
        height=float(height),
        obstacles=np.array(obstacles).reshape(-1, 5),
        route=route,
    )


def _furnished_room(
    rng: np.random.Generator,
    room: Float64,
    height: float,
    count: int,
    doors: Sequence[Float64],
    route: Float64,
) -> tuple[list[_Rectangle], list[Float64]]:
    """The shell with pictures, and `count` pieces of furniture clear of the route."""
    direction = rng.normal(size=3) * [1, 1, 0.5] + [0, 0, 0.6]
    light = _Light(direction / np.linalg.norm(direction), rng.uniform(0.5, 0.85), rng.uniform(0.7, 1.15))
    rectangles = _shell(rng, room, height, light, doors)
    obstacles: list[Float64] = []
    for _ in range(count):
        footprint = _place(rng, room, route)
        if footprint is None:
            continue
        obstacles.append(footprint)
        top = float(rng.choice([rng.uniform(0.35, 0.9), rng.uniform(0.9, 1.6), rng.uniform(1.6, 2.1)]))
        rectangles += _box(rng, footprint, 0.0, min(top, height - 0.1), light)
    return rectangles, obstacles


def _shell(
    rng: np.random.Generator, room: Float64, height: float, light: _Light, doors: Sequence[Float64]
) -> list[_Rectangle]:
    """Floor, ceiling, and four walls with openings for the doors."""
    x0, y0, x1, y1 = room
    middle, half = np.array([(x0 + x1) / 2, (y0 + y1) / 2]), ((x1 - x0) / 2, (y1 - y0) / 2)
    ex, ey = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
    floor = _paint(rng, "planks", "tiles", "checks", "noise")
    ceiling = _paint(rng, "noise", "tiles", "planks", "stripes")
    rectangles = [
        _rectangle(rng, np.array([*middle, 0.0]), ex, ey, half, floor, light),
        _rectangle(rng, np.array([*middle, height]), ex, -ey, half, ceiling, light),
    ]
    corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    common = _paint(rng, *WALL_KINDS)
    for index in range(4):
        paint = common if rng.random() < 0.5 else _paint(rng, *WALL_KINDS)
        start, end = corners[index], corners[(index + 1) % 4]
        rectangles += _wall(rng, start, end, height, paint, light, doors)
    return rectangles


WALL_KINDS = ("bricks", "stripes", "noise", "checks", "tiles", "planks")


def _wall(
    rng: np.random.Generator,
    start: Float64,
    end: Float64,
    height: float,
    paint: _Paint,
    light: _Light,
    doors: Sequence[Float64],
) -> list[_Rectangle]:
    """A wall seen from the left of start -> end, with openings for doors and one or two pictures."""
    length = float(np.linalg.norm(end - start))
    along = (end - start) / length
    inward = np.array([-along[1], along[0]])
    openings = []
    for door in doors:
        position, distance = float((door - start) @ along), float((door - start) @ inward)
        if abs(distance) < WALL and 0 < position < length:
            openings.append((position - DOOR_WIDTH / 2, position + DOOR_WIDTH / 2))
    u, v = np.array([*-along, 0.0]), np.array([0.0, 0, 1])

    def panel(
        left: float, right: float, low: float, high: float, what: _Paint, gap: float = 0.0
    ) -> _Rectangle:
        place = start + along * (left + right) / 2 + inward * gap
        half = ((right - left) / 2, (high - low) / 2)
        return _rectangle(rng, np.array([*place, (low + high) / 2]), u, v, half, what, light)

    edges = [0.0, *[edge for opening in sorted(openings) for edge in opening], length]
    panels = [
        panel(left, right, 0, height, paint) for left, right in zip(edges[::2], edges[1::2], strict=True)
    ]
    panels += [panel(left, right, DOOR_HEIGHT, height, paint) for left, right in openings]
    for _ in range(int(rng.integers(0, 3))):
        wide, tall = rng.uniform(0.4, 1.4), rng.uniform(0.4, 1.0)
        left = rng.uniform(0.1, max(0.2, length - wide - 0.1))
        low = rng.uniform(0.8, max(0.9, height - tall - 0.2))
        if any(left < right_edge and left + wide > left_edge for left_edge, right_edge in openings):
            continue
        panels.append(panel(left, left + wide, low, low + tall, _paint(rng, "picture"), gap=0.02))
    return panels


def _box(
    rng: np.random.Generator, footprint: Float64, low: float, high: float, light: _Light
) -> list[_Rectangle]:
    """Four sides and the top of a box that stands on its footprint."""
    x, y, half_x, half_y, yaw = footprint
    forward = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    left = np.array([-forward[1], forward[0], 0.0])
    up = np.array([0.0, 0, 1])
    middle, half_z = np.array([x, y, (low + high) / 2]), (high - low) / 2
    paint = _paint(rng, "noise", "checks", "planks", "stripes", "tiles", "bricks", scale=0.6)
    top = paint if rng.random() < 0.5 else _paint(rng, "noise", "checks", "stripes", scale=0.6)
    return [
        _rectangle(rng, middle + forward * half_x, left, up, (half_y, half_z), paint, light),
        _rectangle(rng, middle - forward * half_x, -left, up, (half_y, half_z), paint, light),
        _rectangle(rng, middle + left * half_y, -forward, up, (half_x, half_z), paint, light),
        _rectangle(rng, middle - left * half_y, forward, up, (half_x, half_z), paint, light),
        _rectangle(rng, middle + up * half_z, forward, left, (half_x, half_y), top, light),
    ]


def _door_frame(rng: np.random.Generator, door: Float64, in_x: bool) -> list[_Rectangle]:
    """The inside of the opening: two sides, the underside of the lintel and the threshold."""
    through = np.array([1.0, 0, 0]) if in_x else np.array([0, 1.0, 0])
    side = np.array([-through[1], through[0], 0.0])
    up = np.array([0.0, 0, 1])
    middle = np.array([*door, DOOR_HEIGHT / 2])
    paint = _paint(rng, "noise", "planks")
    light = _Light(up, 0.7, 1.0)
    deep, wide, tall = WALL / 2, DOOR_WIDTH / 2, DOOR_HEIGHT / 2
    return [
        _rectangle(rng, middle + side * wide, through, up, (deep, tall), paint, light),
        _rectangle(rng, middle - side * wide, -through, up, (deep, tall), paint, light),
        _rectangle(rng, middle + up * tall, through, -side, (deep, wide), paint, light),
        _rectangle(rng, middle - up * tall, through, side, (deep, wide), paint, light),
    ]


def _place(rng: np.random.Generator, room: Float64, route: Float64) -> Float64 | None:
    """A footprint in the room, mostly at a wall, clear of the route; None if none was found."""
    for _ in range(8):
        half = rng.uniform([0.2, 0.2], [0.8, 0.4])
        yaw = float(rng.choice([0, np.pi / 2]))
        if rng.random() < 0.3:
            yaw += float(rng.uniform(-0.6, 0.6))
        reach_x = abs(half[0] * np.cos(yaw)) + abs(half[1] * np.sin(yaw)) + 0.02
        reach_y = abs(half[0] * np.sin(yaw)) + abs(half[1] * np.cos(yaw)) + 0.02
        reach = np.array([reach_x, reach_y])
        low, high = room[:2] + reach, room[2:] - reach
        if (low >= high).any():
            continue
        xy = rng.uniform(low, high)
        if rng.random() < 0.75:  # push it to a wall
            axis = int(rng.integers(2))
            xy[axis] = low[axis] if rng.random() < 0.5 else high[axis]
        if len(route) == 0 or _distance(route, xy) > float(np.hypot(*half)) + CLEARANCE:
            return np.array([*xy, *half, yaw])
    return None


def _distance(route: Float64, xy: Float64) -> float:
    """Distance in metres of a place from a polyline."""
    start, step = route[:-1], np.diff(route, axis=0)
    share = ((xy - start) * step).sum(-1) / np.maximum((step**2).sum(-1), 1e-12)
    return float(np.linalg.norm(start + share.clip(0, 1)[:, None] * step - xy, axis=-1).min())


def _paint(rng: np.random.Generator, *kinds: str, scale: float = 1.0) -> _Paint:
    choice = textures_of(*kinds)
    texture = int(choice[rng.integers(len(choice))])
    tile = 0.0 if kinds == ("picture",) else scale * rng.uniform(0.8, 2.4)
    return _Paint(texture, tile, rng.uniform(0.65, 1.15, 3), rng.uniform(0, 0.12))


def _rectangle(
    rng: np.random.Generator,
    center: Float64,
    u: Float64,
    v: Float64,
    half: tuple[float, float],
    paint: _Paint,
    light: _Light,
) -> _Rectangle:
    if paint.tile == 0:
        repeats, offset = np.ones(2), np.zeros(2)
    else:
        repeats, offset = 2 * np.array(half) / paint.tile, rng.uniform(0, 1, 2)
    shade = light.on(_cross(u, v))
    look = np.concatenate(
        [[paint.texture], repeats, offset, paint.gain * shade, np.full(3, paint.lift * shade)]
    )
    return _Rectangle(center, u, v, half, look.astype(np.float32))


def _cross(u: Float64, v: Float64) -> Float64:
    """np.cross for two single vectors, without its overhead."""
    ux, uy, uz = u.tolist()
    vx, vy, vz = v.tolist()
    return np.array([uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx])

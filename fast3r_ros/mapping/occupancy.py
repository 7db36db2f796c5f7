"""An occupancy grid from the fused cloud and the rays that observed it.

Heights are relative to the floor, which is found in the cloud, or is the height of the robot's base.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.mapping.data import Float32, Float64, Keyframe
from fast3r_ros.settings import parameter

OCCUPIED, FREE, UNKNOWN = 100, 0, -1
MAX_CELLS = 25_000_000
_RAYS = 800  # per keyframe
_FEWEST_RAYS = 2  # minimum number of rays through a free cell
_RAYS_PER_POINT = 10  # rays that outweigh a point below the obstacle threshold
_MOST_STEPS = 400  # cells along a ray
_HYPOTHESES = 400  # number of planes tried as the floor
_STEEPEST = np.cos(np.deg2rad(40))  # cosine of the maximum tilt of a floor in a map that is not level
_LEVEL = 15.0  # degrees; maximum tilt of the floor for a grid
_PATCH = 0.2  # size of the squares tested for flatness, as a share of the camera's height
_FLAT = 0.12  # maximum height difference of their points, as a share of it
_FEWEST_PATCHES = 12  # minimum number of patches of a floor
_BELOW_SHARE = 0.05  # maximum share of flat squares below it
_THICKNESS = 0.03  # of the floor, as a share of the camera's height
_BASE_ABOVE = 0.1  # metres by which a visible floor may be higher than the base


@dataclass(frozen=True)
class GridConfig:
    """An occupancy grid from the map's points between two heights above the floor."""

    enabled: bool = parameter(False, "Publication of ~/grid", dynamic=True)
    resolution: float = parameter(0.05, "Edge length of a cell, in metres", range=(0.001, 10.0), dynamic=True)
    min_height: float = parameter(
        0.1,
        "Minimum height of an obstacle above the floor, in metres; points below are floor",
        range=(-1000.0, 1000.0),
        dynamic=True,
    )
    max_height: float = parameter(
        1.5,
        "Maximum height of an obstacle above the floor, in metres; points above are ignored",
        range=(-1000.0, 1000.0),
        dynamic=True,
    )
    min_points: int = parameter(
        3, "Minimum number of points that make a cell occupied", range=(1, 10000), dynamic=True, constant=True
    )


@dataclass(frozen=True)
class Occupancy:
    """cells: (rows, columns) int8, y by row and x by column; origin: (2,) x and y of the lower left corner of
    cell (0, 0) in `map`; floor: z of the floor in `map`, below the cameras.
    """

    cells: NDArray[np.int8]
    resolution: float
    origin: Float64
    floor: float


@dataclass(frozen=True)
class Floor:
    """The floor in `map`: its height z at a point (2,), and its slope along x and y, (2,)."""

    z: float
    place: Float64
    slope: Float64

    def height(self, points: Float64 | Float32) -> Float64:
        """Height of points (..., 3) above the floor."""
        return np.asarray(points[..., 2] - self.z - (points[..., :2] - self.place) @ self.slope)

    def nearly(self, other: Floor) -> bool:
        """Whether another floor is the same within a few centimetres."""
        apart = self.z - other.z + (other.place - self.place) @ self.slope
        return bool(abs(apart) < 0.02 and np.abs(self.slope - other.slope).max() < 0.005)


class FloorUnknown(ValueError):
    """The floor is unknown; the message gives the reason."""


@dataclass(frozen=True)
class _Seen:
    """Cells (N, 2) crossed by a keyframe's rays and number of rays, for this pose and floor."""

    keyframe: Keyframe
    floor: Floor
    cells: NDArray[np.int32]
    rays: NDArray[np.int32]


class GridMaker:
    """Makes grids of one growing map; a keyframe's rays are computed again only when it has moved."""

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}
        self._config = GridConfig()

    def make(self, points: Float32, keyframes: Mapping[int, Keyframe], config: GridConfig) -> Occupancy:
        """The grid of the fused cloud's points (N, 3) in `map`, in metres, and the keyframes that saw them.

        A cell is occupied with `min_points` points between the heights.  It is free if the floor was observed
        there, or if rays from a camera crossed it between floor and upper height, and it has no point between
        the heights, or so few that the rays outweigh them.  Raises FloorUnknown, and ValueError when the grid
        would have more than 25 million cells.
        """
        points = points[np.isfinite(points).all(axis=1)]
        held = [keyframe for keyframe in keyframes.values() if keyframe.points is not None]
        if not len(points) or not held:
            raise FloorUnknown("the map is empty")
        floor = self._steady(find_floor(points, held))
        self._look_through(held, floor, config)
        height = floor.height(points)
        kept = (height <= config.max_height) & (height > -max(config.min_height, 0.2))
        cells = np.floor(points[kept, :2] / config.resolution).astype(np.int64)
        high = height[kept] >= config.min_height
        through = np.concatenate([seen.cells for seen in self._seen.values()]).astype(np.int64)
        rays = np.concatenate([seen.rays for seen in self._seen.values()])
        every = np.concatenate([cells, through])
        if not len(every):
            raise FloorUnknown("no point is below grid.max_height")
        low = every.min(axis=0)
        width, length = (int(value) for value in every.max(axis=0) - low + 1)
        if width * length > MAX_CELLS:
            raise ValueError(f"a grid of {width}x{length} cells is too large; use a larger grid.resolution")

        def count(at: NDArray[np.int64], weights: NDArray[np.int32] | None = None) -> Float64:
            index = (at[:, 1] - low[1]) * width + (at[:, 0] - low[0])
            return np.bincount(index, weights, minlength=width * length).astype(np.float64)

        obstacles, ground, passed = count(cells[high]), count(cells[~high]), count(through, rays)
        evidence = passed + ground
        grid = np.full(width * length, UNKNOWN, np.int8)
        looked_at = (ground > 0) | (passed >= _FEWEST_RAYS)
        grid[looked_at & (evidence >= _RAYS_PER_POINT * obstacles)] = FREE
        grid[obstacles >= config.min_points] = OCCUPIED
        return Occupancy(grid.reshape(length, width), config.resolution, low * config.resolution, floor.z)

    def _steady(self, floor: Floor) -> Floor:
        """The floor of the last grid if nearly the same, so that no ray is cast again."""
        last = next(iter(self._seen.values())).floor if self._seen else floor
        return last if last.nearly(floor) else floor

    def _look_through(self, keyframes: Collection[Keyframe], floor: Floor, config: GridConfig) -> None:
        """Update the cells observed by the keyframes."""
        same = config == self._config
        self._config = config
        known, self._seen = self._seen, {}
        for keyframe in keyframes:
            seen = known.get(keyframe.id)
            if (
                seen is None
                or not same
                or seen.floor is not floor
                or _moved(seen, keyframe, config.resolution)
            ):
                seen = _Seen(keyframe, floor, *free_cells(keyframe, floor, config))
            self._seen[keyframe.id] = seen


def _moved(seen: _Seen, keyframe: Keyframe, resolution: float) -> bool:
    """Whether a keyframe's points have since moved by half a cell or more."""
    old, new = seen.keyframe.map_from_local, keyframe.map_from_local
    if seen.keyframe.points is not keyframe.points:
        return True
    if old is new:
        return False
    reach = 2.0 * keyframe.depth
    turn = np.linalg.norm(old.rotation - new.rotation) * reach * new.scale
    stretch = abs(old.scale - new.scale) * reach
    return bool(np.linalg.norm(old.translation - new.translation) + turn + stretch > 0.5 * resolution)


def free_cells(
    keyframe: Keyframe, floor: Floor, config: GridConfig
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Cells (N, 2) between the camera and its points, and the number of rays (N,) through them.

    A ray counts between the floor and the upper height; the cell at its end is not free.
    """
    kept = keyframe.points
    assert kept is not None
    valid = np.flatnonzero(kept.confidence > 0)
    if len(valid) > _RAYS:
        valid = valid[np.linspace(0, len(valid) - 1, _RAYS).astype(np.int64)]
    start = keyframe.map_from_local.translation
    ray = keyframe.map_from_local.apply(kept.points[valid].astype(np.float64)) - start
    length = np.linalg.norm(ray[:, :2], axis=1) / config.resolution  # in cells
    most = int(min(np.ceil(length.max(initial=0.0)), _MOST_STEPS))
    if most < 1:
        return np.zeros((0, 2), np.int32), np.zeros(0, np.int32)
    share = np.arange(most)[None] / np.maximum(length, 1e-9)[:, None]  # of the ray, cell by cell
    climb = floor.height(start + ray) - floor.height(start)
    height = floor.height(start) + share * climb[:, None]
    inside = (share < 1 - 1.5 / np.maximum(length, 1e-9)[:, None]) & (height >= 0)
    inside &= height <= config.max_height
    x, y = ((start[axis] + share * ray[:, axis, None])[inside] for axis in (0, 1))
    cells = np.floor(np.stack([x, y], axis=1) / config.resolution).astype(np.int64)
    if not len(cells):
        return np.zeros((0, 2), np.int32), np.zeros(0, np.int32)
    low = cells.min(axis=0)
    width, depth = (int(value) for value in cells.max(axis=0) - low + 1)
    counted = np.bincount((cells[:, 1] - low[1]) * width + cells[:, 0] - low[0], minlength=width * depth)
    found = np.flatnonzero(counted)
    places = np.stack([found % width, found // width], axis=1) + low
    return places.astype(np.int32), counted[found].astype(np.int32)


def find_floor(points: Float32, keyframes: Collection[Keyframe]) -> Floor:
    """The floor: the lowest large level plane among the points (N, 3) in `map`, or the base's height.

    If the base is known, the map is level.

    Raises FloorUnknown if neither the base's pose nor a floor is known, or the map is not level.
    """
    bases = [
        (k.map_from_camera @ inverse(k.base_from_camera))[2, 3]
        for k in keyframes
        if k.base_from_camera is not None
    ]
    base = float(np.median(bases)) if bases else None
    eyes = np.median([k.map_from_local.translation for k in keyframes], axis=0)
    plane = floor_plane(points, eyes)
    tilt = 90.0 if plane is None else float(np.rad2deg(np.arccos(plane[0][2])))
    if base is None and plane is None:
        raise FloorUnknown("no floor is visible, and the pose of the base is unknown")
    if base is None and tilt > _LEVEL:
        raise FloorUnknown(f"the map is not level: its floor is tilted by {tilt:.0f} degrees")
    if plane is None or tilt > _LEVEL:
        assert base is not None
        return Floor(base, eyes[:2], np.zeros(2))
    normal, centre = plane
    slope = -normal[:2] / normal[2]
    z = float(centre[2] + (eyes[:2] - centre[:2]) @ slope)
    if base is None:
        return Floor(z, eyes[:2], slope)
    return Floor(z if z < base + _BASE_ABOVE else base, eyes[:2], np.zeros(2))


def floor_plane(points: Float32, eye: Float64) -> tuple[Float64, Float64] | None:
    """The floor's upward unit normal (3,) and its centre (3,) among the points (N, 3); None if not visible.

    eye: (3,) centre of the cameras.  Candidates are planes through three flat patches (walls have none) that
    are not steep and have almost no patches below; the one with the most patches wins, level planes before
    tilted ones.
    """
    patches, size = _flat_patches(points[points[:, 2] < eye[2]].astype(np.float64) - eye)
    if len(patches) < _FEWEST_PATCHES:
        return None
    corners = patches[np.random.default_rng(0).integers(0, len(patches), (_HYPOTHESES, 3))]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1)
    normals = normals / np.maximum(lengths, 1e-12)[:, None]
    normals[normals[:, 2] < 0] *= -1
    kept = (normals[:, 2] > _STEEPEST) & (lengths > size**2)
    normals, corners = normals[kept], corners[kept]
    if not len(normals):
        return None
    offset = (normals * corners[:, 0]).sum(axis=1)  # negative: the cameras are at zero
    above = patches @ normals.T - offset  # (P, H)
    thickness = _THICKNESS * np.maximum(-offset, 1e-9)
    on = (np.abs(above) < thickness).sum(axis=0)
    under = (above < -2 * thickness).mean(axis=0)
    on[(under > _BELOW_SHARE) | (on < _FEWEST_PATCHES)] = 0
    level = normals[:, 2] > np.cos(np.deg2rad(_LEVEL))
    best = int((on + len(patches) * level * (on > 0)).argmax())
    if on[best] == 0:
        return None
    floor = patches[np.abs(above[:, best]) < thickness[best]]
    centre = floor.mean(axis=0)
    _, spread, axes = np.linalg.svd(floor - centre, full_matrices=False)
    if spread[1] < size * np.sqrt(len(floor)) / 2:
        return None  # a strip
    return axes[2] * np.sign(axes[2][2]), centre + eye


def _flat_patches(below: Float64) -> tuple[Float64, float]:
    """Centres (P, 3) of the flat squares of a raster over points (N, 3), and the squares' size.

    The points are below the cameras, which are at zero.
    """
    depth = -float(np.quantile(below[:, 2], 0.05)) if len(below) else 0.0
    size = _PATCH * depth
    if size <= 0:
        return np.zeros((0, 3)), 0.0
    raster = np.floor(below[:, :2] / size).astype(np.int64)
    raster -= raster.min(axis=0)
    square = raster[:, 1] * (int(raster[:, 0].max()) + 1) + raster[:, 0]
    order = np.lexsort((below[:, 2], square))
    ordered, square = below[order], square[order]
    first = np.flatnonzero(np.diff(square, prepend=-1))
    count = np.diff(first, append=len(square))
    low = ordered[first + count // 10, 2]
    near = np.add.reduceat(ordered[:, 2] < np.repeat(low, count) + _FLAT * depth, first)
    flat = (count >= 4) & (near >= 0.6 * count)
    middle = np.stack([ordered[first + (near - 1) // 2, axis] for axis in range(3)], axis=1)
    return middle[flat], size

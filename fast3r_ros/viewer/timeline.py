"""When each point of a map was first seen, for showing the map at an earlier time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fast3r_ros.geometry.rigid import inverse, transform_points
from fast3r_ros.io.cameras import CameraRecord
from fast3r_ros.mapping.data import Float32
from fast3r_ros.viewer.point_chunks import STEPS, places

# of the depth buffer: coarse, so that a sparse cloud hides the points behind it
_COLUMNS, _ROWS = 48, 36
_BEHIND = 1.15  # a point is hidden when it is this many times as far away as the nearest in its cell
_MAX_POINTS, _MAX_CAMERAS = 60_000, 60  # limits of the search, for about a second


def first_seen(points: Float32, cameras: Sequence[CameraRecord]) -> NDArray[np.int64]:
    """For each point (N, 3) in the map frame, the stamp in ns of the first camera that sees it, (N,).

    cameras: in time order, at least one.  The cloud itself hides the points behind it.  Points that no camera
    sees, at the edges of views, count as seen by the last.  In a large cloud a point represents those after
    it, which are its neighbours because a map's points are sorted by voxel.
    """
    step = max(1, -(-len(points) // _MAX_POINTS))
    few = cameras[:: max(1, -(-len(cameras) // _MAX_CAMERAS))]
    sample = points[::step]
    stamps = np.full(len(sample), cameras[-1].stamp_ns, np.int64)
    for camera in reversed(few):
        stamps[_seen(sample, camera)] = camera.stamp_ns
    return np.repeat(stamps, step)[: len(points)]


def _seen(points: Float32, camera: CameraRecord) -> NDArray[np.int64]:
    """Indices of the points that a camera sees."""
    in_camera = transform_points(inverse(camera.map_from_camera), points)
    ahead = np.flatnonzero(in_camera[:, 2] > 0)
    depth = in_camera[ahead, 2]
    pixels = in_camera[ahead] @ camera.intrinsics[:2].T / depth[:, None]
    cells = np.floor(pixels / (camera.width, camera.height) * (_COLUMNS, _ROWS)).astype(np.int64)
    inside = np.all((cells >= 0) & (cells < (_COLUMNS, _ROWS)), axis=1)
    cell, depth, ahead = (cells @ (1, _COLUMNS))[inside], depth[inside], ahead[inside]
    nearest = np.full(_COLUMNS * _ROWS, np.inf)
    np.minimum.at(nearest, cell, depth)
    return ahead[depth <= nearest[cell] * _BEHIND]


_SLOT_NS = 100_000_000  # shortest time slot; it doubles when the slots run out
_NEW_MAP = 0.5  # share of new places above which all are dated again


@dataclass(frozen=True)
class Timeline:
    """The time that a map covers, in slots of equal length.

    start_ns: stamp of the start.  duration_s: to the last camera.  slot_s: length of a slot.
    """

    start_ns: int = 0
    duration_s: float = 0.0
    slot_s: float = _SLOT_NS / 1e9

    @staticmethod
    def of(start_ns: int, end_ns: int) -> Timeline:
        """The timeline between two stamps."""
        span, slot = end_ns - start_ns, _SLOT_NS
        while span // slot >= STEPS:  # with doubling, points rarely change slots while a map grows
            slot *= 2
        return Timeline(start_ns, span / 1e9, slot / 1e9)

    def slots(self, stamps_ns: NDArray[np.int64]) -> NDArray[np.uint16]:
        """The slots (N,) of stamps."""
        slots = (stamps_ns - self.start_ns) // round(self.slot_s * 1e9)
        return np.clip(slots, 0, STEPS - 1).astype(np.uint16)

    def slot_at(self, seconds: float) -> int:
        """The slot at a time after the start; the last slot at the end."""
        return STEPS - 1 if seconds >= self.duration_s else int(seconds / self.slot_s + 1e-6)

    def stamp_at(self, seconds: float) -> int:
        """The last stamp in ns of the slot at a time after the start."""
        return self.start_ns + round((self.slot_at(seconds) + 1) * self.slot_s * 1e9) - 1


class Dating:
    """Dates the points of a map that may grow: known places keep their date."""

    def __init__(self) -> None:
        self._cell = 0.0
        self._places = np.zeros(0, np.int64)  # sorted
        self._stamps = np.zeros(0, np.int64)
        self.timeline = Timeline()

    def slots(self, points: Float32, cameras: Sequence[CameraRecord], cell: float) -> NDArray[np.uint16]:
        """The slot (N,) in which each point (N, 3) was first seen; extends the timeline to the last camera.

        cameras: in time order.  cell: side of a place.  At first, and when most of the map is new, places are
        dated by the cameras that see them (`first_seen`); later places get the date of the newest camera.
        Without cameras every slot is 0.
        """
        if not cameras:
            self._places, self._stamps, self.timeline = self._places[:0], self._stamps[:0], Timeline()
            return np.zeros(len(points), np.uint16)
        found, first, which = np.unique(places(points, cell), return_index=True, return_inverse=True)
        at = np.minimum(np.searchsorted(self._places, found), max(len(self._places) - 1, 0))
        known = self._places[at] == found if len(self._places) else np.zeros(len(found), bool)
        start_ns = self.timeline.start_ns
        if cell != self._cell or known.mean() < 1 - _NEW_MAP or start_ns > cameras[0].stamp_ns:
            stamps, start_ns = first_seen(points[first], cameras), cameras[0].stamp_ns
        else:
            stamps = np.full(len(found), cameras[-1].stamp_ns, np.int64)
            stamps[known] = self._stamps[at[known]]
        self._cell, self._places, self._stamps = cell, found, stamps
        self.timeline = Timeline.of(start_ns, cameras[-1].stamp_ns)
        return self.timeline.slots(stamps)[which]

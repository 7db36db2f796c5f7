"""When the places of a map were first seen, for showing the map at an earlier time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fast3r_ros.io.cameras import CameraRecord
from fast3r_ros.mapping.data import Float32
from fast3r_ros.viewer.points import STEPS, places
from fast3r_ros.viewer.visibility import first_seen

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

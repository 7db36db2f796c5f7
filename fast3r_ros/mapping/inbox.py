"""The mapper's inputs: keyframes waiting for a window, and odometry by stamp.  Thread-safe."""

from __future__ import annotations

import bisect
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from fast3r_ros.errors import UserError
from fast3r_ros.geometry.rigid import interpolate
from fast3r_ros.mapping.config import KeyframeConfig
from fast3r_ros.mapping.data import SIMULTANEOUS_NS, Float64, Frame
from fast3r_ros.mapping.keyframes import KeyframeSelector

_KEPT = 20000  # number of poses: some minutes at usual rates
_LONGEST_GAP_NS = 500_000_000  # between two poses that are interpolated


class OdometryBuffer:
    """The newest poses `odom_from_base`, ordered by stamp."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stamps: list[int] = []
        self._poses: list[Float64] = []

    def add(self, stamp_ns: int, odom_from_base: Float64) -> None:
        """Add a pose, also out of order; a second one of the same stamp replaces the first.

        Raises UserError for a matrix that is not a rigid transform.
        """
        pose = np.asarray(odom_from_base, np.float64)
        rotation = pose[:3, :3] if pose.shape == (4, 4) else np.zeros((3, 3))
        if not np.isfinite(pose).all() or np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3:
            raise UserError(f"odometry at {stamp_ns} ns is not a rigid transform: {pose.tolist()}")
        with self._lock:
            place = bisect.bisect_left(self._stamps, stamp_ns)
            if place < len(self._stamps) and self._stamps[place] == stamp_ns:
                self._poses[place] = pose
                return
            self._stamps.insert(place, stamp_ns)
            self._poses.insert(place, pose)
            if len(self._stamps) > _KEPT:
                del self._stamps[: _KEPT // 10], self._poses[: _KEPT // 10]

    def at(self, stamp_ns: int) -> Float64 | None:
        """`odom_from_base` interpolated at a stamp; None outside of the known range or in a gap."""
        with self._lock:
            place = bisect.bisect_left(self._stamps, stamp_ns)
            if place < len(self._stamps) and self._stamps[place] == stamp_ns:
                return self._poses[place]
            if place in (0, len(self._stamps)):
                return None
            before, after = self._stamps[place - 1], self._stamps[place]
            first, second = self._poses[place - 1], self._poses[place]
        if after - before > _LONGEST_GAP_NS:
            return None
        return interpolate(first, second, (stamp_ns - before) / (after - before))

    def clear(self) -> None:
        """Remove all poses."""
        with self._lock:
            self._stamps, self._poses = [], []


SAME_VIEW = 0.5  # share of a keyframe's motion below which a sharper frame shows the same view


@dataclass(frozen=True)
class FrameCounts:
    """Counts of frames: received = used + waiting + dropped (reason -> count).  used: as keyframes."""

    received: int = 0
    used: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def waiting(self) -> int:
        """Frames that are still pending."""
        return self.received - self.used - sum(self.dropped.values())

    def since(self, start: FrameCounts) -> FrameCounts:
        """The counts since `start`, of the frames pending then and of later ones."""
        dropped = Counter(self.dropped)
        dropped.subtract(start.dropped)
        received = self.received - start.received + start.waiting
        return FrameCounts(received, self.used - start.used, {r: n for r, n in dropped.items() if n})


@dataclass(frozen=True)
class Waiting:
    """A pending keyframe; motion: since the previous one, as a share of the image width."""

    frame: Frame
    motion: float


class FrameIntake:
    """Selects keyframes, holds at most `capacity` of them, and counts all frames.  Thread-safe."""

    def __init__(self, config: KeyframeConfig, capacity: int) -> None:
        self._lock = threading.Lock()
        self._selector = KeyframeSelector(config)
        self._capacity = capacity
        self._waiting: list[Waiting] = []
        self._received = self._used = 0
        self._dropped: Counter[str] = Counter()
        self._start = FrameCounts()  # at the last reset

    def offer(self, frame: Frame) -> str:
        """Queue a frame as a pending keyframe, or return the reason why it was dropped.

        If too many are pending, the one that moved least since its predecessor is dropped, never the newest,
        so that the rest still covers the path.  A sharper frame with the same view as its camera's last
        keyframe replaces it while that is pending (counted as `no_motion`).
        """
        with self._lock:
            reason, motion = self._selector.judge(frame)  # a frame that raises here is not counted
            self._received += 1
            near = motion < SAME_VIEW * self._selector.config.motion
            if reason == "no_motion" and near and self._exchange(frame, motion):
                return ""
            if reason:
                self._dropped[reason] += 1
                return reason
            self._waiting.append(Waiting(frame, motion))
            self._drop_overload()
            return ""

    def _exchange(self, frame: Frame, motion: float) -> bool:
        """Replace a camera's last keyframe by a sharper frame.

        Only if the keyframe is pending and no other camera took an image together with it.
        """
        stamp = self._selector.sharper_than(frame.camera)
        together = [i for i in self._waiting if stamp is not None and _together(i.frame.stamp_ns, stamp)]
        if len(together) != 1 or together[0].frame.camera != frame.camera:
            return False
        self._selector.exchange(frame.camera)
        others = [item for item in self._waiting if item is not together[0]]
        self._waiting = [*others, Waiting(frame, together[0].motion + motion)]
        self._dropped["no_motion"] += 1
        return True

    def _drop_overload(self) -> None:
        while len(self._waiting) > self._capacity:
            self._waiting = without_least_motion(self._waiting)
            self._dropped["overload"] += 1

    def take(self) -> list[Frame]:
        """Take all pending keyframes, in time order."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        return sorted((item.frame for item in waiting), key=lambda frame: frame.stamp_ns)

    def drop(self, reason: str, count: int = 1) -> None:
        """Count keyframes dropped after `take`."""
        with self._lock:
            self._dropped[reason] += count

    def use(self, count: int) -> None:
        """Count frames that became keyframes of the map."""
        with self._lock:
            self._used += count

    def lose(self, reason: str, kept: int) -> None:
        """Count the frames taken but not yet counted as dropped, except `kept` of them."""
        with self._lock:
            self._dropped[reason] += self._totals().waiting - len(self._waiting) - kept

    def reset(self, config: KeyframeConfig, capacity: int) -> None:
        """Like `restart`, also without frames held by the caller; counts begin again."""
        self.restart(config, capacity)
        self.lose("restart", 0)
        with self._lock:
            self._start = self._totals()

    def restart(self, config: KeyframeConfig, capacity: int) -> None:
        """Drop the pending keyframes (counted as `restart`) and the known stamps; use new parameters."""
        with self._lock:
            self._dropped["restart"] += len(self._waiting)
            self._waiting = []
            self._selector = KeyframeSelector(config)
            self._capacity = capacity

    def set_config(self, config: KeyframeConfig, capacity: int) -> None:
        """Use other parameters for the next frames; the cameras' state stays."""
        with self._lock:
            self._selector.config = config
            self._capacity = capacity
            self._drop_overload()

    @property
    def waiting(self) -> int:
        """Number of pending keyframes."""
        return len(self._waiting)

    @property
    def newest(self) -> Frame | None:
        """The newest pending keyframe with motion; None if the camera is stationary or none is pending."""
        with self._lock:
            moved = [w.frame for w in self._waiting if w.motion >= self._selector.config.motion]
            return moved[-1] if moved else None

    def counts(self) -> tuple[int, dict[str, int]]:
        """(frames received, dropped by reason) since the last reset."""
        counts = self.totals().since(self._start)
        return counts.received, dict(counts.dropped)

    def totals(self) -> FrameCounts:
        """All frames since the beginning, regardless of resets."""
        with self._lock:
            return self._totals()

    def _totals(self) -> FrameCounts:
        return FrameCounts(self._received, self._used, {r: n for r, n in self._dropped.items() if n})


def _together(stamp_ns: int, other_ns: int) -> bool:
    return abs(stamp_ns - other_ns) <= SIMULTANEOUS_NS


def without_least_motion(waiting: list[Waiting]) -> list[Waiting]:
    """Without the keyframe, except the newest, that moved least; its successor inherits its motion."""
    least = min(range(len(waiting) - 1), key=lambda i: waiting[i].motion)
    after = waiting[least + 1]
    return [
        *waiting[:least],
        replace(after, motion=after.motion + waiting[least].motion),
        *waiting[least + 2 :],
    ]

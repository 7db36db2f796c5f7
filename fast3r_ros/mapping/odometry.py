"""Metric poses of the robot's base, looked up at the stamps of images.  Thread-safe."""

from __future__ import annotations

import bisect
import threading

import numpy as np

from fast3r_ros.errors import UserError
from fast3r_ros.geometry.rotation import matrix_from_vector, vector_from_matrix
from fast3r_ros.mapping.data import Float64

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
        share = (stamp_ns - before) / (after - before)
        pose = first.copy()
        turn = vector_from_matrix(first[:3, :3].T @ second[:3, :3])
        pose[:3, :3] = first[:3, :3] @ matrix_from_vector(share * turn)
        pose[:3, 3] += share * (second[:3, 3] - first[:3, 3])
        return pose

    def clear(self) -> None:
        """Remove all poses."""
        with self._lock:
            self._stamps, self._poses = [], []

"""Where the robot is expected: at a pose that somebody gives, or where odometry has brought it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fast3r_ros.mapping.data import Float64
from fast3r_ros.mapping.map import Keyframe

_NEAREST = 16  # keyframes that are looked at where none is within the radius


@dataclass(frozen=True)
class InitialPose:
    """A pose (4, 4) `map_from_base` in metres that is right within `radius` metres and `angle` radians."""

    map_from_base: Float64
    radius: float
    angle: float

    def near(self, keyframes: Iterable[Keyframe], base_from_camera: Float64) -> set[int]:
        """Ids of the keyframes that may show what a camera there sees: from near it, in about its direction;
        the nearest where there are none.
        """
        map_from_camera = self.map_from_base @ base_from_camera
        held = [keyframe for keyframe in keyframes if keyframe.points is not None]
        if not held:
            return set()
        places = np.stack([keyframe.map_from_local.translation for keyframe in held])
        ahead = np.stack([keyframe.map_from_local.rotation[:, 2] for keyframe in held])
        distance = np.linalg.norm((places - map_from_camera[:3, 3])[:, :2], axis=1)
        along = ahead @ map_from_camera[:3, 2] >= np.cos(min(self.angle, np.pi))
        found = np.flatnonzero(along & (distance <= self.radius))
        if not len(found):
            found = np.argsort(distance)[:_NEAREST]
        return {held[n].id for n in found}

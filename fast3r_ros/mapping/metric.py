"""When the map becomes metric, and how it stays so; what is measured is in `scale`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np

from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.config import ScaleConfig
from fast3r_ros.mapping.data import Float64
from fast3r_ros.mapping.gravity import leveling
from fast3r_ros.mapping.map import Keyframe, Map
from fast3r_ros.mapping.odometry import OdometryBuffer
from fast3r_ros.mapping.scale import Scale, disagrees, estimate_scale

_KEYFRAMES = 200  # the newest tell the scale


class MetricScale:
    """Measures the scale of the submap in work, makes the map metric once it is known, and corrects drift.

    latest: the newest measurement, relative to the map as it is.
    """

    def __init__(self, odometry: OdometryBuffer, base_from_camera: Mapping[str, Float64]) -> None:
        self.latest = Scale()
        self._odometry = odometry
        self._base_from_camera = base_from_camera
        self._from = 0  # the keyframe from which on the scale is measured

    def find(self, map_: Map, submap: int, config: ScaleConfig) -> Sim3 | None:
        """Bring the whole map, or a submap that started later, to metres, once, when the scale is known.

        Returns the change, or None.  The map is levelled, too, if odometry knows the vertical.
        """
        recent = self._recent(map_, submap)
        scale = estimate_scale(config, recent, self._odometry, self._base_from_camera)
        known = map_.known_scale(submap)
        if not known or np.isfinite(scale.sigma):
            self.latest = scale
        if known or scale.sigma > config.accept_sigma:
            return None
        factor = scale.metres_per_unit
        if map_.metres:
            return map_.rescale_submap(submap, factor)
        change = Sim3(factor, leveling(recent, self._odometry, self._base_from_camera), np.zeros(3))
        map_.rescale(change, map_.config.voxel_size or map_.voxel_size * factor, submap)
        return change

    def correct(self, map_: Map, submap: int, live: Sequence[int], config: ScaleConfig) -> None:
        """When a metric map proves to have drifted, scale the keyframes by which the next windows are placed.

        live: their ids, oldest first.  What lies behind stays as it is; from now on the scale is measured on
        these and newer keyframes, so no correction is made twice.
        """
        if not live or not map_.known_scale(submap):
            return
        recent = self._recent(map_, submap)
        scale = estimate_scale(config, recent, self._odometry, self._base_from_camera)
        if disagrees(config, scale):
            map_.rescale_part(live, scale.metres_per_unit)
            self._from = live[0]

    def _recent(self, map_: Map, submap: int) -> list[Keyframe]:
        """The newest keyframes of a submap, in time order."""
        newest = islice(reversed(map_.keyframes.values()), _KEYFRAMES)
        mine = [k for k in newest if k.submap == submap and k.id >= self._from]
        return sorted(mine, key=lambda k: k.stamp_ns)

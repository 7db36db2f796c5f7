"""Making the map metric and correcting its drift; `scale` has the measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np

from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.config import ScaleConfig
from fast3r_ros.mapping.data import Float64
from fast3r_ros.mapping.gravity import at_first_base, leveling
from fast3r_ros.mapping.map import Keyframe, Map
from fast3r_ros.mapping.odometry import OdometryBuffer
from fast3r_ros.mapping.scale import SETTLED_SIGMA, Scale, differs, disagrees, estimate_scale

_KEYFRAMES = 200  # number of newest keyframes used for the scale
_SMALLEST_CHANGE = 1e-4  # minimum relative change of the scale


class MetricScale:
    """Measures the scale of the current submap, makes the map metric once it is known, and corrects drift.

    A scale is adopted while still uncertain, and refined until three standard deviations are one percent or
    the measurements no longer reach back to the submap's start.  latest: the newest measurement, relative to
    the present map.  map_from_first_base: (4, 4) pose of the base at the start, None: the origin.
    """

    def __init__(self, odometry: OdometryBuffer, base_from_camera: Mapping[str, Float64]) -> None:
        self.latest = Scale()
        self.map_from_first_base: Float64 | None = None
        self._odometry = odometry
        self._base_from_camera = base_from_camera
        self._from = 0  # first keyframe of the scale measurement
        self._refined: int | None = None  # submap whose scale is being refined
        self._sigma = np.inf  # of its present scale

    def find(self, map_: Map, submap: int, config: ScaleConfig, last: bool = False) -> Sim3 | None:
        """Convert the map, or a later submap, to metres once the scale is known; refine the scale.

        Returns the change, or None.  The map is also levelled if odometry knows the vertical, and the base's
        first pose becomes its origin.  last: no more measurements will follow.
        """
        recent = self._recent(map_, submap)
        scale = estimate_scale(config, recent, self._odometry, self._base_from_camera)
        known = map_.known_scale(submap)
        if not known or np.isfinite(scale.sigma):
            self.latest = scale
        if known:
            return self._refine(map_, recent, scale, config, last)
        if scale.sigma > config.accept_sigma:
            return None
        factor = scale.metres_per_unit
        self._refined, self._sigma = submap, scale.sigma
        if map_.metres:
            return map_.rescale_submap(submap, factor)
        change = Sim3(factor, leveling(recent, self._odometry, self._base_from_camera), np.zeros(3))
        first = sorted((k for k in map_.keyframes.values() if k.submap == submap), key=lambda k: k.stamp_ns)
        change = at_first_base(change, first, self._base_from_camera, self.map_from_first_base)
        map_.rescale(change, map_.config.voxel_size or map_.voxel_size * factor, submap)
        return change

    def correct(self, map_: Map, submap: int, live: Sequence[int], config: ScaleConfig) -> bool:
        """If a metric map has drifted, rescale the keyframes to which the next windows are registered.

        live: their ids, oldest first.  Older keyframes stay; from now on the scale is measured on these and
        newer keyframes, so that no correction is made twice.  Returns whether it was corrected.
        """
        if not live or not map_.known_scale(submap) or submap == self._refined:
            return False
        recent = self._recent(map_, submap)
        scale = estimate_scale(config, recent, self._odometry, self._base_from_camera)
        if not disagrees(config, scale):
            return False
        map_.rescale_part(live, scale.metres_per_unit)
        self._from = live[0]
        return True

    def _refine(
        self, map_: Map, recent: Sequence[Keyframe], scale: Scale, config: ScaleConfig, last: bool
    ) -> Sim3 | None:
        """Rescale a whole young submap about its newest camera, so that this and map -> odom stay.

        Done when the scale is better known than the adopted one, and a last time when it is final.
        """
        if config.source == "fixed" or not recent or recent[-1].submap != self._refined:
            return None
        if scale.sigma > self._sigma:
            return None
        settled = scale.sigma <= SETTLED_SIGMA or len(recent) >= _KEYFRAMES
        if settled:
            self._refined = None
        elif not (last or differs(config, scale, 1.0)):
            return None
        if abs(np.log(scale.metres_per_unit)) < _SMALLEST_CHANGE:
            return None
        self._sigma = scale.sigma
        about = recent[-1].map_from_local.translation
        return map_.rescale_submap(recent[-1].submap, scale.metres_per_unit, about)

    def _recent(self, map_: Map, submap: int) -> list[Keyframe]:
        """The newest keyframes of a submap, in time order."""
        newest = islice(reversed(map_.keyframes.values()), _KEYFRAMES)
        mine = [k for k in newest if k.submap == submap and k.id >= self._from]
        return sorted(mine, key=lambda k: k.stamp_ns)

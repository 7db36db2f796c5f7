"""The metric scale of the map: its sources, and when it is applied or corrected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.config import ScaleConfig
from fast3r_ros.mapping.data import SIMULTANEOUS_NS, Float32, Float64, Keyframe, ViewEstimate
from fast3r_ros.mapping.gravity import at_first_base, extrinsics, known_extrinsics, leveling
from fast3r_ros.mapping.inbox import OdometryBuffer
from fast3r_ros.mapping.map import Map

_FEWEST = 4  # minimum number of measurements for a scale
SETTLED_SIGMA = 0.0033  # three of these standard deviations are one percent
# prior of the measurements' spread, and its weight in measurements
_PRIOR_SPREAD, _PRIOR_WEIGHT = 0.03, 4
_SIGNIFICANT = 3.0  # standard deviations
_LAYERS = 60  # number of horizontal layers in the search for the floor


@dataclass(frozen=True)
class Scale:
    """metres_per_unit and its relative standard deviation; infinite while unknown."""

    metres_per_unit: float = 1.0
    sigma: float = float("inf")


def estimate_scale(
    config: ScaleConfig,
    keyframes: Sequence[Keyframe],
    odometry: OdometryBuffer,
    base_from_camera: Mapping[str, Float64],
) -> Scale:
    """The scale from the configured source, for the newest keyframes (of one submap, in time order)."""
    if config.source == "none":
        return Scale()
    if config.source == "fixed":
        return Scale(config.metres_per_unit, 0.0)
    weights = None
    if config.source == "odometry":
        logs, weights = odometry_ratios(keyframes, odometry, base_from_camera, config.min_baseline)
    elif config.source == "rig":
        logs, weights = rig_ratios(keyframes, base_from_camera)
    else:
        known = [(k.metric_scale, k.map_from_local.scale) for k in keyframes if np.isfinite(k.metric_scale)]
        logs = np.array([np.log(metric / unit) for metric, unit in known])
    if len(logs) < _FEWEST:
        return Scale()
    mean, sigma = robust_mean(logs, weights)
    prior = _PRIOR_SPREAD * np.sqrt(_PRIOR_WEIGHT / (len(logs) * (len(logs) + _PRIOR_WEIGHT)))
    return Scale(float(np.exp(mean)), float(np.hypot(sigma, prior)))


def disagrees(config: ScaleConfig, scale: Scale) -> bool:
    """Whether measurements on a metric map deviate significantly from one."""
    if config.source == "fixed" or scale.sigma > SETTLED_SIGMA:
        return False
    return differs(config, scale, _SIGNIFICANT)


def differs(config: ScaleConfig, scale: Scale, deviations: float) -> bool:
    """Whether a scale differs from one by more than the hysteresis and `deviations` standard deviations."""
    change = abs(np.log(scale.metres_per_unit))
    return bool(change > max(np.log1p(config.hysteresis), deviations * scale.sigma))


def odometry_ratios(
    keyframes: Sequence[Keyframe],
    odometry: OdometryBuffer,
    base_from_camera: Mapping[str, Float64],
    min_baseline: float,
) -> tuple[Float64, Float64]:
    """Log ratios of path lengths in odometry to those in the map, one per `min_baseline` metres, and weights.

    Path lengths are compared, not positions: odometry drifts, but over a short path its length is correct,
    except for wheel slip, which gives an outlier.  A stationary robot gives no baseline and no ratio.  The
    weight is the path length in the map, so that slipping wheels do not get more weight because they turn
    faster.
    """
    ratios, weights = [], []
    start: tuple[Float64, Keyframe] | None = None
    for keyframe in keyframes:
        odom_from_base = odometry.at(keyframe.stamp_ns)
        if odom_from_base is None:
            start = None
            continue
        place = (odom_from_base @ extrinsics(base_from_camera, keyframe))[:3, 3]
        if start is None or start[1].camera != keyframe.camera:
            start = place, keyframe
            continue
        length = float(np.linalg.norm(place - start[0]))
        if length < min_baseline:
            continue
        in_map = np.linalg.norm(keyframe.map_from_local.translation - start[1].map_from_local.translation)
        weights.append(max(float(in_map), 1e-9))
        ratios.append(np.log(length / weights[-1]))
        start = place, keyframe
    return np.array(ratios), np.array(weights)


def rig_ratios(
    keyframes: Sequence[Keyframe], base_from_camera: Mapping[str, Float64]
) -> tuple[Float64, Float64]:
    """Log ratios of the known to the estimated distance between cameras with simultaneous images.

    Also their weights: a pose averaged over more windows has less noise.
    """
    ratios, weights = [], []
    for i, first in enumerate(keyframes):
        for second in keyframes[i + 1 :]:
            if second.stamp_ns - first.stamp_ns > SIMULTANEOUS_NS:
                break
            places = [known_extrinsics(base_from_camera, keyframe) for keyframe in (first, second)]
            if first.camera == second.camera or places[0] is None or places[1] is None:
                continue
            known = (inverse(places[0]) @ places[1])[:3, 3]
            estimated = (inverse(first.map_from_camera) @ second.map_from_camera)[:3, 3]
            along = float(estimated @ known) / max(float(known @ known), 1e-12)
            if along > 1e-6:
                ratios.append(-np.log(along))
                weights.append(1.0 / (1.0 / first.estimates + 1.0 / second.estimates))
    return np.array(ratios), np.array(weights)


def metric_scale_from_depth(estimate: ViewEstimate, depth: Float32 | None) -> float:
    """Metres per unit of the view's points from a metric depth image (H, W) at the frame's size; NaN without.

    Works for a dense image and for a few ranges (the rest 0 or NaN).
    """
    if depth is None:
        return float("nan")
    rows, columns = np.nonzero(np.isfinite(depth) & (depth > 0))
    if len(rows) > 20000:
        chosen = np.linspace(0, len(rows) - 1, 20000).astype(np.int64)
        rows, columns = rows[chosen], columns[chosen]
    pixels = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))]).T @ estimate.network_from_image.T
    x, y = np.floor(pixels[:, 0]).astype(np.int64), np.floor(pixels[:, 1]).astype(np.int64)
    height, width = estimate.valid.shape
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y, metres = x[inside], y[inside], depth[rows, columns][inside]
    usable = estimate.valid[y, x]
    if not usable.any():
        return float("nan")
    ratio = np.log(metres[usable]) - np.log(estimate.points_camera[y, x, 2][usable])
    return float(np.exp(robust_mean(ratio)[0]))


def metric_scale_from_height(estimate: ViewEstimate, camera_height: float) -> float:
    """Metres per unit of the view's points from the camera's height above the floor; NaN without a floor.

    The floor is the lowest horizontal layer below the camera with about as many points as the fullest one.
    """
    points = estimate.points_camera[estimate.valid] @ estimate.map_from_camera[:3, :3].T
    below = -points[:, 2][points[:, 2] < 0]
    if len(below) < 100:
        return float("nan")
    top = float(np.quantile(below, 0.99))
    counts, edges = np.histogram(below, _LAYERS, (0.0, 1.1 * top))
    smooth = np.convolve(counts, [1, 1, 1], "same")
    lower = np.arange(_LAYERS) >= _LAYERS // 4
    full = np.flatnonzero(lower & (smooth >= 0.4 * smooth[lower].max()))
    if not len(full) or smooth[full[-1]] < 0.03 * len(points):
        return float("nan")
    layer = full[-1]
    while layer > 0 and smooth[layer - 1] > smooth[layer]:
        layer -= 1
    middle, width = 0.5 * (edges[layer] + edges[layer + 1]), edges[1] - edges[0]
    near = below[np.abs(below - middle) < 1.5 * width]
    return camera_height / float(np.median(near)) if len(near) else float("nan")


def robust_mean(values: Float64, weights: Float64 | None = None) -> tuple[float, float]:
    """Mean and its standard deviation by Tukey's biweight, from the weighted median; up to half are outliers.

    The standard deviation is the M-estimator's, sum(psi^2)^0.5 / sum(psi') (Huber 1981).
    """
    weights = np.ones(len(values)) if weights is None else weights
    mean = _weighted_median(values, weights)
    for _ in range(10):
        spread = max(1.4826 * _weighted_median(np.abs(values - mean), weights), 1e-6)
        kernel_root = np.clip(1 - ((values - mean) / (4.0 * spread)) ** 2, 0, None)
        robust = weights * kernel_root**2
        error = values - mean
        mean = float((robust * values).sum() / robust.sum())
    slope = float((weights * (5 * kernel_root**2 - 4 * kernel_root)).sum())
    return mean, float(np.linalg.norm(robust * error)) / slope if slope > 0 else float("inf")


def _weighted_median(values: Float64, weights: Float64) -> float:
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(cumulative, 0.5 * cumulative[-1])])


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

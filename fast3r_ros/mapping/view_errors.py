"""Typical errors of a network's views, measured against the map: weights of registration and loops."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fast3r_ros.geometry.rotation import vector_from_matrix
from fast3r_ros.mapping.data import Float64

# Prior: squared baselines, and the squared errors of (rotation in radians, translation / depth, log scale) of
# one view in one window at these baselines.
_PRIOR_BASELINES = np.array([0.0, 0.0, 1.0, 1.0])
_PRIOR_SQUARES = np.array([[25e-6] * 3, [25e-6] * 3, [1e-4] * 3, [1e-4] * 3])
_MEMORY = 400.0  # number of measurements after which old ones fade
_FAR_OFF = 9.0  # outlier threshold, in multiples of the usual square
_LEAST_SHARE = 0.04  # minimum share of the usual variance, also for view 0
_FLOOR = 1e-8  # minimum variance; smaller ones come from the fit itself


@dataclass(frozen=True)
class ViewErrors:
    """The network's errors in one view of one window, measured against the map.

    Squared errors of rotation (rad, per axis), translation / depth (per axis) and log scale are modelled as
    linear in the square x of the view's baseline to view 0, see `baselines`.  sums: (5, 3) over the
    measurements: their number, x, x^2, y and x y, where y is the squared error.
    """

    sums: Float64 = field(default_factory=lambda: _moments(_PRIOR_BASELINES, _PRIOR_SQUARES))

    def variance(self, baseline: float | None = None) -> Float64:
        """(3,) variances of rotation, translation / depth, log scale at a baseline (None: the usual one)."""
        count, x, xx, y, xy = self.sums
        slope = np.clip(
            (count * xy - x * y) / np.maximum(count * xx - x * x, 1e-9), 0.0, y / np.maximum(x, 1e-9)
        )
        square = x / count if baseline is None else baseline**2
        return np.maximum(
            (y - slope * x) / count + slope * square, np.maximum(_LEAST_SHARE * y / count, _FLOOR)
        )

    def sigma(self, baseline: float | None = None) -> Float64:
        """(3,) standard deviations, see `variance`."""
        return np.sqrt(self.variance(baseline))

    def after(self, errors: Float64, baselines: Float64) -> ViewErrors:
        """A copy with more measurements: errors (N, 7), see `Registration.errors`, at baselines (N,).

        Outliers are clipped to the usual errors.
        """
        if not len(errors):
            return self
        found = squares(errors)
        found = np.minimum(found, _FAR_OFF * np.maximum(np.median(found, axis=0), self.variance()))
        fading = min(1.0, _MEMORY / self.sums[0, 0])
        return ViewErrors(fading * self.sums + _moments(np.square(baselines), found))


def _moments(x: Float64, y: Float64) -> Float64:
    """The sums of `ViewErrors` for (N,) and (N, 3)."""
    rows = [np.ones(3) * len(x), np.ones(3) * x.sum(), np.ones(3) * (x * x).sum(), y.sum(axis=0), x @ y]
    return np.stack(rows)


def baselines(rotation: Float64, position: Float64, depth: Float64) -> Float64:
    """Baselines (N,) to view 0: distance in depths (N,) of the view's scene, plus radians, at most 1.

    rotation (N, 3, 3), position (N, 3): of the views in the window.
    """
    distance = np.linalg.norm(position, axis=1) / depth
    return np.minimum(distance + np.linalg.norm(vector_from_matrix(rotation), axis=1), 1.0)


def squares(errors: Float64) -> Float64:
    """(..., 3) squares of (..., 7) errors: of rotation and translation / depth per axis, and of log scale."""
    turn, shift = np.square(errors[..., 3:6]).mean(axis=-1), np.square(errors[..., :3]).mean(axis=-1)
    return np.stack([turn, shift, np.square(errors[..., 6])], -1)

"""Camera pose metrics over all pairs of views: RRA, RTA and mAA (PoseDiffusion, ICCV 2023, section 4.1).

The relative pose of every pair of views is compared with the true one, so the two sets of poses may differ in
frame and scale.  A view without a pose (NaN) fails in all of its pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.geometry.rotation import angle_between

Array = NDArray[np.float64]

THRESHOLDS = (5, 15, 30)
MAA_LIMIT = 30.0
MAA_BINS = 31


@dataclass(frozen=True)
class PairErrors:
    """Errors of the V * (V - 1) / 2 pairs (0, 1), (0, 2), ..., in degrees, infinite for a missing pose.

    rotation: angle of the relative rotation's error, in [0, 180].  translation: angle between the relative
    translations up to sign, in [0, 90].
    """

    rotation: Array
    translation: Array


def pair_errors(world_from_camera: ArrayLike, true_world_from_camera: ArrayLike) -> PairErrors:
    """Errors of all pairs i < j of two sets of poses (V, 4, 4), in any worlds and scales."""
    estimate, truth = _relative_poses(world_from_camera), _relative_poses(true_world_from_camera)
    rotation = np.full(len(truth), np.inf)
    known = np.isfinite(estimate).all(axis=(1, 2))
    rotation[known] = np.degrees(angle_between(estimate[known, :3, :3], truth[known, :3, :3]))
    return PairErrors(rotation, _translation_angles(estimate[:, :3, 3], truth[:, :3, 3]))


def pose_scores(errors: PairErrors) -> dict[str, float]:
    """RRA@t and RTA@t, the share of pairs whose error is below t degrees, and mAA(30), all in [0, 1].

    mAA(30) is the mean, over a histogram of 31 bins in [0, 30], of the cumulative share of the pairs' larger
    error, as in the official evaluation.  (The official rotation error of a perfect pose is 0.4 degrees for
    lack of precision; that changes none of these numbers.)
    """
    scores = {f"RRA@{limit}": float(np.mean(errors.rotation < limit)) for limit in THRESHOLDS}
    scores |= {f"RTA@{limit}": float(np.mean(errors.translation < limit)) for limit in THRESHOLDS}
    larger = np.maximum(errors.rotation, errors.translation)
    counts, _ = np.histogram(larger, bins=MAA_BINS, range=(0.0, MAA_LIMIT))
    scores["mAA(30)"] = float(np.mean(np.cumsum(counts) / len(larger)))
    return scores


def _relative_poses(world_from_camera: ArrayLike) -> Array:
    """(V, 4, 4) -> first_from_second (P, 4, 4) of all pairs."""
    poses = np.asarray(world_from_camera, dtype=np.float64)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or len(poses) < 2:
        raise ValueError(f"need at least two poses as (V, 4, 4), got {poses.shape}")
    first, second = np.triu_indices(len(poses), 1)
    return inverse(poses[first]) @ poses[second]


def _translation_angles(estimate: Array, truth: Array) -> Array:
    lengths = np.linalg.norm(estimate, axis=1) * np.linalg.norm(truth, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = np.abs(np.sum(estimate * truth, axis=1)) / lengths
    angles = np.degrees(np.arccos(np.clip(cosine, 0.0, 1.0)))
    return np.where(np.isfinite(angles), angles, np.inf)

"""Accuracy of depth maps and point clouds: AbsRel, share of exact pixels; accuracy, completion, normal
consistency, chamfer distance, F-score.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.geometry.similarity import fit_similarity

Array = NDArray[np.floating]


def depth_scores(predicted: Array, true: Array, *, align_scale: bool = True) -> dict[str, float]:
    """AbsRel and delta<1.25 of depth maps (..., H, W) over the pixels where both are positive and finite.

    align_scale: multiply the prediction by median(true / predicted) first, as usual for depth up to scale.
    The pixels are pooled.  "valid" is the share of true pixels that have a prediction; the other two measures
    ignore the rest.  NaN without pixels.
    """
    predicted, true = np.asarray(predicted, dtype=np.float64), np.asarray(true, dtype=np.float64)
    known = np.isfinite(true) & (true > 0)
    usable = known & np.isfinite(predicted) & (predicted > 0)
    if not usable.any():
        return {"AbsRel": np.nan, "delta<1.25": np.nan, "valid": 0.0}
    predicted, true = predicted[usable], true[usable]
    if align_scale:
        predicted = predicted * np.median(true / predicted)
    ratio = np.maximum(predicted / true, true / predicted)
    return {
        "AbsRel": float(np.mean(np.abs(predicted - true) / true)),
        "delta<1.25": float(np.mean(ratio < 1.25)),
        "valid": float(usable.sum() / known.sum()),
    }


PLANE_NEIGHBOURS = 60
NORMAL_NEIGHBOURS = 30  # Open3D's default, which the official evaluation uses


@dataclass(frozen=True)
class ReconstructionScores:
    """Distances in the units of the clouds; shares and consistencies in [0, 1].

    accuracy: predicted point to nearest true point.  completion: true point to nearest predicted point.
    normal_consistency: |cos| between the normals of nearest neighbours, the mean of both directions (NaN
    without normals).  chamfer: the mean of accuracy and completion.  f_score: harmonic mean of the shares
    of predicted and of true points that have a neighbour within the threshold.
    """

    accuracy: float
    accuracy_median: float
    completion: float
    completion_median: float
    normal_consistency: float
    normal_consistency_median: float
    chamfer: float
    f_score: float

    def row(self) -> dict[str, float]:
        """Name -> value, for tables."""
        return asdict(self)


def reconstruction_scores(
    predicted: Array,
    true: Array,
    predicted_normals: Array | None = None,
    true_normals: Array | None = None,
    threshold: float = 0.05,
) -> ReconstructionScores:
    """Compare two clouds (N, 3) and (M, 3) in one frame, optionally with unit normals of the same shapes.

    threshold: distance for the F-score, in the units of the clouds.
    """
    accuracy, nearest_true = cKDTree(true).query(predicted, workers=-1)
    completion, nearest_predicted = cKDTree(predicted).query(true, workers=-1)
    consistency = [np.array([np.nan]), np.array([np.nan])]
    if predicted_normals is not None and true_normals is not None:
        consistency = [
            np.abs(np.sum(predicted_normals * true_normals[nearest_true], axis=1)),
            np.abs(np.sum(true_normals * predicted_normals[nearest_predicted], axis=1)),
        ]
    precision, recall = float(np.mean(accuracy < threshold)), float(np.mean(completion < threshold))
    return ReconstructionScores(
        accuracy=float(np.mean(accuracy)),
        accuracy_median=float(np.median(accuracy)),
        completion=float(np.mean(completion)),
        completion_median=float(np.median(completion)),
        normal_consistency=float(np.mean([values.mean() for values in consistency])),
        normal_consistency_median=float(np.mean([np.median(values) for values in consistency])),
        chamfer=float((np.mean(accuracy) + np.mean(completion)) / 2),
        f_score=2 * precision * recall / max(precision + recall, 1e-12),
    )


def map_sharpness(points: Array, reference: Array, reach: float) -> dict[str, float]:
    """Thickness and position errors of a map's surfaces, against a dense reference cloud in the same frame.

    points: (N, 3) of the map.  reference: (M, 3).  reach: distance beyond which a point belongs to another
    surface, in the units of the clouds.  map_error: median distance of the map's points from the reference.
    map_outliers: share of points farther than `reach`.  thickness: robust standard deviation (1.4826 MAD) of
    the map along the normals of planar places of the reference, within `reach`; NaN without planar places.
    """
    distance, nearest = cKDTree(reference).query(points, workers=-1)
    close = distance < reach
    row = {"map_error": float(np.median(distance)), "map_outliers": float(np.mean(~close))}
    used, place = np.unique(nearest[close], return_inverse=True)
    row["thickness"] = float("nan")
    if len(used):
        normals, flat = _planes(reference, reference[used])
        along = np.sum((points[close] - reference[nearest[close]]) * normals[place], axis=1)[flat[place]]
        if len(along):
            row["thickness"] = float(1.4826 * np.median(np.abs(along - np.median(along))))
    return row


def _planes(cloud: Array, places: Array) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Normals (K, 3) of the cloud at places (K, 3), and whether it is planar there (10:1)."""
    _, nearest = cKDTree(cloud).query(places, k=min(PLANE_NEIGHBOURS, len(cloud)), workers=-1)
    patch = np.asarray(cloud, np.float64)[nearest.reshape(len(places), -1)]
    patch = patch - patch.mean(axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(np.swapaxes(patch, 1, 2) @ patch)
    return vectors[:, :, 0], values[:, 0] < 0.01 * values[:, 1]


def estimate_normals(points: Array, neighbours: int = NORMAL_NEIGHBOURS) -> NDArray[np.float64]:
    """Unit normals (N, 3), of either sign, from the plane through each point's nearest neighbours."""
    count = min(neighbours, len(points))
    _, nearest = cKDTree(points).query(points, k=count, workers=-1)
    normals = np.empty((len(points), 3))
    for start in range(0, len(points), 65536):  # bounds the memory of the neighbourhoods
        patch = np.asarray(points, dtype=np.float64)[nearest[start : start + 65536]]
        patch = patch - patch.mean(axis=1, keepdims=True)
        _, vectors = np.linalg.eigh(np.swapaxes(patch, 1, 2) @ patch)
        normals[start : start + 65536] = vectors[:, :, 0]
    return normals


def align(predicted: Array, true: Array, weights: NDArray[np.floating] | None = None) -> Sim3:
    """The weighted least-squares `true_from_predicted` of corresponding points (N, 3)."""
    return fit_similarity(predicted, true, weights)

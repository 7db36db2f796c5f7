"""Depth map metrics: AbsRel and the share of pixels within a factor of 1.25 (Eigen et al., 2014)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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

"""Statistics over several runs of one scenario."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def summarised(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Name -> statistics over the runs.

    Numbers: median, minimum and maximum.  Booleans: the number of True.  Texts: the distinct ones.  Numbers
    that are not finite are ignored; without any finite one the median is None.
    """
    return {name: _summary([run[name] for run in runs]) for name in runs[0]}


def _summary(values: Sequence[Any]) -> dict[str, Any]:
    if all(isinstance(value, bool) for value in values):
        return {"yes": sum(values), "runs": len(values)}
    if any(isinstance(value, str) for value in values):
        return {"texts": sorted({str(value) for value in values}), "runs": len(values)}
    numbers = [value for value in values if math.isfinite(value)]
    if not numbers:
        return {"median": None, "least": None, "most": None, "runs": 0}
    middle = statistics.median(numbers)
    return {"median": middle, "least": min(numbers), "most": max(numbers), "runs": len(numbers)}

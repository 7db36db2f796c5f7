"""Invalid results of a network that must never reach the map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fast3r_ros.mapping.data import Reconstruction


def _points(change: Callable[[Any], Any]) -> Callable[[Reconstruction], Reconstruction]:
    def disturbed(result: Reconstruction) -> Reconstruction:
        everywhere, own = ([change(each.clone()) for each in maps] for maps in _point_maps(result))
        return Reconstruction(everywhere, result.confidence_global, own, result.confidence_local)

    return disturbed


def _point_maps(result: Reconstruction) -> tuple[Sequence[Any], Sequence[Any]]:
    return result.points_global, result.points_local


def _confidence(change: Callable[[Any], Any]) -> Callable[[Reconstruction], Reconstruction]:
    def disturbed(result: Reconstruction) -> Reconstruction:
        sure = [change(each.clone()) for each in result.confidence_global]
        return Reconstruction(result.points_global, sure, result.points_local, sure)

    return disturbed


def _every_second_row(points: Any) -> Any:
    points[::2] = torch.nan
    return points


# faults of a window's result that must cause its rejection
DISTURBED: dict[str, Callable[[Reconstruction], Reconstruction]] = {
    "points NaN": _points(lambda points: torch.full_like(points, torch.nan)),
    "points infinite": _points(lambda points: torch.full_like(points, torch.inf)),
    "points partly NaN": _points(_every_second_row),
    "points equal": _points(torch.ones_like),
    "points zero": _points(torch.zeros_like),
    "points huge": _points(lambda points: points * 1e30),
    "points behind": _points(lambda points: -points),
    "confidence NaN": _confidence(lambda sure: torch.full_like(sure, torch.nan)),
    "confidence infinite": _confidence(lambda sure: torch.full_like(sure, torch.inf)),
    "confidence negative": _confidence(lambda sure: -sure),
    "a view too few": lambda r: Reconstruction(
        r.points_global[:-1], r.confidence_global, r.points_local, r.confidence_local
    ),
    "a row too few": lambda r: Reconstruction(
        r.points_global, r.confidence_global, [each[:-1] for each in r.points_local], r.confidence_local
    ),
}

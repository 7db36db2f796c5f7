"""Accelerations without training that change the results slightly; off by default.

The active ones are in the model's repr and in `acceleration_of(model)`, for reports.  `fast3r benchmark
acceleration` measures their error on a given model and scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fast3r_ros.errors import UserError
from fast3r_ros.model.attention import attend
from fast3r_ros.model.fast3r import Fast3R, Steps
from fast3r_ros.model.layers import Block
from fast3r_ros.model.speed.quantised import Fp8Linear, Int8Linear, check_fp8, check_shapes
from fast3r_ros.model.speed.token_merging import MergedAttention
from fast3r_ros.model.transformer import FusionTransformer, fuse_views
from fast3r_ros.model.types import FusedFeatures, ViewPrediction, ViewTokens

LINEARS = ("exact", "int8", "fp8")
WHOLE = ("merge", "stream")


@dataclass(frozen=True)
class Acceleration:
    """merge: in fusion, far views' keys and values are merged in cells of merge x merge tokens; 1 is exact.

    stream: in a sliding window, one pass in `stream` covers all views, the others cover new views and the
    cached keys and values of the known ones; 1 is exact.  linears: arithmetic of the transformer blocks'
    linear layers, one of LINEARS.  Raises UserError for other values and for merge together with stream.
    """

    merge: int = 1
    linears: str = "exact"
    stream: int = 1

    def __post_init__(self) -> None:
        for name in WHOLE:
            value = getattr(self, name)
            if value < 1:
                raise UserError(f"acceleration {name} is {value}, expected a whole number, at least 1")
        if self.merge > 1 and self.stream > 1:
            raise UserError("acceleration merge and stream cannot be combined; choose one")
        if self.linears not in LINEARS:
            raise UserError(f"acceleration linears is {self.linears!r}, expected one of {', '.join(LINEARS)}")

    def __str__(self) -> str:
        parts = [f"{name}={value}" for name in WHOLE if (value := getattr(self, name)) > 1]
        if self.linears != "exact":
            parts.append(f"linears={self.linears}")
        return ",".join(parts) or "exact"

    @classmethod
    def parse(cls, text: str) -> Acceleration:
        """Parse the form of `str`, such as merge=2,linears=int8.  Raises UserError for anything else."""
        values: dict[str, str] = {}
        for assignment in [] if text == "exact" else text.split(","):
            name, equals, value = assignment.partition("=")
            if name not in (*WHOLE, "linears") or not equals:
                raise UserError(
                    f"acceleration {text!r} is unknown; give merge=2, stream=4, linears=int8, or two of them "
                    "separated by a comma"
                )
            if name in WHOLE and not value.isdecimal():
                raise UserError(f"acceleration {name}={value} is not a whole number")
            values[name] = value
        whole = {name: int(values[name]) for name in WHOLE if name in values}
        return cls(**whole, linears=values.get("linears", "exact"))


class Accelerated(Steps):
    """The steps of a network with accelerations."""

    def __init__(self, acceleration: Acceleration) -> None:
        self.acceleration = acceleration

    def __repr__(self) -> str:
        return str(self.acceleration)

    @property
    def plain_fusion(self) -> bool:
        """See `Steps`; merged attention depends on the views' grids."""
        return self.acceleration.merge == 1

    def fuse(self, fusion: FusionTransformer, views: Sequence[ViewTokens], rows: Tensor) -> FusedFeatures:
        """See `Steps`; keys and values of far views are merged where that is asked for."""
        merge = self.acceleration.merge
        function = MergedAttention([view.grid for view in views], merge) if merge > 1 else attend
        return fuse_views(fusion, views, rows, function)


def acceleration_of(model: Fast3R) -> Acceleration:
    """The accelerations of a network."""
    return model.steps.acceleration if isinstance(model.steps, Accelerated) else Acceleration()


def accelerate(model: Fast3R, acceleration: Acceleration) -> Fast3R:
    """Apply accelerations to a model; changes it and returns it.

    Raises UserError for a model that is split over processes, for 8-bit linear layers that should change
    again, for shapes that the kernels do not support, for FP8 without hardware support, and for streaming
    without a local head.
    """
    if not isinstance(model.steps, Accelerated) and type(model.steps) is not Steps:  # several processes
        if str(acceleration) == "exact":
            return model
        raise UserError(f"acceleration {acceleration} cannot be combined with several processes; choose one")
    if acceleration.stream > 1 and model.downstream_head_local is None:
        raise UserError("acceleration stream needs a network with a local head; this one has none")
    before = acceleration_of(model).linears
    if acceleration.linears != before:
        if before != "exact":
            raise UserError(f"the linear layers are already {before}; load the model again to change that")
        if acceleration.linears == "fp8":
            check_fp8(next(model.parameters()).device)
        layer = Int8Linear if acceleration.linears == "int8" else Fp8Linear
        blocks = [
            block
            for module in (model.encoder, model.decoder)
            for block in module.modules()
            if isinstance(block, Block)
        ]
        linears = [child for block in blocks for child in block.modules() if isinstance(child, nn.Linear)]
        check_shapes(linears, acceleration.linears, next(model.parameters()).device)
        for block in blocks:
            _replace_linears(block, layer)
    model.steps = Steps() if str(acceleration) == "exact" else Accelerated(acceleration)
    return model.eval()


@dataclass(frozen=True)
class PointmapError:
    """Distance of results from the exact ones, over all pixels of the global points.

    points_median, points_95: distance to the exact point over its distance to view 0's camera, median and
    95th percentile.  confidence_median: relative difference.
    """

    points_median: float
    points_95: float
    confidence_median: float


def pointmap_error(exact: Sequence[ViewPrediction], other: Sequence[ViewPrediction]) -> PointmapError:
    """The error of `other`, given `exact` for the same views without acceleration."""
    points, confidences = [], []
    for true, found in zip(exact, other, strict=True):
        a, b = true.global_points, found.global_points
        distance = (a.points - b.points).norm(dim=-1) / a.points.norm(dim=-1).clamp_min(1e-6)
        points.append(distance.flatten().cpu())
        confidences.append(((a.confidence - b.confidence).abs() / a.confidence).flatten().cpu())
    errors = torch.cat(points).sort().values
    return PointmapError(
        points_median=float(errors[len(errors) // 2]),
        points_95=float(errors[len(errors) * 95 // 100]),
        confidence_median=float(torch.cat(confidences).median()),
    )


def _replace_linears(block: nn.Module, layer: type[Int8Linear] | type[Fp8Linear]) -> None:
    """Replace every linear layer below a block by `layer`."""
    for parent in list(block.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, layer(child))

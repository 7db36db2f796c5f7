"""The training loss: confidence-weighted regression of normalised pointmaps.

DUSt3R (CVPR 2024, section 3.2) for many views, as in the Fast3R release: per view and head the mean over
valid pixels of `confidence * error - alpha * log(confidence)`, averaged over all views of both heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fast3r_ros.model.outputs import ViewPrediction

SMALLEST_SCALE = 1e-8


@dataclass(frozen=True)
class GroundTruth:
    """The ground truth of V equally large views of B scenes.

    points_camera: (B, V, H, W, 3), each view in its own camera frame; arbitrary where not valid.
    valid: (B, V, H, W) bool; a view may have no valid pixel.  world_from_camera: (B, V, 4, 4) rigid.
    """

    points_camera: Tensor
    valid: Tensor
    world_from_camera: Tensor


@dataclass(frozen=True)
class HeadLoss:
    """One head's part of the loss.

    error: (V,) mean distance of normalised points.  weighted: (V,) with confidence, the terms that are
    learnt.  Both are 0 for a view without a valid pixel.
    """

    error: Tensor
    weighted: Tensor


@dataclass(frozen=True)
class ConfidenceLoss:
    """total: the scalar to minimise.  local_head is None when the network has no local head."""

    total: Tensor
    global_head: HeadLoss
    local_head: HeadLoss | None


def confidence_loss(
    predictions: Sequence[ViewPrediction], ground_truth: GroundTruth, alpha: float = 0.2
) -> ConfidenceLoss:
    """The loss of V views' predictions, in float32, regardless of the predictions' precision.

    Global points are compared in view 0's camera frame after division by the mean distance to the origin
    over all views of the scene; local points in their own camera frame, each view divided by its own mean
    distance.  The prediction is normalised by its own mean distance, through which gradients flow.
    """
    with torch.autocast(ground_truth.valid.device.type, enabled=False):
        heads = [
            _head_loss(
                [view.global_points.points for view in predictions],
                [view.global_points.confidence for view in predictions],
                points_in_first_view(ground_truth),
                ground_truth.valid,
                (1, 2, 3),
                alpha,
            )
        ]
        local_views = [view.local_points for view in predictions if view.local_points is not None]
        if local_views:
            heads.append(
                _head_loss(
                    [view.points for view in local_views],
                    [view.confidence for view in local_views],
                    ground_truth.points_camera.float(),
                    ground_truth.valid,
                    (2, 3),
                    alpha,
                )
            )
        total = torch.cat([head.weighted for head in heads]).mean()
    return ConfidenceLoss(total, heads[0], heads[1] if local_views else None)


def points_in_first_view(ground_truth: GroundTruth) -> Tensor:
    """Points (B, V, H, W, 3) in the camera frame of each scene's view 0, float32."""
    poses = ground_truth.world_from_camera.double()
    first_from_camera = torch.linalg.inv(poses[:, :1]) @ poses
    rotation, translation = first_from_camera[..., :3, :3].float(), first_from_camera[..., :3, 3].float()
    points = torch.einsum("bvij,bvhwj->bvhwi", rotation, ground_truth.points_camera.float())
    return points + translation[:, :, None, None]


def _head_loss(
    points: Sequence[Tensor],
    confidences: Sequence[Tensor],
    truth: Tensor,
    valid: Tensor,
    scale_axes: tuple[int, ...],
    alpha: float,
) -> HeadLoss:
    """scale_axes: the axes of (B, V, H, W) over which one scale is shared."""
    predicted, confidence = torch.stack(tuple(points), 1).float(), torch.stack(tuple(confidences), 1).float()
    difference = _normalise(predicted, valid, scale_axes) - _normalise(truth, valid, scale_axes)
    error = torch.linalg.vector_norm(difference, dim=-1)
    return HeadLoss(
        _mean_per_view(error, valid), _mean_per_view(confidence * error - alpha * confidence.log(), valid)
    )


def _normalise(points: Tensor, valid: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Divide by the mean distance to the origin of the valid points; invalid points become 0."""
    points = torch.where(valid[..., None], points, 0.0)
    distance = torch.linalg.vector_norm(points, dim=-1)
    count = valid.sum(axes, keepdim=True).clamp_min(1)
    scale = (distance.sum(axes, keepdim=True) / count).clamp_min(SMALLEST_SCALE)
    return points / scale[..., None]


def _mean_per_view(values: Tensor, valid: Tensor) -> Tensor:
    """(B, V, H, W) -> (V,) mean over the valid pixels of all scenes, 0 without any."""
    count = valid.sum((0, 2, 3)).clamp_min(1)
    return torch.where(valid, values, 0.0).sum((0, 2, 3)) / count

"""Accuracy on held-out synthetic scenes, for the evaluation during training."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fast3r_ros.geometry.rigid import rigid_matrix
from fast3r_ros.geometry.similarity import fit_similarities
from fast3r_ros.metrics.pose import pair_errors
from fast3r_ros.model import Fast3R
from fast3r_ros.training.losses import GroundTruth, points_in_first_view
from fast3r_ros.training.objective import encode_views
from fast3r_ros.training.stream import Batch, held_out_batch
from fast3r_ros.training.training_config import DataConfig

SCENES_AT_ONCE = 4


@torch.no_grad()
def validate(
    network: Fast3R,
    data: DataConfig,
    scenes: int = 16,
    views: int = 8,
    motion: float = 1.0,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Pose and point accuracy on walks of `views` views through held-out rooms.

    rra_15, rta_15: share of view pairs whose relative rotation and direction of translation (up to sign, see
    `metrics.pose`) are within 15 degrees; poses come from fitting each view's local points onto its global
    points.  global_error, local_error: median distance of the points from the ground truth after one
    similarity per scene (global) or view (local), relative to the scene's mean depth.
    """
    was_training = network.training
    network.eval()
    collected: dict[str, list[Tensor]] = {}
    for first in range(0, scenes, SCENES_AT_ONCE):
        numbers = range(first, min(first + SCENES_AT_ONCE, scenes))
        for name, values in _measure(network, held_out_batch(data, numbers, views, motion, device)).items():
            collected.setdefault(name, []).append(values.flatten().double().cpu())
    network.train(was_training)
    return {name: float(torch.cat(values).mean()) for name, values in collected.items()}


def _measure(network: Fast3R, batch: Batch) -> dict[str, Tensor]:
    features = network.fuse(encode_views(network, batch.images))
    points = network.global_head(features)
    predicted = torch.stack([view.points for view in points], 1)
    confidence = torch.stack([view.confidence for view in points], 1)
    local = None
    if network.downstream_head_local is not None:
        local = torch.stack([view.points for view in network.local_head(features)], 1)
    return accuracy(predicted, confidence, local, batch)


def accuracy(in_first: Tensor, confidence: Tensor, local: Tensor | None, batch: Batch) -> dict[str, Tensor]:
    """The measures of `validate`, not yet averaged, of predictions (B, V, H, W, 3) and (B, V, H, W)."""
    truth = GroundTruth(batch.points_camera, batch.valid, batch.world_from_camera)
    wanted = points_in_first_view(truth)
    depth = batch.points_camera[..., 2].flatten(1).mean(1)
    results = {"global_error": _median_error(in_first, wanted, confidence, depth, 1)}
    if local is None:
        return results
    results["local_error"] = _median_error(local, batch.points_camera, torch.ones_like(confidence), depth, 2)
    pairs = [
        pair_errors(*poses)
        for poses in zip(
            _poses(local, in_first, confidence), batch.world_from_camera.cpu().numpy(), strict=True
        )
    ]
    results["rra_15"] = torch.from_numpy(np.stack([pair.rotation < 15 for pair in pairs]))
    results["rta_15"] = torch.from_numpy(np.stack([pair.translation < 15 for pair in pairs]))
    results["rotation_error"] = torch.from_numpy(np.stack([pair.rotation for pair in pairs]))
    return results


def _median_error(
    predicted: Tensor, truth: Tensor, weights: Tensor, depth: Tensor, dimensions: int
) -> Tensor:
    """Median distance after one similarity for each of the leading `dimensions`, relative to the depth."""
    shape = predicted.shape[:dimensions]
    source = predicted.reshape(shape.numel(), -1, 3)
    target = truth.reshape(shape.numel(), -1, 3)
    fit = fit_similarities(source, target, weights.reshape(shape.numel(), -1))
    aligned = (
        fit.scale[:, None, None] * (source.double() @ fit.rotation.transpose(1, 2)) + fit.translation[:, None]
    )
    error = (aligned - target).norm(dim=-1).median(dim=1).values
    return error.reshape(shape[0], -1) / depth[:, None]


def _poses(local: Tensor, in_first: Tensor, confidence: Tensor) -> NDArray[np.float64]:
    """(B, V, 4, 4) first_from_camera, by fitting local onto global points."""
    shape = local.shape[:2]
    fit = fit_similarities(
        local.reshape(shape.numel(), -1, 3),
        in_first.reshape(shape.numel(), -1, 3),
        confidence.reshape(shape.numel(), -1),
    )
    poses = rigid_matrix(fit.rotation.cpu().numpy(), fit.translation.cpu().numpy())
    return poses.reshape(*shape, 4, 4)

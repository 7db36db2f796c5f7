"""The training losses: confidence-weighted regression of normalised pointmaps, and attention matching.

The regression is DUSt3R's (CVPR 2024, section 3.2) for many views, as in the Fast3R release: per view and
head the mean over valid pixels of `confidence * error - alpha * log(confidence)`, averaged over all views of
both heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast3r_ros.model import Fast3R
from fast3r_ros.model.layers import Attention, Block
from fast3r_ros.model.types import ViewPrediction
from fast3r_ros.training.stream import Batch

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


REFERENCE_HEAD, ALL_VIEWS_HEAD = 0, 1
REFERENCE_BLOCKS = (0.2, 0.5, 0.7)  # relative depth of the supervised blocks in the fusion transformer
ALL_VIEWS_BLOCKS = (0.1, 0.4)
OCCLUSION = 0.07  # a match is hidden where its depth differs by more than this share


class Matching:
    """Records the attention of a network's fusion blocks and scores it against the ground truth."""

    def __init__(self, network: Fast3R) -> None:
        self._patch = network.config.encoder.patch_size
        self._seen: dict[int, Tensor] = {}
        blocks = network.decoder.dec_blocks
        self._watched: list[tuple[Attention, int]] = []
        for head, places in ((REFERENCE_HEAD, REFERENCE_BLOCKS), (ALL_VIEWS_HEAD, ALL_VIEWS_BLOCKS)):
            for place in places:
                attention = cast(Block, blocks[int(place * len(blocks))]).attn
                attention.register_forward_pre_hook(self._keep)
                self._watched.append((attention, head))

    def _keep(self, attention: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen[id(attention)] = inputs[0]

    def loss(self, batch: Batch) -> Tensor:
        """Mean Kullback-Leibler divergence of the last pass's attention from the ground truth, a scalar.

        Tokens without a visible match are ignored.
        """
        targets = dict(enumerate(matching_targets(*token_matches(batch, self._patch))))
        terms = []
        for attention, head in self._watched:
            wanted, known = targets[head]
            logits = _logits(attention, self._seen[id(attention)], head).float()
            entropy = -torch.special.xlogy(wanted, wanted).sum(-1)
            divergence = -(wanted * logits.log_softmax(-1)).sum(-1) - entropy
            terms.append(torch.where(known, divergence, 0.0).sum() / known.sum().clamp_min(1))
        self._seen.clear()
        return torch.stack(terms).mean()


def token_matches(batch: Batch, patch: int) -> tuple[Tensor, Tensor]:
    """The position of each token's surface point in every view.

    Returns (B, V, V, N, N) bilinear weights of the target view's tokens, for the point at each source token's
    centre, indexed [sample, source view, target view, source token, target token], and (B, V, V, N) whether
    the point is known and visible there.
    """
    _, views, _, height, width = batch.images.shape
    rows, columns = height // patch, width // patch
    centres = (..., slice(patch // 2, None, patch), slice(patch // 2, None, patch))
    points = batch.points_camera.movedim(-1, 2)[centres].flatten(3).movedim(2, -1).double()
    poses = batch.world_from_camera
    world = torch.einsum("bvij,bvnj->bvni", poses[..., :3, :3], points) + poses[..., None, :3, 3]
    back = torch.linalg.inv(poses)
    seen = torch.einsum("bcij,bvnj->bvcni", back[..., :3, :3], world) + back[:, None, :, None, :3, 3]
    depth = seen[..., 2]
    far = depth.clamp_min(1e-3)
    matrix = batch.intrinsics[:, None, :, :, :, None]
    u = matrix[:, :, :, 0, 0] * seen[..., 0] / far + matrix[:, :, :, 0, 2]
    v = matrix[:, :, :, 1, 1] * seen[..., 1] / far + matrix[:, :, :, 1, 2]
    inside = (depth > 0.1) & (u > 0) & (u < width) & (v > 0) & (v < height)
    pixel = v.clamp(0, height - 1).long() * width + u.clamp(0, width - 1).long()
    surfaces = batch.points_camera[..., 2].flatten(2)[:, None].expand(-1, views, -1, -1).gather(3, pixel)
    visible = inside & ((surfaces - depth).abs() < OCCLUSION * far)
    known = batch.valid[centres].flatten(2)[:, :, None]
    across = _hat(u / patch - 0.5, columns)
    down = _hat(v / patch - 0.5, rows)
    weights = (down[..., :, None] * across[..., None, :]).flatten(4)
    return weights.float(), visible & known


def matching_targets(weights: Tensor, visible: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Target attention of heads 0 and 1: (B, T, T) distributions over all T tokens, and (B, T) where known.

    Head 0: the match in view 0.  Head 1: the matches in all other views, weighted equally.
    """
    views, tokens = weights.shape[1], weights.shape[3]
    reference = F.pad(weights[:, :, 0], (0, (views - 1) * tokens)).flatten(1, 2)
    others = visible & ~torch.eye(views, dtype=torch.bool, device=visible.device)[:, :, None]
    count = others.sum(2)
    shared = (weights * others[..., None]).transpose(2, 3).flatten(3) / count.clamp_min(1)[..., None]
    return (reference, visible[:, :, 0].flatten(1)), (shared.flatten(1, 2), (count > 0).flatten(1))


def _hat(place: Tensor, count: int) -> Tensor:
    """(...) places on a grid of `count` points to (..., count) linear weights of the neighbouring points."""
    grid = torch.arange(count, device=place.device)
    return (1 - (place.clamp(0, count - 1)[..., None] - grid).abs()).clamp_min(0)


def _logits(attention: Attention, x: Tensor, head: int) -> Tensor:
    """(B, T, T) attention logits of one head for the input (B, T, C) of an attention layer."""
    width = x.shape[-1]
    size = width // attention.heads
    rows = slice(head * size, (head + 1) * size)
    weight, bias = attention.qkv.weight, attention.qkv.bias
    query = F.linear(x, weight[:width][rows], bias[:width][rows])
    key = F.linear(x, weight[width : 2 * width][rows], bias[width : 2 * width][rows])
    return query @ key.transpose(1, 2) * attention.scale

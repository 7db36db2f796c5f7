"""One training sample through network and loss, as one module that DDP and FSDP can wrap."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from fast3r_ros.model import Fast3R, ViewPrediction, ViewTokens
from fast3r_ros.model.heads import FusionBlock
from fast3r_ros.model.layers import Attention, Block, Mlp
from fast3r_ros.training.losses import GroundTruth, Matching, confidence_loss
from fast3r_ros.training.stream import Batch


class Objective(nn.Module):
    """The training loss of a batch; heads and loss use only the chosen views.

    matching: the weight of the auxiliary loss of `training.matching`; 0 disables it.
    """

    def __init__(self, network: Fast3R, matching: float = 0.0) -> None:
        super().__init__()
        self.network = network
        self._matching_weight = matching
        self._matching = Matching(network) if matching else None

    def forward(self, batch: Batch, chosen: list[int]) -> tuple[Tensor, Tensor]:
        """The loss, and (3,) without gradient: mean normalised errors of the global and the local head, and
        the auxiliary matching loss (0 without it).

        chosen: the views that heads and loss use; must begin with view 0.
        """
        network = self.network
        features = network.fuse(encode_views(network, batch.images), batch.image_indices)
        points_global = network.global_head(features, chosen)
        if network.downstream_head_local is not None:
            predictions = [
                ViewPrediction(*pair)
                for pair in zip(points_global, network.local_head(features, chosen), strict=True)
            ]
        else:
            predictions = [ViewPrediction(points, None) for points in points_global]
        truth = GroundTruth(
            batch.points_camera[:, chosen], batch.valid[:, chosen], batch.world_from_camera[:, chosen]
        )
        loss = confidence_loss(predictions, truth)
        local = loss.local_head.error.mean() if loss.local_head else loss.total.new_tensor(float("nan"))
        matching = self._matching.loss(batch) if self._matching else loss.total.new_zeros(())
        errors = torch.stack([loss.global_head.error.mean(), local, matching]).detach()
        return loss.total + self._matching_weight * matching, errors


def encode_views(network: Fast3R, images: Tensor) -> list[ViewTokens]:
    """The tokens of (B, V, 3, H, W) images, all views in one pass through the encoder."""
    encoded = network.encode(images.transpose(0, 1).flatten(0, 1))
    return [ViewTokens(tokens, encoded.grid) for tokens in encoded.tokens.chunk(images.shape[1])]


def initialise(network: Fast3R, seed: int) -> None:
    """Initial weights for training from scratch, in place.

    Linear layers as in Glorot and Bengio (2010), the last layer of each residual branch smaller by sqrt(2 x
    depth) (GPT-2).  Queries and keys start equal, so that a token attends to similar tokens of its own and
    other views (after Trockman and Kolter, Mimetic Initialization, 2023).  One head of each fusion block
    starts with a preference for view 0, because matching views takes longest to learn.  Patch content and
    encoder tokens start stronger than the position and index tables that are added to them.  The heads start
    at the point (0, 0, 1) with confidence 2.
    """
    generator = torch.Generator().manual_seed(seed)
    modules = list(network.modules())
    with torch.no_grad():
        for module in modules:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                module.bias.zero_()
            elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                # each output pixel of these transposed convolutions depends on one pixel of each input
                # channel
                reach = module.weight[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
                module.weight.normal_(0, (module.in_channels * reach) ** -0.5, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
        depth = network.config.encoder.depth + network.config.decoder.depth
        for module in modules:
            if isinstance(module, Attention):
                query, key, _ = module.qkv.weight.chunk(3)
                key.copy_(query)
                module.proj.weight.mul_((2 * depth) ** -0.5)
            elif isinstance(module, Mlp):
                module.fc2.weight.mul_((2 * depth) ** -0.5)
            elif isinstance(module, FusionBlock):
                module.out_conv.weight.mul_(0.5)
        for block in network.decoder.dec_blocks:
            _prefer_reference(cast(Block, block).attn)
        network.encoder.patch_embed.proj.weight.mul_(2)
        network.decoder.decoder_embed.weight.mul_(1.5)
        for head in (network.downstream_head, network.downstream_head_local):
            if head is not None:
                last = cast(nn.Conv2d, cast(nn.Sequential, head.dpt.head)[4])
                last.weight.mul_(0.1)
                assert last.bias is not None
                last.bias.copy_(torch.tensor([0.0, 0.0, math.log(2), 0.0]))


def _prefer_reference(attention: Attention) -> None:
    """Make head 0 attend to tokens of view 0, whose row of the index table holds cosines of zero.

    The fast half of the cosines is 1 for view 0 and averages to 0 for other indices; a constant query and a
    key along their sum raise view 0's logits by about 3.
    """
    width = attention.qkv.in_features
    size = width // attention.heads
    reference = torch.zeros(width)
    reference[width // 2 : width * 3 // 4] = (width / 4) ** -0.5
    constant = torch.full((size,), size**-0.5)
    attention.qkv.bias[:size] += 3.5 * constant
    attention.qkv.weight[width : width + size] += 3.5 * torch.outer(constant, reference)

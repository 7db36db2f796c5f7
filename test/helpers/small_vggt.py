"""A small VGGT with random weights, from upstream's own code."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

WIDTH = 384  # of the image encoder


def small_vggt() -> Any:
    """Of upstream's shape: the small DINOv2, 4 blocks of its width, a field of view of 1.2 by 0.9."""
    from vggt.heads.camera_head import CameraHead
    from vggt.heads.dpt_head import DPTHead
    from vggt.models.aggregator import Aggregator
    from vggt.models.vggt import VGGT

    torch.manual_seed(0)
    model = VGGT.__new__(VGGT)  # its constructor makes the large one
    nn.Module.__init__(model)
    model.aggregator = Aggregator(embed_dim=WIDTH, depth=4, num_heads=6, patch_embed="dinov2_vits14_reg")
    model.camera_head = CameraHead(dim_in=2 * WIDTH, trunk_depth=1, num_heads=4)
    model.depth_head = DPTHead(
        dim_in=2 * WIDTH,
        output_dim=2,
        activation="exp",
        conf_activation="expp1",
        features=32,
        out_channels=[16, 32, 64, 64],
        intermediate_layer_idx=[0, 1, 2, 3],
    )
    model.point_head = model.track_head = None
    with torch.no_grad():  # four steps of refinement add up
        last = model.camera_head.pose_branch.fc2
        last.weight.mul_(0.1)
        last.bias.copy_(torch.tensor([0.02, 0.01, 0.03, 0, 0, 0, 1, 0.9, 1.2]) / 4)
    return model.eval()

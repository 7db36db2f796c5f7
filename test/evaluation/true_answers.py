"""The answer of a perfect network, in its own scale, and a tiny one with random weights."""

from __future__ import annotations

import numpy as np

from fast3r_ros.evaluation import offline
from fast3r_ros.evaluation.offline import Views
from fast3r_ros.geometry.intrinsics import pixel_rays
from fast3r_ros.geometry.rigid import inverse, transform_points

SIZE = 112
TINY = {
    "encoder_args": {"embed_dim": 24, "depth": 1, "num_heads": 2, "img_size": SIZE},
    "decoder_args": {"embed_dim": 24, "enc_embed_dim": 24, "depth": 10, "num_heads": 2},
    "head_args": {
        "with_local_head": True,
        "dpt_reassemble_dims": [8, 8, 8, 8],
        "dpt_feature_dim": 8,
        "dpt_last_dim": 8,
    },
}


def true_answer(views: Views, scale: float = 0.37) -> offline.Prediction:
    """The result of a perfect network, in its own scale."""
    height, width = views.images.shape[1:3]
    assert views.depth is not None
    local = np.stack(
        [
            scale * pixel_rays(matrix, height, width) * depth[..., None]
            for matrix, depth in zip(views.intrinsics, views.depth, strict=True)
        ]
    )
    first_from_world = inverse(views.world_from_camera[0])
    world = views.points_world().astype(np.float64)
    points = scale * np.stack([transform_points(first_from_world, view) for view in world])
    confidence = np.full(views.images.shape[:3], 5.0, np.float32)
    own_scale = np.linspace(0.5, 2, len(local))[:, None, None, None]
    return offline.Prediction(
        points.astype(np.float32), confidence, (own_scale * local).astype(np.float32), confidence
    )

"""A small MapAnything with random weights, from upstream's own code."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import torch


def small_map_anything() -> Any:
    """Of upstream's shape: image encoder, alternating attention, heads for rays, depth, pose, scale, mask.

    Raises what upstream raises where the code of its image encoder can be had neither from torch.hub's cache
    nor from GitHub.
    """
    from mapanything.models import MapAnything

    any_value = {"vmin": float("-inf"), "vmax": float("inf")}

    def limits(name: str) -> dict[str, float]:
        return {f"{name}_{key}": value for key, value in any_value.items()}

    encoder = {"encoder_str": "dinov2", "name": "dinov2_small", "data_norm_type": "dinov2", "size": "small"}
    attention = {"name": "attention", "indices": [1, 2], "norm_intermediate": True, "size": None, "depth": 4}
    attention |= {"dim": 384, "num_heads": 6, "distinguish_ref_and_non_ref_views": True}
    rays = {"ray_directions_mode": "linear", "ray_directions_normalize_to_unit_sphere": True}
    rays |= {"ray_directions_normalize_to_unit_image_plane": False, **limits("ray_directions")}
    rays |= {"ray_directions_clamp_min_of_z_dir": False, "ray_directions_z_dir_min": float("-inf")}
    depth = {"depth_mode": "exp", "depth_vmin": 0, "depth_vmax": float("inf")}
    depth |= {"confidence_type": "exp", "confidence_vmin": 1, "confidence_vmax": float("inf")}
    pose = {"cam_trans_mode": "linear", **limits("cam_trans"), "quaternions_mode": "linear"}
    pose |= {"quaternions_normalize": True, **limits("quaternions")}
    probabilities = ("overall_prob", "ray_dirs_prob", "depth_prob", "cam_prob", "sparse_depth_prob")
    probabilities += (
        "sparsification_removal_percent",
        "depth_scale_norm_all_prob",
        "pose_scale_norm_all_prob",
    )
    maps = {"encoder_str": "dense_rep_encoder", "apply_pe": False}
    numbers = {"encoder_str": "global_rep_encoder"}
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        model = MapAnything(
            name="mapanything",
            encoder_config={**encoder, "uses_torch_hub": True, "torch_hub_pretrained": False},
            info_sharing_config={
                "model_type": "alternating_attention",
                "model_return_type": "intermediate_features",
                "custom_positional_encoding": None,
                "module_args": attention,
            },
            pred_head_config={
                "type": "dpt+pose",
                "feature_head": {"feature_dim": 32, "hooks": [0, 1, 2, 3]},
                "regressor_head": {"output_dim": 6},
                "pose_head": {"num_resconv_block": 2, "rot_representation_dim": 4},
                "scale_head": {"output_dim": 1},
                "adaptor_type": "raydirs+depth+pose+confidence+mask",
                "dpt_adaptor": {"name": "dense", **rays, **depth},
                "pose_adaptor": {"name": "pose", **pose},
                "scale_adaptor": {"name": "scale", "mode": "exp", "vmin": 1e-8, "vmax": float("inf")},
                "gradient_checkpointing": False,
            },
            geometric_input_config={
                **dict.fromkeys(probabilities, 0),
                "dropout_prob": 1,
                "ray_dirs_encoder_config": {"name": "rays", "in_chans": 3, **maps},
                "depth_encoder_config": {"name": "depth", "in_chans": 1, **maps},
                "cam_rot_encoder_config": {"name": "rotation", "in_chans": 4, **numbers},
                "cam_trans_encoder_config": {"name": "translation", "in_chans": 3, **numbers},
                "scale_encoder_config": {"name": "scale", "in_chans": 1, **numbers},
            },
        )
    return model.eval()

"""A training configuration that runs in seconds."""

from __future__ import annotations

from fast3r_ros.training.training_config import TrainConfig, config_from_dict

TINY = {
    "seed": 3,
    "model": {
        "encoder_args": {"embed_dim": 48, "depth": 2, "num_heads": 2, "img_size": 64},
        "decoder_args": {"embed_dim": 48, "enc_embed_dim": 48, "depth": 10, "num_heads": 2},
        "head_args": {
            "with_local_head": True,
            "dpt_reassemble_dims": [16, 16, 16, 16],
            "dpt_feature_dim": 16,
            "dpt_last_dim": 16,
        },
    },
    "data": {"width": 64, "height": 48, "noise": 0.02, "exposure": 0.1},
    "curriculum": [{"from_step": 0, "views": [2]}, {"from_step": 2, "views": [2, 3]}],
    "optimizer": {"learning_rate": 0.001, "warmup_steps": 4, "ema": 0.9},
    "run": {
        "steps": 5,
        "views_per_step": 12,
        "precision": "float32",
        "log_every": 1,
        "checkpoint_every": 2,
        "evaluate_every": 100,
        "evaluate_scenes": 2,
    },
}


def tiny(**sections: dict) -> TrainConfig:
    """The tiny configuration with some values of its sections replaced."""
    content = {name: dict(value) if isinstance(value, dict) else value for name, value in TINY.items()}
    for name, values in sections.items():
        content[name] = {**content[name], **values} if isinstance(values, dict) else values
    return config_from_dict(content, "the test's configuration")

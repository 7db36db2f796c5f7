"""A checkpoint folder of a network small enough for tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from fast3r_ros.model import Fast3R, Fast3RConfig
from fast3r_ros.model.config import DecoderConfig, EncoderConfig, HeadConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "mapping"))


@pytest.fixture(scope="session")
def network() -> Fast3R:
    """Random weights, for images of 64x48 pixels; every width is another."""
    torch.manual_seed(0)
    return Fast3R(
        Fast3RConfig(
            EncoderConfig(embed_dim=48, depth=2, num_heads=4, img_size=64),
            DecoderConfig(embed_dim=32, enc_embed_dim=48, depth=10, num_heads=4),
            HeadConfig(
                with_local_head=True, dpt_reassemble_dims=(8, 12, 20, 24), dpt_feature_dim=16, dpt_last_dim=10
            ),
        )
    ).eval()


@pytest.fixture(scope="session")
def model_directory(network: Fast3R, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("model")
    network.save_pretrained(directory)
    return str(directory)

"""The configuration: official files are read and written, invalid ones rejected."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_model import small_config

from fast3r_ros.errors import UserError
from fast3r_ros.model import Fast3RConfig
from fast3r_ros.model.network_config import HeadConfig

# as the released checkpoint's file is known
RELEASED: dict[str, dict[str, Any]] = {
    "decoder_args": {
        "attn_bias_for_inference_enabled": False,
        "attn_drop": 0.0,
        "attn_implementation": "flash_attention",
        "decoder_type": "fast3r",
        "depth": 24,
        "drop": 0.0,
        "embed_dim": 1024,
        "enc_embed_dim": 1024,
        "mlp_ratio": 4.0,
        "num_heads": 16,
        "qkv_bias": True,
        "random_image_idx_embedding": True,
    },
    "encoder_args": {
        "attn_implementation": "flash_attention",
        "depth": 24,
        "embed_dim": 1024,
        "encoder_type": "croco",
        "img_size": 512,
        "mlp_ratio": 4,
        "num_heads": 16,
        "patch_embed_cls": "PatchEmbedDust3R",
        "patch_size": 16,
        "pos_embed": "RoPE100",
    },
    "head_args": {
        "conf_mode": ["exp", 1, math.inf],
        "depth_mode": ["exp", -math.inf, math.inf],
        "head_type": "dpt",
        "landscape_only": False,
        "output_mode": "pts3d",
        "patch_size": 16,
        "with_local_head": True,
    },
}


def test_the_released_file_is_read_and_written_back(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(RELEASED | {"freeze": "none"}))
    assert "Infinity" in (tmp_path / "config.json").read_text()
    config = Fast3RConfig.read(tmp_path / "config.json")
    assert config.image_size == 512
    assert config.hooks == (0, 12, 18, 24)
    assert config.decoder.attn_bias_for_inference_enabled is False
    config.write(tmp_path / "again.json")
    written = json.loads((tmp_path / "again.json").read_text())
    without_effect = {"attn_implementation", "drop", "attn_drop"}
    for group, content in RELEASED.items():
        assert written[group] == {key: value for key, value in content.items() if key not in without_effect}
    assert Fast3RConfig.read(tmp_path / "again.json") == config


def test_missing_keys_have_the_official_meaning() -> None:
    content = {group: dict(values) for group, values in RELEASED.items()}
    del content["decoder_args"]["attn_bias_for_inference_enabled"]
    del content["decoder_args"]["decoder_type"]
    del content["head_args"]["with_local_head"]
    config = Fast3RConfig.from_dict(content)
    assert config.decoder.attn_bias_for_inference_enabled is True
    assert config.head.with_local_head is False


def test_an_unknown_key_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    content = {group: dict(values) for group, values in RELEASED.items()}
    content["encoder_args"]["widht"] = 4
    assert Fast3RConfig.from_dict(content) == Fast3RConfig.from_dict(RELEASED)
    assert "encoder_args: the keys widht are unknown" in caplog.text


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    heads=st.integers(1, 4),
    depth=st.integers(10, 30),
    widths=st.tuples(*[st.integers(1, 900)] * 4),
    feature=st.sampled_from([16, 64, 256]),
    local=st.booleans(),
)
def test_any_configuration_survives_its_file(
    heads: int, depth: int, widths: tuple[int, int, int, int], feature: int, local: bool
) -> None:
    config = small_config(encoder_num_heads=heads, decoder_depth=depth, encoder_embed_dim=48)
    head = HeadConfig(with_local_head=local, dpt_reassemble_dims=widths, dpt_feature_dim=feature)
    config = replace(config, head=head)
    text = json.dumps(config.to_dict())
    assert Fast3RConfig.from_dict(json.loads(text)) == config
    assert ("dpt_feature_dim" in text) == (feature != 256)


@pytest.mark.parametrize(
    ("group", "key", "value", "complaint"),
    [
        ("encoder_args", "encoder_type", "dino_v2", "encoder_type is 'dino_v2'; it must be croco"),
        ("encoder_args", "patch_embed_cls", "Other", "patch_embed_cls is 'Other'"),
        ("encoder_args", "embed_dim", "wide", r"encoder_args\.embed_dim is 'wide'; it must be of type int"),
        ("encoder_args", "embed_dim", 1000, "encoder embed_dim is 1000"),
        ("encoder_args", "pos_embed", "cosine", "pos_embed is 'cosine'"),
        ("decoder_args", "decoder_type", "llama", "decoder_type is 'llama'"),
        ("decoder_args", "depth", 9, "decoder_args.depth is 9; it must be between 10 and 256"),
        ("decoder_args", "enc_embed_dim", 768, "enc_embed_dim is 768, expected 1024"),
        ("head_args", "depth_mode", ["exp", 0, math.inf], "depth_mode"),
        ("head_args", "depth_mode", "exp", "expected a list of 3"),
        ("head_args", "conf_mode", ["exp", "low", math.inf], "'low'; it must be of type float"),
        ("head_args", "head_type", "linear", "head_type is 'linear'; it must be dpt"),
    ],
)
def test_an_impossible_configuration_is_rejected(group: str, key: str, value: Any, complaint: str) -> None:
    content = {name: dict(values) for name, values in RELEASED.items()}
    content[group][key] = value
    with pytest.raises(UserError, match=complaint):
        Fast3RConfig.from_dict(content)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("{", "is not JSON"), ("[]", "expected an object"), ("{}", "no encoder_args"), (None, "cannot read")],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: str | None, complaint: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=complaint) as caught:
        Fast3RConfig.read(tmp_path / "config.json")
    assert "config.json" in str(caught.value)

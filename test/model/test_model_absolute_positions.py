"""The position table of small encoders: its effect, and the unchanged official layout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fast3r_ros.model import Fast3R, Fast3RConfig
from fast3r_ros.model.transformer import position_table

SMALL = {
    "encoder_args": {"embed_dim": 48, "depth": 2, "num_heads": 2},
    "decoder_args": {"embed_dim": 48, "enc_embed_dim": 48, "depth": 10, "num_heads": 2},
    "head_args": {"with_local_head": True, "dpt_feature_dim": 8, "dpt_last_dim": 8},
}


def network(absolute: bool) -> Fast3R:
    config = Fast3RConfig.from_dict(SMALL, "test")
    torch.manual_seed(0)
    return Fast3R(replace(config, encoder=replace(config.encoder, absolute_positions=absolute))).eval()


@torch.no_grad()
def tokens_of(model: Fast3R, height: int, width: int) -> torch.Tensor:
    """Tokens (h, w, C) of an image that is the same everywhere."""
    tokens = model.encode(torch.full((1, 3, height, width), 0.3)).tokens[0]
    return tokens.reshape(height // 16, width // 16, -1)


@pytest.mark.parametrize("size", [(48, 80), (80, 48)])
def test_only_the_table_distinguishes_patch_positions(size: tuple[int, int]) -> None:
    """Rotary positions are relative: without the table all patches of a blank image look alike."""
    blank = tokens_of(network(False), *size)
    assert (blank - blank[0, 0]).abs().max() < 1e-5
    placed = tokens_of(network(True), *size).flatten(0, 1)
    assert torch.pdist(placed).min() > 0.1


def test_rows_and_columns_have_their_own_halves() -> None:
    table = position_table((3, 4), 48, 100.0).reshape(3, 4, 48)
    assert (table[:, :, :24] == table[:, :1, :24]).all()
    assert (table[:, :, 24:] == table[:1, :, 24:]).all()
    assert torch.equal(table[0, 0], torch.tensor([0.0] * 12 + [1.0] * 12).repeat(2))
    assert torch.equal(table[2, 1, :24], position_table((9, 9), 48, 100.0).reshape(9, 9, 48)[2, 7, :24])


def test_the_official_layout_does_not_know_it(tmp_path: Path) -> None:
    official, ours = network(False), network(True)
    assert official.state_dict().keys() == ours.state_dict().keys()
    official.save_pretrained(tmp_path / "official")
    ours.save_pretrained(tmp_path / "ours")
    written = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("official", "ours")]
    assert "absolute_positions" not in written[0]["encoder_args"]
    assert written[1]["encoder_args"]["absolute_positions"] is True
    again = tokens_of(Fast3R.from_pretrained(tmp_path / "ours"), 48, 64)
    torch.testing.assert_close(again, tokens_of(ours, 48, 64))

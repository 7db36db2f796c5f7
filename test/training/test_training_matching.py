"""The auxiliary matching loss: its targets against the geometry, and its effect on training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fast3r_ros.errors import UserError
from fast3r_ros.model import Fast3R
from fast3r_ros.training.losses import Matching, matching_targets, token_matches
from fast3r_ros.training.objective import encode_views
from fast3r_ros.training.processes import join_processes
from fast3r_ros.training.stream import training_batch
from fast3r_ros.training.trainer import train
from fast3r_ros.training.training_config import TrainConfig, config_from_dict

PATCH = 16
CONTENT = {
    "seed": 5,
    "model": {
        "encoder_args": {"embed_dim": 48, "depth": 2, "num_heads": 2, "img_size": 96},
        "decoder_args": {"embed_dim": 48, "enc_embed_dim": 48, "depth": 10, "num_heads": 2},
        "head_args": {
            "with_local_head": True,
            "dpt_reassemble_dims": [16, 16, 16, 16],
            "dpt_feature_dim": 16,
            "dpt_last_dim": 16,
        },
    },
    "data": {"width": 96, "height": 64, "turn": [2, 10], "noise": 0.0, "exposure": 0.0, "partial": 0.3},
    "curriculum": [{"views": [3]}],
    "optimizer": {"kind": "muon", "learning_rate": 0.002, "warmup_steps": 2, "ema": 0.0},
    "run": {"steps": 6, "views_per_step": 12, "precision": "float32", "matching": 0.1, "log_every": 1},
}


def configuration(**sections: dict) -> TrainConfig:
    content = {
        name: {**CONTENT[name], **sections.get(name, {})}
        for name in CONTENT
        if name not in ("seed", "curriculum")
    }
    return config_from_dict({**CONTENT, **content}, "the test's configuration")


@settings(max_examples=15, deadline=None)
@given(step=st.integers(0, 1000))
def test_matches_are_distributions_that_point_at_the_true_place(step: int) -> None:
    batch = training_batch(configuration(), step)
    weights, visible = token_matches(batch, PATCH)
    assert torch.allclose(weights.sum(-1), torch.ones(()))
    views = torch.arange(batch.images.shape[1])
    own = weights[:, views, views]  # a token's match in its own view is itself, where anything is known
    known = batch.valid[:, :, PATCH // 2 :: PATCH, PATCH // 2 :: PATCH].flatten(2)
    assert torch.equal(visible[:, views, views], known)
    # centres are half a pixel off
    assert torch.allclose(own.diagonal(dim1=-2, dim2=-1)[known], torch.ones(()), atol=0.07)
    first_from_second = torch.linalg.inv(batch.world_from_camera[:, 0]) @ batch.world_from_camera[:, 1]
    rows, columns = batch.images.shape[-2] // PATCH, batch.images.shape[-1] // PATCH
    centres = torch.cartesian_prod(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5) * PATCH
    for sample in range(batch.images.shape[0]):
        points = (
            batch.points_camera[sample, 1, PATCH // 2 :: PATCH, PATCH // 2 :: PATCH].reshape(-1, 3).double()
        )
        moved = points @ first_from_second[sample, :3, :3].T + first_from_second[sample, :3, 3]
        image = moved @ batch.intrinsics[sample, 0].T
        pixel = (image[:, :2] / image[:, 2:]).flip(-1)
        inner = visible[sample, 1, 0] & (
            (pixel > PATCH / 2) & (pixel < torch.tensor([rows, columns]) * PATCH - PATCH / 2)
        ).all(-1)
        guess = weights[sample, 1, 0].double() @ centres.double()
        torch.testing.assert_close(guess[inner], pixel[inner], atol=0.05, rtol=0)


def test_targets_of_both_heads_are_distributions_over_the_right_views() -> None:
    batch = training_batch(configuration(), 0)
    (reference, in_first), (shared, anywhere) = matching_targets(*token_matches(batch, PATCH))
    tokens = reference.shape[-1] // 3
    assert torch.allclose(reference[in_first].sum(-1), torch.ones(()))
    assert reference[..., tokens:].count_nonzero() == 0
    assert torch.allclose(shared[anywhere].sum(-1), torch.ones(()))
    for view in range(3):
        place = slice(view * tokens, (view + 1) * tokens)
        assert shared[:, place, place].count_nonzero() == 0
    assert 0 < anywhere.float().mean() < 1


def test_a_network_whose_attention_is_the_truth_has_no_loss_and_others_have() -> None:
    config = configuration()
    torch.manual_seed(0)
    network = Fast3R(config.model)
    matching = Matching(network)
    batch = training_batch(config, 0)
    network.fuse(encode_views(network, batch.images))
    loss = matching.loss(batch)
    assert loss > 0.5
    loss.backward()
    weight = network.decoder.dec_blocks[2].attn.qkv.weight
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


@pytest.mark.slow
def test_muon_with_matching_learns_and_resumes_on_the_same_curve(tmp_path: Path) -> None:
    process = join_processes("cpu")
    whole = configuration(
        run={
            "steps": 24,
            "checkpoint_every": 100,
            "evaluate_every": 100,
            "evaluate_scenes": 1,
            "views_per_step": 6,
        }
    )
    train(whole, tmp_path / "whole", process)
    broken = configuration(
        run={
            "steps": 24,
            "checkpoint_every": 7,
            "evaluate_every": 100,
            "evaluate_scenes": 1,
            "views_per_step": 6,
        }
    )
    train(broken, tmp_path / "broken", process, minutes=1e-9)  # ends after one step
    train(broken, tmp_path / "broken", process, resume=True)
    wanted, got = (
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "broken")
    )
    curve = [row["loss"] for row in wanted if "loss" in row]
    assert [row["loss"] for row in got if "loss" in row] == pytest.approx(curve, abs=1e-4)
    matching = [row["matching"] for row in wanted if "matching" in row]
    assert sum(matching[-5:]) < 0.95 * sum(matching[:5])


@pytest.mark.parametrize(
    ("section", "values", "word"),
    [
        ("optimizer", {"kind": "sgd"}, "adamw, muon"),
        ("run", {"parallel": "fsdp"}, "parallel ddp"),
        ("run", {"recompute": True}, "recompute"),
    ],
)
def test_incompatible_options_are_rejected(section: str, values: dict, word: str) -> None:
    with pytest.raises(UserError, match=word):
        configuration(**{section: values})

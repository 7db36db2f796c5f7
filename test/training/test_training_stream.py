"""The stream of batches is a function of seed and step; the validation rejects random weights only."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny_training import tiny

from fast3r_ros.geometry.rigid import rigid_matrix, transform_points
from fast3r_ros.geometry.rotation import matrix_from_vector
from fast3r_ros.metrics.pose import pair_errors, pose_scores
from fast3r_ros.model import Fast3R
from fast3r_ros.training.losses import GroundTruth, points_in_first_view
from fast3r_ros.training.stream import held_out_batch, training_batch, view_count
from fast3r_ros.training.validation import accuracy, validate


def test_batches_are_a_function_of_seed_and_step() -> None:
    config = tiny()
    first, again, other = training_batch(config, 5), training_batch(config, 5), training_batch(config, 6)
    for name in ("images", "points_camera", "valid", "world_from_camera", "image_indices"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    assert first.images.shape != other.images.shape or not torch.equal(first.images, other.images)
    views = view_count(config, 5)
    assert first.images.shape == (12 // views, views, 3, 48, 64)
    assert (first.image_indices[:, 0] == 0).all()
    assert (first.image_indices[:, 1:] > 0).all()


def test_parts_of_a_batch_are_the_batch() -> None:
    config = tiny(data={"noise": 0.0})
    whole = training_batch(config, 4)
    parts = [training_batch(config, 4, part=part, parts=2) for part in range(2)]
    assert torch.equal(torch.stack([part.images for part in parts], 1).flatten(0, 1), whole.images)


def test_partial_views_are_blank_and_left_out() -> None:
    batch = training_batch(tiny(data={"partial": 1.0, "noise": 0.0, "exposure": 0.0}), 0)
    missing = ~batch.valid
    assert 0.02 < missing.float().mean() < 0.5
    assert (batch.images.movedim(2, -1)[missing] == 0).all()


def test_held_out_scenes_do_not_depend_on_training() -> None:
    data = tiny().data
    first = held_out_batch(data, range(2), 3, 1.0)
    assert torch.equal(
        first.images, held_out_batch(dataclasses.replace(data, noise=0.5), range(2), 3, 1.0).images
    )
    assert torch.equal(first.images[1:], held_out_batch(data, range(1, 2), 3, 1.0).images)


def test_untrained_weights_fail_the_validation() -> None:
    torch.manual_seed(0)
    result = validate(Fast3R(tiny().model), tiny().data, scenes=4, views=4, motion=2.0)
    assert result["rra_15"] < 0.7
    assert result["rta_15"] < 0.2
    assert result["global_error"] > 0.2


def test_the_ground_truth_passes_the_validation_at_every_scale() -> None:
    batch = held_out_batch(tiny().data, range(2), 4, 1.0)
    truth = GroundTruth(batch.points_camera, batch.valid, batch.world_from_camera)
    scale = torch.tensor([0.5, 1.0, 2.0, 3.0])[None, :, None, None, None]
    in_first, local = 0.3 * points_in_first_view(truth), scale * batch.points_camera
    result = accuracy(in_first, torch.ones_like(batch.points_camera[..., 0]), local, batch)
    assert result["rra_15"].all()
    assert result["rta_15"].all()
    assert result["rotation_error"].max() < 0.1
    assert result["global_error"].max() < 1e-4
    assert result["local_error"].max() < 1e-4


def test_validation_scores_pairs_as_the_evaluation_does() -> None:
    """The golden metric takes directions up to sign: who went backwards along the true line is right."""
    batch = held_out_batch(tiny().data, range(2), 4, 1.0)
    rng = np.random.default_rng(0)
    moved = batch.world_from_camera.numpy().copy()
    moved[0] = moved[0] @ rigid_matrix(matrix_from_vector(0.2 * rng.standard_normal((4, 3))), np.zeros(3))
    moved[1, :, :3, 3] *= -1
    first = np.linalg.inv(moved[:, :1]) @ moved
    in_first = torch.from_numpy(
        np.stack(
            [
                [transform_points(pose, view) for pose, view in zip(poses, views, strict=True)]
                for poses, views in zip(first, batch.points_camera.numpy(), strict=True)
            ]
        )
    )
    result = accuracy(in_first, torch.ones_like(batch.points_camera[..., 0]), batch.points_camera, batch)
    for scene in range(2):
        scores = pose_scores(pair_errors(moved[scene], batch.world_from_camera[scene]))
        assert result["rra_15"][scene].double().mean() == pytest.approx(scores["RRA@15"])
        assert result["rta_15"][scene].double().mean() == pytest.approx(scores["RTA@15"])
    assert result["rta_15"][1].all()
    assert not result["rra_15"][0].all()

"""The training loss against the official release, and with masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fast3r_ros.evaluation.golden_recipes import loss_input
from fast3r_ros.geometry.rigid import inverse, transform_points
from fast3r_ros.geometry.rotation import matrix_from_vector
from fast3r_ros.model.types import Pointmap, ViewPrediction
from fast3r_ros.training.losses import ConfidenceLoss, GroundTruth, confidence_loss

TEST = Path(__file__).parents[1]
GOLDEN = sorted((TEST / "golden" / "loss").glob("*.json"))
# The other two cases use options of the official loss that its training recipe does not use.
UNUSED_OPTIONS = {"l4_scale_consistent", "l5_gt_scale"}
MORE = [
    case
    for case in json.loads((TEST / "golden_more" / "losses.json").read_text())["cases"]
    if case["name"] not in UNUSED_OPTIONS
]
MORE_GRADIENTS = TEST / "golden_more" / "losses.npz"


def prediction(arrays: list[np.ndarray], local: bool) -> ViewPrediction:
    """From global points, their confidence, local points, their confidence."""
    tensors = [torch.from_numpy(array.astype(np.float32)).requires_grad_() for array in arrays]
    return ViewPrediction(Pointmap(*tensors[:2]), Pointmap(*tensors[2:]) if local else None)


def ground_truth(points_world: list, valid: list, world_from_camera: list) -> GroundTruth:
    """From V lists of (B, H, W, 3) world points, (B, H, W) masks and (B, 4, 4) poses."""
    camera = [
        np.stack([transform_points(inverse(p), x) for p, x in zip(poses, points, strict=True)])
        for points, poses in zip(points_world, world_from_camera, strict=True)
    ]
    return GroundTruth(
        torch.from_numpy(np.stack(camera, 1).astype(np.float32)),
        torch.from_numpy(np.stack(valid, 1)),
        torch.from_numpy(np.stack(world_from_camera, 1)),
    )


def golden_more(case: dict) -> tuple[list[ViewPrediction], GroundTruth]:
    rng = np.random.Generator(np.random.PCG64(case["seed"]))
    shape = case["batch"], case["height"], case["width"]
    points, valid, poses, predictions = [], [], [], []
    for view in range(case["num_views"]):
        matrices = np.tile(np.eye(4), (case["batch"], 1, 1))
        for matrix in matrices:
            matrix[:3, :3] = matrix_from_vector(0.7 * rng.standard_normal(3))
            matrix[:3, 3] = rng.standard_normal(3)
        poses.append(matrices)
        points.append(rng.standard_normal((*shape, 3)) * (1, 0.8, 0.5) + np.array([0, 0, 3]))
        valid.append((rng.uniform(size=shape) < case["valid_fraction"]) & (view != case.get("empty_view")))
        global_points = rng.standard_normal((*shape, 3)) + np.array([0, 0, 2])
        global_confidence = 1 + np.exp(rng.standard_normal(shape))
        local_points = rng.standard_normal((*shape, 3)) + np.array([0, 0, 2])
        local_confidence = 1 + np.exp(rng.standard_normal(shape))
        predictions.append(
            prediction([global_points, global_confidence, local_points, local_confidence], case["with_local"])
        )
    return predictions, ground_truth(points, valid, poses)


def assert_details(loss: ConfidenceLoss, details: dict) -> None:
    for head, part in (("global", loss.global_head), ("local", loss.local_head)):
        names = {"Regr3DMultiviewV3_pts3d_loss": "error", "ConfLossMultiviewV2_conf_loss": "weighted"}
        for official, ours in names.items():
            expected = [value for key, value in sorted(details.items()) if f"{official}_{head}/" in key]
            if not expected:
                continue
            assert part is not None
            expected = [0.0 if value is None else value for value in expected]
            np.testing.assert_allclose(getattr(part, ours).detach(), expected, atol=1e-5)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_cases(path: Path) -> None:
    case = json.loads(path.read_text())
    loss = confidence_loss(*loss_input(case), case["alpha"])
    assert loss.total.item() == pytest.approx(case["loss"], abs=1e-5)
    assert_details(loss, case["details"])


@pytest.mark.parametrize("case", MORE, ids=lambda case: case["name"])
def test_more_golden_cases_with_gradients(case: dict) -> None:
    predictions, truth = golden_more(case)
    loss = confidence_loss(predictions, truth, case["alpha"])
    assert loss.total.item() == pytest.approx(case["expected"]["loss"], abs=1e-5)
    assert_details(loss, case["expected"]["details"])
    loss.total.backward()
    stored = np.load(MORE_GRADIENTS)
    for view, ours in enumerate(predictions):
        tensors = {"pts3d_in_other_view": ours.global_points.points, "conf": ours.global_points.confidence}
        if ours.local_points is not None:
            tensors |= {"pts3d_local": ours.local_points.points, "conf_local": ours.local_points.confidence}
        for name, tensor in tensors.items():
            key = f"{case['name']}.grad.view{view}.{name}"
            if key in stored:
                gradient = tensor.grad.numpy().reshape(-1)[1::13]
                np.testing.assert_allclose(gradient, stored[key], atol=1e-6)


def test_invalid_points_may_be_anything() -> None:
    predictions, truth = golden_more(MORE[0])
    expected = confidence_loss(predictions, truth).total
    points = torch.where(truth.valid[..., None], truth.points_camera, torch.nan)
    broken = GroundTruth(points, truth.valid, truth.world_from_camera)
    loss = confidence_loss(predictions, broken)
    loss.total.backward()
    assert loss.total.item() == expected.item()
    assert all(torch.isfinite(view.global_points.points.grad).all() for view in predictions)


def test_scale_of_the_prediction_does_not_matter() -> None:
    predictions, truth = golden_more(MORE[0])
    scaled = [
        ViewPrediction(Pointmap(7 * view.global_points.points, view.global_points.confidence), None)
        for view in predictions
    ]
    alone = [ViewPrediction(view.global_points, None) for view in predictions]
    assert confidence_loss(scaled, truth).total.item() == pytest.approx(
        confidence_loss(alone, truth).total.item(), rel=1e-5
    )

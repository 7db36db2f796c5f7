"""Golden cases of the steps after the network: focal length, camera pose, training loss, pose metrics.

Each check returns its error and the error's limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fast3r_ros.evaluation import golden_recipes as recipes
from fast3r_ros.geometry.camera_pose import CameraPoses, poses_by_pnp, poses_from_pointmaps
from fast3r_ros.geometry.focal import estimate_focal
from fast3r_ros.geometry.intrinsics import centred_intrinsics, shift_pixel_centres
from fast3r_ros.geometry.rigid import inverse, transform_points
from fast3r_ros.metrics.pose import pair_errors, pose_scores
from fast3r_ros.training.losses import confidence_loss

FOCAL_BAR = 1e-3
NUMBER_BAR = 1e-4
# accuracy of an exact pose in float32, in units of the scene
ROUNDING = 1e-6


def check_focal(case: Mapping[str, Any]) -> tuple[float, float]:
    """Relative difference to the official focal length."""
    _, local, confidence = recipes.posed_view(case)
    masked = np.where(confidence[..., None] > 1, local, np.nan)
    estimate = estimate_focal(masked, pixel_centre=0.0)
    official = case["official"]["focal_weiszfeld"]
    return abs(float(estimate.focal[0]) - official) / official, FOCAL_BAR


def check_pose_from_pointmaps(case: Mapping[str, Any], search: bool) -> tuple[float, float]:
    """How much farther from the true pose the pointmap fit is than the official PnP; 0 when it is closer.

    Distances as in `_displacement`.  search: without a focal length, against the official search for one.
    """
    world, local, confidence = recipes.posed_view(case)
    intrinsics = shift_pixel_centres(centred_intrinsics(case["focal"], case["height"], case["width"]), 0.5)
    poses = poses_from_pointmaps(local, world, 1.0 * (confidence > 1), None if search else intrinsics[None])
    return _excess(poses, case, search), ROUNDING


def check_pose_by_pnp(case: Mapping[str, Any], search: bool) -> tuple[float, float]:
    """The same for our PnP."""
    world, _, confidence = recipes.posed_view(case)
    poses = poses_by_pnp(world, confidence, None if search else case["focal"], pixel_centre=0.0)
    return _excess(poses, case, search), ROUNDING


def check_loss(case: Mapping[str, Any]) -> tuple[float, float]:
    """Relative difference of the training loss and of its terms to the official ones."""
    predictions, truth = recipes.loss_input(case)
    loss = confidence_loss(predictions, truth, case["alpha"])
    ours = {"": [float(loss.total)]}
    for name, head in (("global", loss.global_head), ("local", loss.local_head)):
        if head is not None:
            ours[f"pts3d_loss_{name}"], ours[f"conf_loss_{name}"] = (
                head.error.tolist(),
                head.weighted.tolist(),
            )
    errors = [abs(ours[""][0] - case["loss"]) / (1 + abs(case["loss"]))]
    for key, official in case["details"].items():
        name, _, view = key.partition("_")[2].partition("/")
        errors.append(abs(ours[name][int(view)] - official) / (1 + abs(official)))
    return max(errors), NUMBER_BAR


def check_metric(case: Mapping[str, Any]) -> tuple[float, float]:
    """Largest difference of the pose metrics to the official ones."""
    scores = pose_scores(pair_errors(case["predicted_cam_to_world"], case["true_cam_to_world"]))
    officials = {name: case[name.replace("(", "").replace(")", "")] for name in scores}
    return max(abs(value - officials[name]) for name, value in scores.items()), NUMBER_BAR


def _excess(poses: CameraPoses, case: Mapping[str, Any], search: bool) -> float:
    if not poses.ok[0]:
        raise ValueError(f"no pose: {poses.reasons[0]}")
    official = case["official"]["pose_focal_search" if search else "pose_known_focal"]
    truth = np.array(case["true_cam_to_world"])
    points = recipes.posed_view(case)[1].reshape(-1, 3).astype(np.float64)
    ours, theirs = (_displacement(pose, truth, points) for pose in (poses.window_from_camera[0], official))
    return max(0.0, ours - theirs)


def _displacement(pose: ArrayLike, truth: np.ndarray, points: np.ndarray) -> float:
    """The distance by which a wrong pose moves the visible points (N, 3): the median, in scene units.

    One number for rotation and translation: their errors partly cancel, so a pose that is better overall may
    be worse in one of them.
    """
    moved = transform_points(inverse(truth) @ np.asarray(pose), points)
    return float(np.median(np.linalg.norm(moved - points, axis=-1)))

"""Golden cases: preprocessing, network, geometry, loss and metrics against the official release.

Each check returns its error and the error's limit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from fast3r_ros.errors import UserError
from fast3r_ros.evaluation import golden_recipes as recipes
from fast3r_ros.geometry.camera_pose import CameraPoses, poses_by_pnp, poses_from_pointmaps
from fast3r_ros.geometry.focal import estimate_focal
from fast3r_ros.geometry.intrinsics import centred_intrinsics, shift_pixel_centres
from fast3r_ros.geometry.rigid import inverse, transform_points
from fast3r_ros.metrics.pose import pair_errors, pose_scores
from fast3r_ros.model import Fast3R, Fast3RConfig, normalize, prepare_image
from fast3r_ros.model.precision import exact_float32, in_dtype
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
    """Error of the pointmap fit beyond that of the official PnP; 0 when it is smaller.

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


NETWORK_BAR = 1e-4
PREPROCESS_BAR = 2 / 255
Array = NDArray[Any]
Check = Callable[[str], tuple[float, float]]  # device -> error and its limit


@dataclass(frozen=True)
class CaseResult:
    """One case: its largest error in its own measure, whether it is small enough, and the problem if any."""

    case: str
    max_error: float
    ok: bool
    problem: str = ""

    def line(self) -> str:
        """The result as one line of JSON."""
        content: dict[str, Any] = {
            "case": self.case,
            "max_error": self.max_error if math.isfinite(self.max_error) else None,
            "ok": self.ok,
        }
        if self.problem:
            content["problem"] = self.problem
        return json.dumps(content)


def run(folder: Path, device: str = "cpu") -> Iterator[CaseResult]:
    """Every case of a golden folder in turn.  Raises UserError when the folder holds none."""
    cases = list(_find(folder))
    if not cases:
        raise UserError(f"{folder} holds no golden cases; expected forward/*/case.json and the like")
    for name, check in cases:
        try:
            with exact_float32():
                error, bar = check(device)
        except (OSError, ValueError, KeyError, RuntimeError) as problem:
            yield CaseResult(name, math.inf, False, f"{type(problem).__name__}: {problem}")
            continue
        yield CaseResult(name, error, bool(error < bar))


def _find(folder: Path) -> Iterator[tuple[str, Check]]:
    """Name and check of every case."""
    shapes = folder / "state_dict_vitl_512.json"
    if shapes.is_file():
        yield shapes.stem, partial(check_names, shapes)
    for path in sorted((folder / "forward").glob("*/case.json")):
        yield f"forward/{path.parent.name}", partial(check_forward, path.parent)
    for path in sorted((folder / "preprocess").glob("case.json")):
        for case in _read(path):
            width, height = case["source_wh"]
            yield f"preprocess/{width}x{height}", partial(check_preprocess, path.parent, case)
    for path in sorted((folder / "pose").glob("*.json")):
        case = _read(path)
        yield f"pose/{path.stem}/focal", _on_cpu(check_focal, case)
        for search, name in ((False, "known_focal"), (True, "focal_search")):
            yield f"pose/{path.stem}/{name}", _on_cpu(check_pose_from_pointmaps, case, search)
            yield f"pose/{path.stem}/{name}_pnp", _on_cpu(check_pose_by_pnp, case, search)
    for path in sorted((folder / "loss").glob("*.json")):
        yield f"loss/{path.stem}", _on_cpu(check_loss, _read(path))
    for path in sorted((folder / "metric").glob("*.json")):
        yield f"metric/{path.stem}", _on_cpu(check_metric, _read(path))


def _on_cpu(check: Callable[..., tuple[float, float]], *arguments: Any) -> Check:
    """A check that does not depend on the network's device."""
    return lambda device: check(*arguments)


def check_names(path: Path, device: str) -> tuple[float, float]:
    """Names and shapes of a full-size model, built without memory; the error is the number of differences."""
    content = _read(path)
    with torch.device("meta"):
        model = Fast3R(Fast3RConfig.from_dict(content["config"], str(path)))
    ours = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    theirs = content["state_dict"]
    wrong = [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
    total = sum(parameter.numel() for parameter in model.parameters())
    return float(len(wrong) + (total != content["total"])), 1.0


def golden_network(case: dict[str, Any], device: str = "cpu", dtype: torch.dtype = torch.float32) -> Fast3R:
    """The network of a forward case with the weights of its recipe, in eval mode."""
    with torch.device("meta"):
        model = Fast3R(Fast3RConfig.from_dict(case["config"], case["name"]))
    state = recipes.weights(
        {key: tensor.shape for key, tensor in model.state_dict().items()}, case["aliases"]
    )
    model.load_state_dict({key: tensor.to(device) for key, tensor in state.items()}, assign=True)
    return in_dtype(model, dtype).eval()


@torch.no_grad()
def check_forward(folder: Path, device: str) -> tuple[float, float]:
    """One forward pass against the stored points, confidences and hook samples."""
    case = _read(folder / "case.json")
    expected = np.load(folder / "expected.npz")
    model = golden_network(case, device)
    images = [
        image.to(device) for image in recipes.views(case["name"], case["batch"], case["view_shapes_hw"])
    ]
    features = model.fuse([model.encode(image) for image in images], torch.tensor(case["image_indices"]))
    tokens, channels = case["token_stride"]
    ours = {
        f"hook{number}_sample": hook[:, ::tokens, ::channels]
        for number, hook in zip(model.config.hooks, features.hooks, strict=True)
    }

    heads = {"global": model.global_head}
    if model.downstream_head_local is not None:
        heads["local"] = model.local_head
    step = case["output_stride"]
    for name, head in heads.items():
        for number, view in enumerate(head(features)):
            ours[f"points_{name}_{number}"] = view.points[:, ::step, ::step]
            ours[f"conf_{name}_{number}"] = view.confidence[:, ::step, ::step]
    missing = sorted(set(expected.files) - set(ours))
    if missing:
        raise ValueError(f"no result for {', '.join(missing)}")
    return max(_difference(ours[key].cpu().numpy(), expected[key]) for key in expected.files), NETWORK_BAR


def check_preprocess(folder: Path, case: dict[str, Any], device: str) -> tuple[float, float]:
    """One image through preprocessing; the error is the largest difference of the network's input."""
    width, height = case["source_wh"]
    image = normalize(prepare_image(recipes.picture(width, height), long_side=512).pixels).numpy()
    if list(image.shape[1:]) != case["true_shape_hw"]:
        raise ValueError(f"the result is {image.shape[1:]}, expected {case['true_shape_hw']}")
    step = case["sample_stride"]
    stored = np.load(folder / "expected.npz")[f"{width}x{height}"]
    return float(np.abs(image[:, ::step, ::step] - stored).max()), PREPROCESS_BAR


def _difference(ours: Array, theirs: Array) -> float:
    if ours.shape != theirs.shape:
        raise ValueError(f"a result has shape {ours.shape}, expected {theirs.shape}")
    error = np.abs(ours.astype(np.float64) - theirs) / (1 + np.abs(theirs))
    return float(error.max()) if np.isfinite(error).all() else math.inf


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))

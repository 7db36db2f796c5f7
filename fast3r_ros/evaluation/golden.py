"""Golden cases: numbers of the official release that this implementation must reproduce.

A folder holds cases of several kinds (test/golden/README.md); each kind has one function here.  The error of
a network case is max |a - b| / (1 + |b|) over points, confidences and the features that the heads read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fast3r_ros.errors import UserError
from fast3r_ros.evaluation import golden_geometry as geometry
from fast3r_ros.evaluation import golden_recipes as recipes
from fast3r_ros.model import Fast3R, Fast3RConfig, normalize, prepare_image
from fast3r_ros.model.precision import exact_float32, in_dtype

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
        yield f"pose/{path.stem}/focal", _on_cpu(geometry.check_focal, case)
        for search, name in ((False, "known_focal"), (True, "focal_search")):
            yield f"pose/{path.stem}/{name}", _on_cpu(geometry.check_pose_from_pointmaps, case, search)
            yield f"pose/{path.stem}/{name}_pnp", _on_cpu(geometry.check_pose_by_pnp, case, search)
    for path in sorted((folder / "loss").glob("*.json")):
        yield f"loss/{path.stem}", _on_cpu(geometry.check_loss, _read(path))
    for path in sorted((folder / "metric").glob("*.json")):
        yield f"metric/{path.stem}", _on_cpu(geometry.check_metric, _read(path))


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

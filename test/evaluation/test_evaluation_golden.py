"""The network against numbers of the official release, and the command that checks them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fast3r_ros.cli import main
from fast3r_ros.evaluation import golden
from fast3r_ros.evaluation import golden_recipes as recipes

GOLDEN = Path(__file__).parents[1] / "golden"
FORWARD = sorted(path.parent for path in GOLDEN.glob("forward/*/case.json"))


@pytest.mark.parametrize(
    "folder",
    [pytest.param(each, marks=pytest.mark.slow) if each.name == "medium" else each for each in FORWARD],
    ids=lambda folder: folder.name,
)
def test_forward_case(folder: Path) -> None:
    error, bar = golden.check_forward(folder, "cpu")
    assert error < bar / 5  # rounding leaves 1e-5; the official bar is 1e-4


def test_full_size_model_has_the_official_names_and_shapes() -> None:
    assert golden.check_names(GOLDEN / "state_dict_vitl_512.json", "cpu")[0] == 0


def median_error(ours: list, reference: list) -> float:
    ratios = []
    for low, high in zip(ours, reference, strict=True):
        for head in ("global_points", "local_points"):
            a, b = getattr(low, head), getattr(high, head)
            ratios.append(((a.points - b.points).norm(dim=-1) / b.points.norm(dim=-1)).flatten())
            ratios.append(((a.confidence - b.confidence).abs() / b.confidence).flatten())
    return max(float(ratio.median()) for ratio in ratios)


@pytest.mark.parametrize("name", ["landscape", pytest.param("mixed_resolutions", marks=pytest.mark.slow)])
@torch.no_grad()
def test_bfloat16_is_within_three_percent(name: str) -> None:
    case = json.loads((GOLDEN / "forward" / name / "case.json").read_text())
    images = recipes.views(case["name"], case["batch"], case["view_shapes_hw"])
    indices = torch.tensor(case["image_indices"])
    reference = golden.golden_network(case)(images, indices)
    low = golden.golden_network(case, dtype=torch.bfloat16)([image.bfloat16() for image in images], indices)
    assert all(view.global_points.points.dtype == torch.float32 for view in low)
    assert median_error(low, reference) < 0.03


def small_folder(target: Path) -> Path:
    """A copy of the quickest cases."""
    for name in ("forward/global_head_only", "pose", "metric"):
        shutil.copytree(GOLDEN / name, target / name)
    return target


def test_command_prints_one_line_per_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["golden", str(small_folder(tmp_path))]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"forward/global_head_only", "metric/ten_views", "pose/noisy/known_focal"} <= {
        line["case"] for line in lines
    }
    assert all(line["ok"] and line["max_error"] < 1e-3 for line in lines)


def test_command_fails_when_a_number_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small_folder(tmp_path) / "forward" / "global_head_only"
    expected = dict(np.load(folder / "expected.npz"))
    expected["conf_global_1"][0, 3, 4] += 0.01
    np.savez(folder / "expected.npz", **expected)
    assert main(["golden", str(tmp_path)]) == 1
    wrong = [line for line in map(json.loads, capsys.readouterr().out.splitlines()) if not line["ok"]]
    assert [line["case"] for line in wrong] == ["forward/global_head_only"]


def test_command_reports_a_broken_case_and_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small_folder(tmp_path)
    (folder / "forward" / "global_head_only" / "expected.npz").unlink()
    assert main(["golden", str(folder)]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    broken = next(line for line in lines if not line["ok"])
    assert broken["max_error"] is None
    assert "expected.npz" in broken["problem"]
    assert sum(line["ok"] for line in lines) == len(lines) - 1


def test_a_folder_without_cases_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["golden", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err

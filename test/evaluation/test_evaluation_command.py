"""`fast3r evaluate` prints and writes everything, scores the mapper, and goes on after a failure."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from true_answers import SIZE

from fast3r_ros.cli import main
from fast3r_ros.datasets.posed import PosedFrame, PosedSequence
from fast3r_ros.evaluation import tables
from fast3r_ros.evaluation.mapped import score_mapper
from fast3r_ros.evaluation.runner import (
    COMPARED,
    OFFLINE_TABLES,
    SAME_FRAMES,
)
from fast3r_ros.geometry.rigid import rigid_matrix
from fast3r_ros.synthetic.oracle_network import Disturbance, OracleNetwork
from fast3r_ros.synthetic.rooms import room_scene
from fast3r_ros.synthetic.sequence import SyntheticSequence, demo_sequence, pinhole
from fast3r_ros.synthetic.trajectories import room_path

pytestmark = pytest.mark.slow


def test_the_mapper_is_scored_by_its_trajectory() -> None:
    walk = demo_sequence(seconds=6.0, width=112, height=80)
    frames = tuple(
        PosedFrame(frame.stamp_ns, pose, walk.intrinsics, partial(np.asarray, frame.image))
        for frame, pose in zip(walk, walk.world_from_camera, strict=True)
    )
    network = OracleNetwork(walk, Disturbance(), seed=0)
    scores = score_mapper(PosedSequence("demo", frames), network)
    assert scores["windows"] > 0
    assert scores["ate_percent"] < 3
    assert scores["tracked"] > 0.6


def test_a_map_is_compared_with_the_true_depth() -> None:
    """Exact depth and poses give a thin map at the right place; noise of 5 % makes it thicker."""
    walk = demo_sequence(seconds=3.0, width=112, height=80, with_depth=True)
    frames = tuple(
        PosedFrame(
            frame.stamp_ns,
            pose,
            walk.intrinsics,
            partial(np.asarray, frame.image),
            partial(np.asarray, frame.depth),
        )
        for frame, pose in zip(walk, walk.world_from_camera, strict=True)
    )
    exact, noisy = (
        score_mapper(
            PosedSequence("demo", frames),
            OracleNetwork(walk, Disturbance(depth_noise=noise, outliers=0.0), seed=0),
        )
        for noise in (0.0, 0.05)
    )
    assert exact["map_error"] < 0.03
    assert exact["map_outliers"] < 0.02
    assert exact["thickness"] < 0.02
    assert noisy["thickness"] > 2 * exact["thickness"]


def test_results_survive_failures(
    random_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One scene of three has a broken image: the others are printed and written, and the status shows it."""
    root = tmp_path / "data"
    for scene in ("a", "b", "c"):
        write_tiny_scene(root / scene)
    (root / "b" / "color" / "1.png").write_bytes(b"no image")
    arguments = ["--dataset", "scannet", "--data-root", str(root), "--views", "2", "--device", "cpu"]
    arguments += [
        "--tables",
        "pose",
        "depth",
        "--output",
        str(tmp_path / "out"),
        "--model",
        str(random_model),
    ]
    assert main(["evaluate", *arguments]) == 1
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {row["scene"] for row in report["tables"]["depth"]["scenes"]} == {"a", "c"}
    assert len(report["problems"]) == 1
    assert "1.png" in report["problems"][0]
    assert report["problems"][0] in capsys.readouterr().out
    for scene in ("a", "c"):
        (root / scene / "color" / "1.png").write_bytes(b"no image")
    assert main(["evaluate", *arguments]) == 2, "nothing was measured"


def write_tiny_scene(folder: Path) -> None:
    for name in ("color", "depth", "pose", "intrinsic"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(2):
        pixels = rng.integers(0, 255, (SIZE * 3 // 4, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "color" / f"{index}.png")
        Image.fromarray(np.full(pixels.shape[:2], 2000, np.uint16)).save(folder / "depth" / f"{index}.png")
        np.savetxt(folder / "pose" / f"{index}.txt", rigid_matrix(np.eye(3), [0.1 * index, 0, 0]))
    np.savetxt(folder / "intrinsic" / "intrinsic_color.txt", [[90, 0, 56], [0, 90, 42], [0, 0, 1]])


def test_colmap_is_measured_on_the_same_frames(
    random_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A textured room from eight places, which COLMAP reconstructs; its row stands next to ours."""
    pytest.importorskip("pycolmap", reason="pycolmap is not installed: pip install pycolmap")
    scene = room_scene(3)
    walk = SyntheticSequence(scene, room_path(scene, 8, speed=0.25), pinhole(320, 240, 1.2), 320, 240)
    content = {"w": 320, "h": 240, "fl_x": walk.intrinsics[0, 0], "cx": 160, "cy": 120, "frames": []}
    for index, frame in enumerate(walk):
        Image.fromarray(frame.image).save(tmp_path / f"{index}.png")
        pose = walk.world_from_camera[index] @ np.diag([1.0, -1.0, -1.0, 1.0])
        content["frames"].append({"file_path": f"{index}.png", "transform_matrix": pose.tolist()})
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    arguments = ["--dataset", "nerfstudio", "--data-root", str(tmp_path), "--views", "8", "--peer", "colmap"]
    arguments += ["--tables", "pose", "trajectory", "--model", str(random_model), "--device", "cpu"]
    assert main(["evaluate", *arguments, "--output", str(tmp_path / "out")]) == 0
    assert "peer: COLMAP" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    (row,) = [row for row in report["tables"]["pose"]["scenes"] if row["head"].startswith("peer")]
    assert row["placed"] > 0.8
    assert row["RRA@5"] > 0.6
    (row,) = [row for row in report["tables"]["trajectory"]["scenes"] if row["head"].startswith("peer")]
    assert row["ate_percent"] < 5


def assert_every_column_is_explained(report: dict[str, Any], page: str) -> None:
    """Below its table, by its name, or by the name before `@`, `_` or a unit."""
    for table, content in report["tables"].items():
        section = page.split(f"## {table}\n")[1].split("\n## ")[0]
        below = " ".join(line for line in section.splitlines() if not line.startswith("|"))
        measured = {name for row in content["mean"] for name in row} - {*tables.LABELS, *tables.WHOLE}
        assert measured
        missing = [name for name in measured if not re.search(re.escape(re.split("[@_]", name)[0]), below)]
        assert not missing, (table, missing)


def test_the_command_prints_and_writes_everything(
    random_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--scenes", "2", "--views", "2", "4", "--heads", "local", "global"]
    arguments += ["--tables", *OFFLINE_TABLES, "--cloud-points", "2000", "--device", "cpu", "--same-frames"]
    assert (
        main(["evaluate", "--model", str(random_model), "--output", str(tmp_path / "out"), *arguments]) == 0
    )
    page = capsys.readouterr().out
    for table in [*OFFLINE_TABLES, *(table + SAME_FRAMES for table in COMPARED)]:
        assert f"## {table}\n" in page
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert_every_column_is_explained(report, page)
    assert len(report["tables"]["reconstruction"]["mean"]) == 4
    assert len(report["tables"]["reconstruction"]["scenes"]) == 8
    assert len(report["tables"]["pose"]["mean"]) == 4 + 2  # and the baseline for each number of views
    assert (tmp_path / "out" / "results.md").read_text() in page
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        f"{name}.png" for name in tables.PICTURES
    }


def test_the_command_scores_the_mapper_on_a_walk(
    random_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--tables", "mapper", "--walks", "1", "--walk-frames", "40", "--output", str(tmp_path)]
    assert main(["evaluate", "--model", str(random_model), "--split", "easy", *arguments]) == 0
    report = json.loads((tmp_path / "results.json").read_text())
    assert_every_column_is_explained(report, capsys.readouterr().out)
    (row,) = report["tables"]["mapper"]["scenes"]
    assert row["scene"] == "walk-000"
    assert row["windows"] >= 1
    assert row["ate_percent"] is None or row["ate_percent"] > 3, "random weights give no trajectory"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "tum"], "--data-root is missing"),
        (["--dataset", "kitti", "--data-root", "."], "'kitti'"),
        (["--views", "0"], "--views is 0"),
        (["--same-frames"], "give several, such as --views 2 4 8"),
        (["--device", "cuda:99", "--scenes", "1"], "cuda:99"),
    ],
)
def test_a_usage_error_gives_one_line(
    random_model: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--model", str(random_model), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_pictures_of_others_are_not_replaced(
    random_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pose.png").write_text("the user's")
    arguments = ["--model", str(random_model), "--output", str(tmp_path), "--scenes", "1", "--tables", "pose"]
    assert main(["evaluate", *arguments]) == 2
    assert "pose.png is not from an earlier evaluation" in capsys.readouterr().err
    (tmp_path / "pose.png").unlink()
    assert main(["evaluate", *arguments]) == 0
    assert main(["evaluate", *arguments]) == 0, "its own results are replaced"

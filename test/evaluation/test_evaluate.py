"""The evaluation: perfect results score perfectly, wrong ones do not, and the command prints all."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fast3r_ros.cli import main
from fast3r_ros.datasets import DATASETS
from fast3r_ros.datasets.posed import PosedFrame, PosedSequence
from fast3r_ros.errors import UserError
from fast3r_ros.evaluation import held_out, offline, tables
from fast3r_ros.evaluation.mapped import score_mapper
from fast3r_ros.evaluation.offline import Views, read_views
from fast3r_ros.evaluation.runner import (
    BASELINES,
    COMPARED,
    OFFLINE_TABLES,
    SAME_FRAMES,
    SETTING,
    average,
    run_offline,
    settings,
)
from fast3r_ros.evaluation.tables import PUBLISHED, published_rows
from fast3r_ros.geometry.intrinsics import pixel_rays
from fast3r_ros.geometry.rigid import inverse, rigid_matrix, transform_points
from fast3r_ros.mapping.data import UInt8
from fast3r_ros.model import Fast3R, Fast3RConfig
from fast3r_ros.synthetic.oracle_network import Disturbance, OracleNetwork
from fast3r_ros.synthetic.rooms import room_scene
from fast3r_ros.synthetic.sequence import SyntheticSequence, demo_sequence, pinhole
from fast3r_ros.synthetic.trajectories import room_path

pytestmark = pytest.mark.slow

SIZE = 112
TINY = {
    "encoder_args": {"embed_dim": 24, "depth": 1, "num_heads": 2, "img_size": SIZE},
    "decoder_args": {"embed_dim": 24, "enc_embed_dim": 24, "depth": 10, "num_heads": 2},
    "head_args": {
        "with_local_head": True,
        "dpt_reassemble_dims": [8, 8, 8, 8],
        "dpt_feature_dim": 8,
        "dpt_last_dim": 8,
    },
}


@pytest.fixture(scope="module")
def walks() -> list:
    return held_out.short_walks("easy", 2, 6)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    Fast3R(Fast3RConfig.from_dict(TINY, "test")).eval().save_pretrained(folder)
    return folder


def true_answer(views: Views, scale: float = 0.37) -> offline.Prediction:
    """The result of a perfect network, in its own scale."""
    height, width = views.images.shape[1:3]
    assert views.depth is not None
    local = np.stack(
        [
            scale * pixel_rays(matrix, height, width) * depth[..., None]
            for matrix, depth in zip(views.intrinsics, views.depth, strict=True)
        ]
    )
    first_from_world = inverse(views.world_from_camera[0])
    world = views.points_world().astype(np.float64)
    points = scale * np.stack([transform_points(first_from_world, view) for view in world])
    confidence = np.full(views.images.shape[:3], 5.0, np.float32)
    own_scale = np.linspace(0.5, 2, len(local))[:, None, None, None]
    return offline.Prediction(
        points.astype(np.float32), confidence, (own_scale * local).astype(np.float32), confidence
    )


@pytest.mark.parametrize("head", offline.HEADS)
def test_a_perfect_network_scores_perfectly(walks: list, head: str) -> None:
    views = read_views(walks[0].frames, SIZE)
    placed = offline.place(true_answer(views), head)
    poses = offline.score_poses(placed, views)
    assert poses["RRA@5"] == poses["RTA@5"] == poses["placed"] == 1.0
    assert poses["mAA(30)"] > 0.96
    assert offline.score_trajectory(placed, views)["ate_percent"] < 0.5
    depth = offline.score_depth(placed, views)
    assert depth["AbsRel"] < 0.005
    assert depth["delta<1.25"] > 0.999
    points = offline.score_points(placed, views, max_points=0)
    assert points["point_error"] < 1e-3
    assert points["accuracy"] < 1e-2
    assert points["normal_consistency"] > 0.9
    assert points["f_score"] > 0.999


def test_errors_show_in_the_tables_where_they_belong(walks: list) -> None:
    views = read_views(walks[0].frames, SIZE)
    answer = true_answer(views)
    rng = np.random.default_rng(0)
    noisy = answer.points_local * rng.normal(1, 0.1, (*answer.points_local.shape[:3], 1)).astype(np.float32)
    placed = offline.place(replace(answer, points_local=noisy), "local")
    assert 0.07 < offline.score_depth(placed, views)["AbsRel"] < 0.09  # mean of |N(0, 0.1)|
    assert offline.score_poses(placed, views)["RRA@5"] == 1.0
    assert offline.score_points(placed, views)["point_error"] > 0.03

    swapped = replace(answer, points_global=np.roll(answer.points_global, 1, axis=0))
    assert offline.score_poses(offline.place(swapped, "local"), views)["RRA@5"] < 0.9


def test_only_the_confident_pixels_align(walks: list) -> None:
    """Half of the pixels are wrong with low confidence; the alignment's point error ignores them."""
    views = read_views(walks[0].frames, SIZE)
    answer = true_answer(views)
    points, confidence = answer.points_global.copy(), answer.confidence_global.copy()
    points[:, :, ::3] += 2.0
    confidence[:, :, ::3] = 1.0
    placed = offline.place(replace(answer, points_global=points, confidence_global=confidence), "global")
    assert offline.score_points(placed, views)["point_error"] < 1e-3


def test_a_network_without_a_local_head_gets_advice_for_evaluation(walks: list) -> None:
    answer = true_answer(read_views(walks[0].frames, SIZE))
    without = replace(answer, points_local=np.full_like(answer.points_local, np.nan))
    assert np.isfinite(offline.place(without, "global").window_from_camera).all()
    with pytest.raises(UserError, match="--heads global"):
        offline.place(without, "local")


def test_untrained_weights_score_near_chance(walks: list, random_model: Path) -> None:
    model = Fast3R.from_pretrained(random_model)
    rows = run_offline(
        walks,
        lambda indices: offline.predictor(model, indices),
        settings([6], ["local"], ["spread"]),
        ["pose", "depth", "reconstruction"],
        SIZE,
    )
    still, ours = average(rows["pose"], SETTING)
    assert still["head"] == BASELINES["pose"][0]
    assert still["RTA@30"] == still["failed"] == 0.0
    assert ours["RRA@15"] < 0.3
    assert ours["RRA@15"] < still["RRA@15"]
    assert ours["RTA@15"] < 0.2
    assert ours["mAA(30)"] < 0.1
    flat, ours = average(rows["depth"], SETTING)
    assert not ours["AbsRel"] < 0.7 * flat["AbsRel"]  # NaN when no depth was positive
    (points,) = average(rows["reconstruction"], SETTING)
    assert points["point_error"] > 0.2
    assert points["f_score"] < 0.5


def test_the_grid_runs_every_setting_on_every_scene(walks: list) -> None:
    calls = []
    seen = {read_views([f], SIZE).images.tobytes(): f for walk in walks for f in walk.frames}

    def predict_with(indices: str) -> offline.Predict:
        def predict(images: UInt8) -> offline.Prediction:
            calls.append((indices, len(images)))
            return true_answer(read_views([seen[image.tobytes()] for image in images], SIZE))

        return predict

    grid = settings([4, 2], offline.HEADS, offline.INDEX_STRATEGIES)
    assert len(grid) == 12
    rows = run_offline(walks, predict_with, grid, ["depth"], SIZE)
    assert len(calls) == 2 * 2 * 3  # one pass serves both heads
    mean = average(rows["depth"], SETTING)
    assert [row["views"] for row in mean] == [2] * 7 + [4] * 7
    baseline = mean[0]
    assert baseline["head"] == BASELINES["depth"][0]
    assert baseline["AbsRel"] > 0.1
    assert all(row["AbsRel"] < 1e-4 for row in mean[1:7])
    assert all(row["scenes"] == 2 for row in mean)


def test_the_same_frames_are_scored_for_every_number_of_views(walks: list) -> None:
    """Views between the first and the last get wrong points: only tables that score all views may see it."""
    sequence = walks[0]
    frames = {read_views([frame], SIZE).images.tobytes(): frame for frame in sequence.frames}

    def predict(images: UInt8) -> offline.Prediction:
        answer = true_answer(read_views([frames[image.tobytes()] for image in images], SIZE))
        wrong, local = answer.points_global.copy(), answer.points_local.copy()
        wrong[1:-1] = np.roll(wrong[1:-1], 20, axis=2)
        local[1:-1, ..., 2] *= np.linspace(1, 2, SIZE)
        return replace(answer, points_global=wrong, points_local=local)

    grid = settings([2, 4, 6], ["local"], ["spread"])
    tables = ["pose", "reconstruction", "depth", "trajectory"]
    rows = run_offline([sequence], lambda _: predict, grid, tables, SIZE, same_frames=True)
    assert set(rows) == {*tables, *(table + SAME_FRAMES for table in tables[:3])}
    for suffix, perfect in (("", [True, False, False]), (SAME_FRAMES, [True, True, True])):
        ours = {t: [row for row in rows[t + suffix] if row["head"] == "local"] for t in tables[:3]}
        assert [row["rotation_error"] < 0.1 for row in ours["pose"]] == perfect
        assert [row["AbsRel"] < 0.005 for row in ours["depth"]] == perfect
        assert [row["point_error"] < 2e-3 for row in ours["reconstruction"]] == perfect


def test_frames_in_common_must_make_a_pair(walks: list) -> None:
    grid = settings([1, 4], ["local"], ["spread"])
    with pytest.raises(UserError, match="only 1 frame in common"):
        run_offline(walks, lambda _: pytest.fail("not run"), grid, ["pose"], SIZE, same_frames=True)


def test_failures_are_counted_and_not_averaged() -> None:
    rows = [{"scene": "a", "views": 2, "ate": 1.0}, {"scene": "b", "views": 2, "ate": np.inf}]
    assert average(rows, ["views"]) == [{"views": 2, "scenes": 2, "failed": 1, "ate": 1.0}]


def test_published_rows_are_named_as_published() -> None:
    report = {
        "dataset": "co3d",
        "model": "m",
        "settings": {},
        "tables": {"pose": {"mean": [{"views": 10, "RRA@15": 0.5}], "scenes": []}},
    }
    page = tables.markdown(report)
    assert re.search(r"\| measured \| 10 \| 50\.0 \|", page)
    assert re.search(r"\| published: Fast3R \(Yang .* Table 1, .*\) \| – \| 96\.2 \| 90\.2 \| 81\.6 \|", page)
    assert re.search(r"\| published: RelPose .* \| – \| 57\.1 \| – \|", page)


def test_published_numbers_fit_our_tables_and_units(walks: list) -> None:
    placed = offline.place(true_answer(read_views(walks[0].frames, SIZE)), "local")
    views = read_views(walks[0].frames, SIZE)
    ours = {
        "pose": offline.score_poses(placed, views),
        "reconstruction": offline.score_points(placed, views, 2000),
        "depth": offline.score_depth(placed, views),
    }
    for row in PUBLISHED:
        assert row.dataset in DATASETS
        assert row.values.keys() <= ours[row.table].keys()
        assert all(0 < value < 1 for value in row.values.values()), row  # shares, or metres in a room
    assert published_rows("7scenes", "reconstruction")[-1].values["accuracy_median"] == pytest.approx(0.0158)
    assert published_rows("synthetic", "pose") == []


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
    assert "ate_percent" in capsys.readouterr().out
    report = json.loads((tmp_path / "results.json").read_text())
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


def test_index_strategies_reach_the_network(walks: list, random_model: Path) -> None:
    """Two views: view 1 sits at the far end of the trained range, at a drawn place, or at 1."""
    model = Fast3R.from_pretrained(random_model)
    images = read_views(walks[0].frames[:2], SIZE).images
    points = {
        (indices, seed): offline.predictor(model, indices, seed)(images).points_global[1]
        for indices in offline.INDEX_STRATEGIES
        for seed in (0, 1)
    }
    again = offline.predictor(model, "drawn", 0)(images).points_global[1]
    np.testing.assert_array_equal(points["drawn", 0], again)
    assert not np.array_equal(points["drawn", 0], points["drawn", 1])
    for fixed in ("spread", "counted"):
        np.testing.assert_array_equal(points[fixed, 0], points[fixed, 1])
    assert not np.array_equal(points["spread", 0], points["counted", 0])


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

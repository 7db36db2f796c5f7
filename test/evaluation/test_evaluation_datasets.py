"""Every dataset format on a tiny rendered sample.

What is read back must put every pixel's point where the renderer had it; that fails for a wrong axis, unit,
direction of a pose, pixel centre or depth scale.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from dataset_samples import (
    FRAMES,
    WRITERS,
    at_integers,
    points_of,
    render,
    units,
    write_image,
    write_matrix,
    write_scannet,
)

from fast3r_ros.datasets import open_dataset
from fast3r_ros.datasets.posed import PosedSequence
from fast3r_ros.errors import UserError
from fast3r_ros.evaluation import held_out
from fast3r_ros.evaluation.offline import read_views, spread_frames
from fast3r_ros.geometry.intrinsics import pixel_rays
from fast3r_ros.synthetic.sequence import SyntheticSequence
from fast3r_ros.training.stream import recorded_sequences, recorded_views


def test_the_iphone_of_scannetpp_has_arkit_poses(tmp_path: Path) -> None:
    truth = render()
    folder, entries = tmp_path / "data" / "02455b3d20" / "iphone", {}
    for index, frame in enumerate(truth):
        name = f"frame_{10 * index:06d}"
        write_image(folder / "rgb" / f"{name}.jpg", frame.image)
        write_image(folder / "depth" / f"{name}.png", units(frame.depth, 1000))
        entries[name] = {
            "timestamp": 17.5 + index,
            "pose": np.eye(4).tolist(),  # in the session's own frame
            "aligned_pose": truth.world_from_camera[index].tolist(),
            "intrinsic": at_integers(truth.intrinsics).tolist(),
        }
    (folder / "pose_intrinsic_imu.json").write_text(json.dumps(entries))
    assert_true_points(tmp_path, "scannetpp", truth)


@pytest.mark.parametrize(
    "name", ["7scenes", "scannet", "nrgbd", "dtu", "blendedmvs", "nerfstudio", "habitat"]
)
def test_rotations_from_text_are_made_rotations(name: str, tmp_path: Path) -> None:
    """Published poses are orthonormal only to 3e-4; poses read must pass the library's 1e-6."""
    WRITERS[name][0](tmp_path)
    changed = 0
    for path in [p for p in tmp_path.rglob("*") if p.suffix in (".txt", ".json")]:
        rounded = re.sub(r"-?\d\.\d{4,}", lambda found: f"{float(found[0]):.3f}", path.read_text())
        changed += rounded != path.read_text()
        path.write_text(rounded)
    assert changed
    for frame in open_dataset(name, tmp_path)[0].frames:
        rotation = frame.world_from_camera[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)


def assert_true_points(root: Path, name: str, truth: SyntheticSequence) -> None:
    """Every pixel's point equals the renderer's; at its own long side an image is only cropped."""
    frames = open_dataset(name, root)[0].frames
    assert len(frames) == FRAMES
    views = read_views(frames, truth.width)
    points, valid = views.points_world(), views.valid
    assert valid.mean() > 0.9
    cropped = (truth.height - views.images.shape[1]) // 2
    for index, frame in enumerate(truth):
        rows = slice(cropped, cropped + views.images.shape[1])
        error = np.linalg.norm(points[index] - points_of(truth, index)[rows], axis=-1)
        assert error[valid[index]].max() < 2e-3
        difference = np.abs(views.images[index].astype(int) - frame.image[rows])
        assert difference.mean() < 6  # JPEG


@pytest.mark.parametrize("name", WRITERS)
def test_every_pixel_is_where_the_renderer_had_it(name: str, samples: dict) -> None:
    root, truth = samples[name]
    sequences = open_dataset(name, root)
    assert [sequence.name for sequence in sequences] == [WRITERS[name][1]]
    stamps = [frame.stamp_ns for frame in sequences[0].frames]
    assert sorted(set(stamps)) == stamps
    assert_true_points(root, name, truth)


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_training_samples(name: str, samples: dict) -> None:
    """What training sees of two views: depth of one view, moved to the other, is the depth seen there."""
    sequences = recorded_sequences(name, str(samples[name][0]))
    views = recorded_views(sequences, 2, 100, 64, 48, np.random.default_rng(0))
    rays = pixel_rays(views.intrinsics[0], 48, 64) * views.depth[0][..., None]
    points = rays[views.depth[0] > 0]
    first, second = views.world_from_camera
    seen = (points @ first[:3, :3].T + first[:3, 3] - second[:3, 3]) @ second[:3, :3]
    pixels = seen @ views.intrinsics[1].T
    x, y = np.floor(pixels[:, :2] / pixels[:, 2:]).astype(int).T
    inside = (x >= 0) & (x < 64) & (y >= 0) & (y < 48) & (seen[:, 2] > 0)
    assert inside.mean() > 0.3
    measured = views.depth[1][y[inside], x[inside]]
    error = np.abs(measured / seen[inside, 2] - 1)[measured > 0]
    assert np.median(error) < 0.02


def one_intrinsics_file_per_frame(scene: Path) -> None:
    """ScanNet++-like: other folder names, PNG, and 3x3 intrinsics for each frame."""
    matrix = np.loadtxt(scene / "intrinsic" / "intrinsic_color.txt")[:3, :3]
    shutil.rmtree(scene / "intrinsic")
    (scene / "pose").rename(scene / "poses")
    for path in sorted((scene / "color").iterdir()):
        write_matrix(scene / "intrinsics" / f"{path.stem}.txt", matrix)
        write_image(scene / "images" / f"{path.stem}.png", cv2.imread(str(path))[..., ::-1])
    shutil.rmtree(scene / "color")


def depth_as_pfm(scan: Path) -> None:
    """As MVSNet's own tools write it; without masks."""
    for path in (scan / "depths").glob("*.npy"):
        assert cv2.imwrite(str(path.with_suffix(".pfm")), np.load(path).astype(np.float32))
        path.unlink()
    shutil.rmtree(scan / "binary_masks")


def other_ndc(category: Path) -> None:
    """Intrinsics in units of half the width and half the height, as the first release of CO3D has them."""
    with gzip.open(category / "frame_annotations.jgz", "rt") as file:
        entries = json.load(file)
    for entry in entries:
        height, width = entry["image"]["size"]
        ratio = min(height, width) / np.array([width, height])
        for key in ("focal_length", "principal_point"):
            entry["viewpoint"][key] = (np.array(entry["viewpoint"][key]) * ratio).tolist()
        entry["viewpoint"]["intrinsics_format"] = "ndc_norm_image_bounds"
    with gzip.open(category / "frame_annotations.jgz", "wt") as file:
        json.dump(entries, file)


@pytest.mark.parametrize(
    ("name", "folder", "change"),
    [
        ("scannet", "scene0000_00", one_intrinsics_file_per_frame),
        ("dtu", "scan1", depth_as_pfm),
        ("co3d", "apple", other_ndc),
    ],
)
def test_variants_of_a_format(
    name: str, folder: str, change: Callable[[Path], None], samples: dict, tmp_path: Path
) -> None:
    shutil.copytree(samples[name][0] / folder, tmp_path / folder)
    change(tmp_path / folder)
    assert_true_points(tmp_path, name, samples[name][1])


def test_raw_depth_of_7scenes_has_the_depth_cameras_focal_length(samples: dict, tmp_path: Path) -> None:
    shutil.copytree(samples["7scenes"][0] / "chess" / "seq-03", tmp_path / "chess" / "seq-03")
    for path in (tmp_path / "chess" / "seq-03").glob("*.depth.proj.png"):
        path.rename(path.with_name(path.name.replace(".depth.proj", ".depth")))
    frame = open_dataset("7scenes", tmp_path)[0].frames[0]
    assert frame.intrinsics[0, 0] == 585
    assert frame.read_depth is not None
    depth = frame.read_depth()
    assert (depth[:5] == 0).all(), "65535 is unknown"
    assert (depth[5:] > 0.1).mean() > 0.9


def test_views_follow_resize_and_a_depth_map_of_another_size(tmp_path: Path) -> None:
    truth = write_scannet(tmp_path)
    for path in (tmp_path / "scene0000_00" / "depth").glob("*.png"):
        depth = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), cv2.resize(depth, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST))
    views = read_views(open_dataset("scannet", tmp_path)[0].frames, 64)
    assert views.images.shape == (FRAMES, 48, 64, 3)
    points, valid = views.points_world(), views.valid
    exact = points_of(truth, 0)[::3, ::3][: 48 // 2, : 64 // 2]  # every third pixel is every second here
    error = np.linalg.norm(points[0, ::2, ::2] - exact, axis=-1)[valid[0, ::2, ::2]]
    assert np.median(error) < 0.02


def test_views_are_spread_evenly_and_within_the_gap() -> None:
    sequence = held_out.short_walks("easy", 1, 9)[0]
    assert spread_frames(sequence, 3) == [0, 4, 8]
    assert spread_frames(sequence, 3, max_gap=2) == [0, 2, 4]
    with pytest.raises(UserError, match="9 frames"):
        spread_frames(sequence, 10)


def test_synthetic_scenes_repeat_and_splits_differ() -> None:
    def tilt(sequence: PosedSequence) -> float:
        return max(abs(float(frame.world_from_camera[2, 2])) for frame in sequence.frames)

    first, again = (held_out.short_walks("full", 6, 4) for _ in range(2))
    np.testing.assert_array_equal(first[3].frames[1].read_image(), again[3].frames[1].read_image())
    easy = held_out.short_walks("easy", 6, 4)
    assert max(tilt(walk) for walk in easy) < 1e-9, "level cameras"
    assert np.mean([tilt(walk) for walk in first]) > 0.01
    walk = held_out.long_walks("full", 1, 5)[0]
    assert len(walk.frames) == 5
    assert walk.frames[4].read_depth().shape == walk.frames[4].read_image().shape[:2]

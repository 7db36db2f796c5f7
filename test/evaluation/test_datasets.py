"""Every dataset format on a tiny rendered sample that is written as the format's specification says.

What is read back must put every pixel's point where the renderer had it; that fails for a wrong axis, unit,
direction of a pose, pixel centre or depth scale.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from fast3r_ros.datasets import open_dataset
from fast3r_ros.datasets.posed import PosedSequence
from fast3r_ros.errors import UserError
from fast3r_ros.evaluation import held_out
from fast3r_ros.evaluation.views import read_views, spread_frames
from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.geometry.rotation import quaternion_from_matrix
from fast3r_ros.synthetic.scene import room_scene
from fast3r_ros.synthetic.sequence import SyntheticSequence, pinhole
from fast3r_ros.synthetic.trajectories import room_path

SCENE = room_scene(20_000_001)
FRAMES = 3
OPENGL_FROM_OPTICAL = np.diag([1.0, -1.0, -1.0, 1.0])


def render(width: int = 96, height: int = 72, intrinsics: np.ndarray | None = None) -> SyntheticSequence:
    if intrinsics is None:
        intrinsics = pinhole(width, height, np.deg2rad(70)) + np.array([[0, 0, 1.5], [0, 0, -2], [0, 0, 0]])
    path = room_path(SCENE, FRAMES, speed=0.2)
    return SyntheticSequence(SCENE, path, intrinsics, width, height, with_depth=True)


def write_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image if image.ndim == 2 else image[..., ::-1])


def write_matrix(path: Path, matrix: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, matrix, fmt="%.9f")


def units(depth: np.ndarray, per_metre: float) -> np.ndarray:
    return np.round(depth * per_metre).astype(np.uint16)


def at_integers(intrinsics: np.ndarray) -> np.ndarray:
    """For pixel centres at integers, as most datasets give them."""
    return intrinsics - np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])


def write_7scenes(root: Path) -> SyntheticSequence:
    intrinsics = np.array([[525, 0, 320.5], [0, 525, 240.5], [0, 0, 1]])
    truth = render(640, 480, intrinsics)
    (root / "chess").mkdir()
    (root / "chess" / "TestSplit.txt").write_text("sequence3\n")
    for folder in ("seq-01", "seq-03"):
        for index, frame in enumerate(truth):
            stem = root / "chess" / folder / f"frame-{index:06d}"
            write_image(stem.with_name(stem.name + ".color.png"), frame.image)
            depth = units(frame.depth, 1000)
            depth[:5] = 65535
            write_image(stem.with_name(stem.name + ".depth.proj.png"), depth)
            write_matrix(stem.with_name(stem.name + ".pose.txt"), truth.world_from_camera[index])
    return truth


def write_nrgbd(root: Path) -> SyntheticSequence:
    truth = render(intrinsics=pinhole(96, 72, np.deg2rad(70)))
    poses = []
    for index, frame in enumerate(truth):
        write_image(root / "kitchen" / "images" / f"img{index}.png", frame.image)
        write_image(root / "kitchen" / "depth" / f"depth{index}.png", units(frame.depth, 1000))
        poses.append(truth.world_from_camera[index] @ OPENGL_FROM_OPTICAL)
    write_image(root / "kitchen" / "images" / "img3.png", truth[0].image)
    poses.append(np.full((4, 4), np.nan))
    np.savetxt(root / "kitchen" / "poses.txt", np.concatenate(poses))
    (root / "kitchen" / "focal.txt").write_text(f"{truth.intrinsics[0, 0]:.9f}\n")
    return truth


def write_dtu(root: Path) -> SyntheticSequence:
    truth = render()
    for index, frame in enumerate(truth):
        name = f"{index:08d}"
        write_image(root / "scan1" / "images" / f"{name}.jpg", frame.image)
        mask = np.full(frame.depth.shape, 255, np.uint8)
        mask[:5] = 0
        write_image(root / "scan1" / "binary_masks" / f"{name}.png", mask)
        (root / "scan1" / "depths").mkdir(exist_ok=True)
        np.save(root / "scan1" / "depths" / f"{name}.npy", 1000 * frame.depth)
        world_from_camera = truth.world_from_camera[index].copy()
        world_from_camera[:3, 3] *= 1000
        rows = [" ".join(map(str, row)) for row in inverse(world_from_camera)]
        intrinsics = [" ".join(map(str, row)) for row in at_integers(truth.intrinsics)]
        text = ["extrinsic", *rows, "", "intrinsic", *intrinsics, "", "425.0 2.5"]
        (root / "scan1" / "cams").mkdir(exist_ok=True)
        (root / "scan1" / "cams" / f"{name}_cam.txt").write_text("\n".join(text))
    return truth


def write_tum(root: Path) -> SyntheticSequence:
    truth = render(640, 480, np.array([[535.4, 0, 320.6], [0, 539.2, 248.1], [0, 0, 1]]))
    folder = root / "rgbd_dataset_freiburg3_room"
    images, depths, poses = ["# color images"], ["# depth maps"], ["# ground truth"]
    for index, frame in enumerate(truth):
        stamp = 1305031910.0 + 0.1 * index
        write_image(folder / "rgb" / f"{stamp:.6f}.png", frame.image)
        write_image(folder / "depth" / f"{stamp:.6f}.png", units(frame.depth, 5000))
        images.append(f"{stamp:.6f} rgb/{stamp:.6f}.png")
        depths.append(f"{stamp + 0.004:.6f} depth/{stamp:.6f}.png")
        pose = truth.world_from_camera[index]
        numbers = [*pose[:3, 3], *quaternion_from_matrix(pose[:3, :3])]
        poses.append(f"{stamp - 0.003:.6f} " + " ".join(f"{number:.9f}" for number in numbers))
    images.append(f"{stamp + 5:.6f} rgb/{stamp:.6f}.png")  # no pose within 20 ms
    for name, lines in (("rgb", images), ("depth", depths), ("groundtruth", poses)):
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return truth


def write_scannet(root: Path) -> SyntheticSequence:
    truth = render()
    scene = root / "scene0000_00"
    for index, frame in enumerate(truth):
        write_image(scene / "color" / f"{10 * index}.jpg", frame.image)
        write_image(scene / "depth" / f"{10 * index}.png", units(frame.depth, 1000))
        write_matrix(scene / "pose" / f"{10 * index}.txt", truth.world_from_camera[index])
    write_image(scene / "color" / "100.jpg", truth[0].image)
    write_matrix(scene / "pose" / "100.txt", np.full((4, 4), -np.inf))
    intrinsics = np.eye(4)
    intrinsics[:3, :3] = at_integers(truth.intrinsics)
    write_matrix(scene / "intrinsic" / "intrinsic_color.txt", intrinsics)
    return truth


def write_co3d(root: Path) -> SyntheticSequence:
    truth = render()
    half = min(truth.width, truth.height) / 2
    flip = np.diag([-1.0, -1.0, 1.0])
    entries = []
    for index in reversed(range(FRAMES)):
        frame, camera_from_world = truth[index], inverse(truth.world_from_camera[index])
        image, depth = f"apple/1_2/images/frame{index:06d}.jpg", f"apple/1_2/depths/frame{index:06d}.png"
        write_image(root / image, frame.image)
        write_image(root / depth, (frame.depth / 2).astype(np.float16).view(np.uint16))
        matrix = truth.intrinsics
        viewpoint = {
            "R": (flip @ camera_from_world[:3, :3]).T.tolist(),
            "T": (flip @ camera_from_world[:3, 3]).tolist(),
            "focal_length": [matrix[0, 0] / half, matrix[1, 1] / half],
            "principal_point": [
                (truth.width / 2 - matrix[0, 2]) / half,
                (truth.height / 2 - matrix[1, 2]) / half,
            ],
            "intrinsics_format": "ndc_isotropic",
        }
        entries.append(
            {
                "sequence_name": "1_2",
                "frame_number": index,
                "image": {"path": image, "size": [truth.height, truth.width]},
                "depth": {"path": depth, "scale_adjustment": 2.0},
                "viewpoint": viewpoint,
            }
        )
    with gzip.open(root / "apple" / "frame_annotations.jgz", "wt") as file:
        json.dump(entries, file)
    return truth


WRITERS: dict[str, tuple[Callable[[Path], SyntheticSequence], str]] = {
    "7scenes": (write_7scenes, "chess/seq-03"),
    "nrgbd": (write_nrgbd, "kitchen"),
    "dtu": (write_dtu, "scan1"),
    "tum": (write_tum, "rgbd_dataset_freiburg3_room"),
    "scannet": (write_scannet, "scene0000_00"),
    "co3d": (write_co3d, "apple/1_2"),
}


def points_of(truth: SyntheticSequence, index: int) -> np.ndarray:
    """(H, W, 3) true world points, straight from the renderer."""
    v, u = np.mgrid[: truth.height, : truth.width] + 0.5
    matrix, depth = truth.intrinsics, truth[index].depth
    x, y = (u - matrix[0, 2]) / matrix[0, 0] * depth, (v - matrix[1, 2]) / matrix[1, 1] * depth
    camera = np.stack([x, y, depth, np.ones_like(x)], axis=-1)
    return (camera @ truth.world_from_camera[index].T)[..., :3]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, SyntheticSequence]]:
    """A folder of every format and what was written there; not to be changed."""
    roots = {name: tmp_path_factory.mktemp(name) for name in WRITERS}
    return {name: (root, WRITERS[name][0](root)) for name, root in roots.items()}


def assert_true_points(root: Path, name: str, truth: SyntheticSequence) -> None:
    """Every pixel's point is where the renderer had it; at its own long side an image is only cropped."""
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


GARBAGE = {"nothing": b"", "words": b"there are no numbers here\n", "bytes": bytes(range(128, 256)) * 4}


@pytest.mark.parametrize("content", GARBAGE)
@pytest.mark.parametrize("name", WRITERS)
def test_whatever_file_is_broken_is_named(name: str, content: str, samples: dict, tmp_path: Path) -> None:
    """One file of each kind is overwritten: a UserError that names it, and nothing else, comes out."""
    root, copy = samples[name][0], tmp_path / "copy"
    kinds: dict[str, Path] = {}
    for path in sorted(root.rglob("*.*")):
        if "seq-01" not in path.parts and path.is_file():
            kinds.setdefault(re.sub(r"\d+", "N", str(path.relative_to(root))), path.relative_to(root))
    assert len(kinds) >= 3
    for path in kinds.values():
        shutil.copytree(root, copy, copy_function=os.link)
        (copy / path).unlink()
        (copy / path).write_bytes(GARBAGE[content])
        with pytest.raises(UserError) as problem:
            read_all(name, copy)
        assert path.name in str(problem.value) or "holds no sequence" in str(problem.value)
        shutil.rmtree(copy)


def read_all(name: str, root: Path) -> None:
    for frame in open_dataset(name, root)[0].frames:
        frame.read_image()
        assert frame.read_depth is not None
        frame.read_depth()


@pytest.mark.parametrize("name", WRITERS)
def test_an_empty_folder_says_what_was_expected(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no sequence"):
        open_dataset(name, tmp_path)
    with pytest.raises(UserError, match="no folder"):
        open_dataset(name, tmp_path / "missing")


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(UserError, match="'kitti'"):
        open_dataset("kitti", Path("."))


def test_broken_files_are_named(tmp_path: Path) -> None:
    write_scannet(tmp_path)
    (tmp_path / "scene0000_00" / "pose" / "10.txt").write_text("1 2 3\n")
    with pytest.raises(UserError, match=r"10\.txt holds 3 numbers"):
        open_dataset("scannet", tmp_path)
    write_scannet(tmp_path)
    (tmp_path / "scene0000_00" / "color" / "0.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"0\.jpg"):
        open_dataset("scannet", tmp_path)[0].frames[0].read_image()


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

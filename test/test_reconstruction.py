"""`from fast3r_ros import reconstruct`: the Python interface, with files, PIL images and arrays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fast3r_ros
from fast3r_ros import Fast3R, UserError, reconstruct
from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.io.ply import read_ply
from fast3r_ros.pictures import as_rgb
from fast3r_ros.synthetic.oracle_network import OracleNetwork
from fast3r_ros.synthetic.sequence import demo_sequence

ROOT = Path(__file__).resolve().parents[1]
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def walk():
    """Ten views of a room, a second apart, with their truth."""
    return demo_sequence(10.0, width=112, height=80, rate=1.0)


@pytest.fixture(scope="module")
def photos(walk, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index in range(4):
        Image.fromarray(walk[index].image).resize((448, 320)).save(folder / f"{index}.png")
    return folder


class Seen:
    """The oracle network, for images instead of frames with stamps."""

    def __init__(self, walk, start_ns=0):
        self.network, self.walk = OracleNetwork(walk), walk

    def encode(self, frame):
        index = round(frame.stamp_ns * 1e-8)  # pictures come at 10 Hz
        true = self.walk[index]
        encoded = self.network.encode(true)
        return encoded

    def reconstruct(self, views):
        return self.network.reconstruct(views)


def test_a_scene_is_the_truth_up_to_one_similarity(walk):
    scene = reconstruct([walk[index].image for index in range(6)], model=Seen(walk))
    assert [view.name for view in scene.views] == [f"image {index}" for index in range(6)]
    assert not scene.not_placed
    true = np.array([walk.world_from_camera[index] for index in range(6)])
    relative = [inverse(scene.poses[0]) @ pose for pose in scene.poses]
    wanted = [inverse(true[0]) @ pose for pose in true]
    scale = np.linalg.norm(relative[5][:3, 3]) / np.linalg.norm(wanted[5][:3, 3])
    for found, expected in zip(relative, wanted, strict=True):
        np.testing.assert_allclose(found[:3, :3], expected[:3, :3], atol=0.01)
        np.testing.assert_allclose(found[:3, 3], scale * expected[:3, 3], atol=0.05 * scale)
    for view in scene.views:  # its points are what its camera sees: they fall onto their pixels
        inside = (view.points[view.valid] - view.pose[:3, 3]) @ view.pose[:3, :3]
        pixels = inside @ (view.network_from_image @ view.intrinsics).T
        rows, columns = np.nonzero(view.valid)
        off = pixels[:, :2] / pixels[:, 2:] - np.stack([columns, rows], 1) - 0.5
        assert np.median(np.abs(off)) < 0.5


def test_files_and_arrays_and_pil_images_are_one(photos):
    paths = sorted(photos.glob("*.png"))
    given = {
        "glob": str(photos / "*.png"),
        "paths": paths,
        "mixed": [str(paths[0]), Image.open(paths[1]), as_rgb(paths[2]), as_rgb(paths[3]) / np.float32(255)],
    }
    gates = {"registration.min_view_share": 0, "registration.min_inlier_share": 0}
    scenes = {name: reconstruct(images, parameters=gates) for name, images in given.items()}
    first = scenes["glob"]
    assert len(first.views) + len(first.not_placed) == 4
    assert first.views
    for scene in scenes.values():
        np.testing.assert_array_equal(scene.points, first.points)
        np.testing.assert_array_equal(scene.poses, first.poses)
        np.testing.assert_array_equal(scene.intrinsics, first.intrinsics)
    view = first.views[0]
    assert view.size == (448, 320)
    assert view.intrinsics[0, 2] == pytest.approx(224, abs=1)
    assert view.points.shape == (*view.confidence.shape, 3) == view.image.shape
    assert first.points.shape == first.colors.shape == (*first.confidence.shape, 3)


@pytest.mark.parametrize("suffix", [".ply", ".pcd", ".glb"])
def test_a_scene_is_saved(walk, tmp_path, suffix):
    scene = reconstruct([walk[index].image for index in range(3)], model=Seen(walk))
    scene.save(tmp_path / f"scene{suffix}")
    if suffix == ".ply":
        np.testing.assert_array_equal(read_ply(tmp_path / "scene.ply").points, scene.points)
    assert (tmp_path / f"scene{suffix}").stat().st_size > 12 * len(scene.points)
    with pytest.raises(UserError, match=r"give \.ply, \.pcd, \.glb"):
        scene.save(tmp_path / "scene.obj")


def test_a_long_walk_slides(walk):
    scene = reconstruct([frame.image for frame in walk], model=Seen(walk), mode="window")
    assert 2 <= len(scene.views) <= len(walk)
    assert len(scene.views) + len(scene.not_placed) == len(walk)


def test_the_model_takes_pictures(photos):
    model = Fast3R.from_pretrained("demo")
    paths = sorted(photos.glob("*.png"))[:2]
    with torch.inference_mode():
        by_path = model([paths[0], str(paths[1])])
        by_array = model([as_rgb(paths[0]), Image.open(paths[1])])
    for one, other in zip(by_path, by_array, strict=True):
        assert torch.equal(one.global_points.points, other.global_points.points)
    assert by_path[0].global_points.points.shape[0] == 1
    with pytest.raises(UserError, match=r"view 1: no such image: nothing\.jpg"):
        model([paths[0], "nothing.jpg"])


@pytest.mark.parametrize(
    ("picture", "text"),
    [
        (np.zeros((8, 8, 3), np.int64), "int64 of shape"),
        (np.full((8, 8, 3), 2.0), "outside 0..1"),
        (np.full((8, 8, 3), np.nan), "outside 0..1"),
        (np.zeros((3, 8, 8), np.uint8), "order RGB"),
        ("nothing.jpg", "no such image"),
        (None, "give a path"),
    ],
)
def test_a_file_that_is_not_an_image_is_named(picture, text):
    with pytest.raises(UserError, match=text):
        reconstruct([picture, picture])


def test_grey_and_transparent_arrays_become_rgb():
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    np.testing.assert_array_equal(as_rgb(grey), np.stack([grey] * 3, 2))
    np.testing.assert_array_equal(as_rgb(np.dstack([grey] * 4)), np.stack([grey] * 3, 2))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mode": "al"}, "mode is 'al'"),
        ({"parameters": {"window.sise": 3}}, "window.size"),
        ({"model": "nothing"}, "nothing"),
    ],
)
def test_usage_errors_are_named(photos, options, text):
    with pytest.raises(UserError, match=text):
        reconstruct(str(photos), **options)
    with pytest.raises(UserError, match="no images"):
        reconstruct([])


def test_the_demo_model_on_photos_is_warned_of(photos, caplog):
    reconstruct(str(photos), max_views=2)
    assert "only knows synthetic rooms" in caplog.text


def test_importing_the_package_imports_nothing_heavy():
    code = "import fast3r_ros, sys; print(sorted({'torch', 'numpy', 'cv2', 'rclpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there_and_documented():
    for name in set(fast3r_ros.__all__) - {"__version__"}:
        assert getattr(fast3r_ros, name).__doc__
    assert set(fast3r_ros.__all__) <= set(dir(fast3r_ros))
    with pytest.raises(AttributeError, match="nothing"):
        _ = fast3r_ros.nothing

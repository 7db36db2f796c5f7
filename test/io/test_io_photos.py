"""Results for tools that train on the photos, read by these tools' own rules, and the mesh."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import trimesh
from PIL import Image
from scipy.spatial import cKDTree

from fast3r_ros.cli import main
from fast3r_ros.errors import UserError
from fast3r_ros.io.cameras import read_cameras
from fast3r_ros.io.glb import GLTF_FROM_MAP
from fast3r_ros.io.mesh import require_open3d
from fast3r_ros.io.ply import read_ply
from fast3r_ros.io.run_report import REPORT
from fast3r_ros.io.sources import open_source

TURNED = {0x0112: 6}  # EXIF: the file's right side is the top


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Typical photos: large, rotated by EXIF, grey, with white space and numbers in names."""
    folder = tmp_path_factory.mktemp("photos")
    for index, frame in enumerate(open_source("synthetic:1.2")):
        picture = Image.fromarray(frame.image).resize((900, 676))
        match index % 4:
            case 0:
                picture.save(folder / f"IMG_{index}.JPG", quality=95)
            case 1:
                exif = Image.Exif()
                exif.update(TURNED)
                picture.transpose(Image.Transpose.ROTATE_90).save(
                    folder / f"IMG_{index} turned.jpg", quality=95, exif=exif
                )
            case 2:
                picture.convert("L").save(folder / f"IMG_{index}.png")
            case _:
                picture.save(folder / f"{index:06d}.png")
    return folder


@pytest.fixture(scope="module")
def mapped(photos, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("mapped") / "out"
    every = ["--set", "keyframes.motion=0", "--set", "keyframes.max_similarity=1"]
    mesh = [] if why_no_mesh() else ["--mesh"]
    assert main(["reconstruct", str(photos), "--output", str(output), *mesh, *every]) == 0
    return output


def why_no_mesh() -> str:
    """On a machine without OpenGL, Open3D is there and cannot be imported."""
    try:
        require_open3d()
    except UserError as error:
        return str(error)
    return ""


def look(image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Grey values at pixels whose centres are at integer + 0.5."""
    columns, rows = np.floor(pixels).astype(int).T
    return image[rows, columns].mean(1)


def seen_points(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Points in the camera of a view by its depth picture, and their grey by the image at network size."""
    records, _ = read_cameras(folder / "cameras.json")
    record = next(each for each in records if each.name == name)
    depth = np.asarray(Image.open(folder / "depth" / f"{name}.png")) / 1000.0
    image = np.asarray(Image.open(folder / "images" / f"{name}.png").convert("RGB"))
    rows, columns = np.nonzero(depth[8:-8:3, 8:-8:3])
    rows, columns = rows * 3 + 8, columns * 3 + 8
    rays = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))])
    points = (np.linalg.inv(record.intrinsics) @ rays * depth[rows, columns]).T
    return points @ record.map_from_camera[:3, :3].T + record.map_from_camera[:3, 3], image[
        rows, columns
    ].mean(1)


def best_shift(image: np.ndarray, pixels: np.ndarray, grey: np.ndarray) -> tuple[int, int]:
    """The whole-pixel shift (right, down) at which the photo best matches the points."""
    shifts = [(x, y) for x in range(-6, 7) for y in range(-6, 7)]
    return min(shifts, key=lambda shift: np.abs(look(image, pixels + shift) - grey).mean())


def test_colmap_and_the_photos_by_pycolmap(mapped):
    """The rules of 3DGS: the named image is in `images`, is used unchanged, and has the camera's size."""
    model = pycolmap.Reconstruction(str(mapped / "sparse" / "0"))
    records, _ = read_cameras(mapped / "cameras.json")
    assert len(model.images) == len(records) >= 8
    kinds = set()
    for (_, image), record in zip(sorted(model.images.items()), records, strict=True):
        camera = model.cameras[image.camera_id]
        with Image.open(mapped / "images" / image.name) as opened:
            assert opened.mode == "RGB"
            assert opened.size == (camera.width, camera.height) == (900, 676)
            pixels = np.asarray(opened)
        kinds.add(Path(image.name).suffix)
        points, grey = seen_points(mapped, record.name)
        projected = np.array([image.project_point(point) for point in points])
        right, down = best_shift(pixels, projected, grey)
        assert max(abs(right), abs(down)) <= 1, (image.name, right, down)
    assert kinds == {".JPG", ".png"}
    names = {image.name for image in model.images.values()}
    assert all(len(name.split()) == 1 for name in names)
    assert not {name for name in names if name[:6].isdecimal()}


def test_transforms_of_nerfstudio(mapped):
    content = json.loads((mapped / "transforms.json").read_text())
    records, _ = read_cameras(mapped / "cameras.json")
    assert len(read_ply(mapped / content["ply_file_path"]).points)
    for frame, record in zip(content["frames"], records, strict=True):
        pixels = np.asarray(Image.open(mapped / frame["file_path"]))
        assert pixels.shape == (frame["h"], frame["w"], 3)
        points, grey = seen_points(mapped, record.name)
        world_from_gl = np.array(frame["transform_matrix"])
        x, y, z = ((points - world_from_gl[:3, 3]) @ world_from_gl[:3, :3]).T
        columns = frame["cx"] - frame["fl_x"] * x / z
        rows = frame["cy"] + frame["fl_y"] * y / z
        right, down = best_shift(pixels, np.stack([columns, rows], 1), grey)
        assert max(abs(right), abs(down)) <= 1, (frame["file_path"], right, down)


def test_plain_photos_are_not_stored_twice(mapped, photos):
    assert (mapped / "images" / "IMG_0.JPG").samefile(photos / "IMG_0.JPG")
    assert (photos / "IMG_1 turned.jpg").read_bytes() != (mapped / "images" / "IMG_1_turned.png").read_bytes()


def test_frames_of_a_video_become_files(tmp_path):
    assert main(["reconstruct", "synthetic:1", "--output", str(tmp_path / "out")]) == 0
    model = pycolmap.Reconstruction(str(tmp_path / "out" / "sparse" / "0"))
    frames = {frame.stamp_ns: frame for frame in open_source("synthetic:1")}
    records, _ = read_cameras(tmp_path / "out" / "cameras.json")
    for (_, image), record in zip(sorted(model.images.items()), records, strict=True):
        assert image.name.startswith("frame_")
        written = np.asarray(Image.open(tmp_path / "out" / "images" / image.name)).astype(int)
        assert np.abs(written - frames[record.stamp_ns].image).mean() < 3


def test_network_images_on_request(tmp_path, photos):
    out = tmp_path / "out"
    assert main(["reconstruct", str(photos), "--output", str(out), "--colmap-images", "network"]) == 0
    model = pycolmap.Reconstruction(str(out / "sparse" / "0"))
    for image in model.images.values():
        camera = model.cameras[image.camera_id]
        assert Image.open(out / "images" / image.name).size == (camera.width, camera.height)
    assert not list((out / "images").glob("IMG*"))


@pytest.mark.slow
def test_a_later_run_removes_only_its_own_photos(tmp_path, photos):
    out = tmp_path / "out"
    (out / "images").mkdir(parents=True)
    (out / "images" / "IMG_0.JPG").write_bytes(b"of the user")
    arguments = ["reconstruct", str(photos), "--output", str(out), "--max-views", "6"]
    assert main(arguments) == 0
    listed = json.loads((out / REPORT).read_text())["files"]
    ours = [name for name in listed if name.startswith("images/") and not name[7:13].isdecimal()]
    assert ours
    assert "images/IMG_0.JPG" not in ours
    assert main([*arguments, "--colmap-images", "network"]) == 0
    assert [name for name in ours if (out / name).exists()] == []
    assert (out / "images" / "IMG_0.JPG").read_bytes() == b"of the user"
    assert len(list(photos.iterdir())) >= 10


def test_the_mesh_lies_on_the_map(mapped):
    if why_no_mesh():
        pytest.skip(why_no_mesh())
    mesh = trimesh.load(mapped / "map_mesh.ply")
    cloud = read_ply(mapped / "map.ply")
    assert len(mesh.faces) > 1000
    extent = np.linalg.norm(np.ptp(cloud.points, 0))
    distance, nearest = cKDTree(cloud.points).query(mesh.vertices)
    assert np.percentile(distance, 90) < 0.03 * extent
    assert np.percentile(cKDTree(mesh.vertices).query(cloud.points)[0], 90) < 0.05 * extent
    shown = np.asarray(mesh.visual.vertex_colors)[:, :3].astype(int)
    assert np.median(np.abs(shown - cloud.colors[nearest])) < 30
    scene = trimesh.load_scene(mapped / "map_mesh.glb")
    (turned,) = scene.geometry.values()
    np.testing.assert_allclose(turned.vertices, mesh.vertices @ GLTF_FROM_MAP[:3, :3].T, atol=1e-4)


def test_a_missing_library_of_the_system_is_named(tmp_path, photos, monkeypatch, capsys):
    (tmp_path / "open3d.py").write_text(
        "raise OSError('libEGL.so.1: cannot open shared object file: No such file or directory')"
    )
    monkeypatch.delitem(sys.modules, "open3d", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["reconstruct", str(photos), "--output", str(tmp_path / "out"), "--mesh"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.endswith("apt install libegl1\n")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_reported_before_the_run(tmp_path, photos, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["reconstruct", str(photos), "--output", str(tmp_path / "out"), "--mesh"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()

"""Every output is opened by a foreign tool and has the right content."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
import trimesh
from evo.tools import file_interface
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pypcd4 import PointCloud
from scipy.spatial.transform import Rotation

from fast3r_ros.errors import UserError
from fast3r_ros.files import whole_file
from fast3r_ros.geometry.rigid import rigid_matrix
from fast3r_ros.geometry.rotation import matrix_from_vector
from fast3r_ros.io.cameras import (
    CameraRecord,
    read_cameras,
    trajectory_error,
    write_cameras,
    write_trajectory,
)
from fast3r_ros.io.glb import GLTF_FROM_MAP, write_glb
from fast3r_ros.io.pcd import write_pcd
from fast3r_ros.io.ply import read_ply, write_ply
from fast3r_ros.io.preview import _fitted, _frustum_size, verdict, write_preview
from fast3r_ros.io.scenes import write_colmap
from fast3r_ros.io.view_images import CONFIDENCE_STEPS, DEPTH_STEPS, write_view_images
from fast3r_ros.mapping.data import Cloud, PoseEstimate, ViewEstimate

SHAPES = st.tuples(st.integers(0, 20), st.just(3))
COORDINATES = st.floats(-1e6, 1e6, width=32)


def record_of(view: ViewEstimate) -> CameraRecord:
    """A view in the form for the writers."""
    height, width = view.image.shape[:2]
    name = f"{view.keyframe_id:06d}"
    return CameraRecord(
        name, view.stamp_ns, view.camera, width, height, view.intrinsics, view.map_from_camera
    )


@pytest.fixture(scope="module")
def some_cloud(walk) -> Cloud:
    """A cloud small enough for text formats."""
    return Cloud(walk.cloud.points[::40], walk.cloud.colors[::40], walk.cloud.confidence[::40])


def test_ply_in_trimesh_and_back(tmp_path, walk):
    write_ply(tmp_path / "map.ply", walk.cloud, comment="lengths in m")
    opened = trimesh.load(tmp_path / "map.ply")
    np.testing.assert_array_equal(opened.vertices.astype(np.float32), walk.cloud.points)
    np.testing.assert_array_equal(opened.colors[:, :3], walk.cloud.colors)
    raw = opened.metadata["_ply_raw"]["vertex"]["data"]
    np.testing.assert_array_equal(raw["confidence"].ravel(), walk.cloud.confidence)
    assert b"format binary_little_endian" in (tmp_path / "map.ply").read_bytes()[:200]
    again = read_ply(tmp_path / "map.ply")
    np.testing.assert_array_equal(again.points, walk.cloud.points)
    np.testing.assert_array_equal(again.confidence, walk.cloud.confidence)


def test_open3d_opens_clouds(tmp_path, some_cloud):
    open3d = pytest.importorskip(
        "open3d",
        reason="open3d, or libGL, libEGL or libX11 that it needs, is not installed here: "
        "pip install -r requirements/readers.txt",
        exc_type=ImportError,
    )
    write_ply(tmp_path / "map.ply", some_cloud)
    write_pcd(tmp_path / "map.pcd", some_cloud)
    for name in ("map.ply", "map.pcd"):
        opened = open3d.io.read_point_cloud(str(tmp_path / name))
        np.testing.assert_allclose(np.asarray(opened.points), some_cloud.points, atol=1e-4)
        np.testing.assert_allclose(np.asarray(opened.colors) * 255, some_cloud.colors, atol=0.01)
        properties = open3d.t.io.read_point_cloud(str(tmp_path / name)).point
        confidence = properties["confidence"].numpy().ravel()
        np.testing.assert_allclose(confidence, some_cloud.confidence, atol=1e-4)


def test_ply_of_others_gets_defaults(tmp_path):
    points = np.arange(12.0).reshape(4, 3)
    trimesh.PointCloud(points).export(tmp_path / "plain.ply")
    cloud = read_ply(tmp_path / "plain.ply")
    np.testing.assert_allclose(cloud.points, points)
    assert cloud.colors.shape == (4, 3)
    assert (cloud.confidence == 1).all()


@pytest.mark.parametrize("content", [b"", b"ply\nformat binary", b"not a ply at all", bytes(range(256))])
def test_foreign_file_is_no_ply(tmp_path, content):
    (tmp_path / "x.ply").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.ply is not a PLY"):
        read_ply(tmp_path / "x.ply")


def test_pcd_in_pypcd4(tmp_path, walk):
    write_pcd(tmp_path / "map.pcd", walk.cloud)
    opened = PointCloud.from_path(tmp_path / "map.pcd")
    np.testing.assert_array_equal(opened.numpy(("x", "y", "z")), walk.cloud.points)
    np.testing.assert_array_equal(PointCloud.decode_rgb(opened.pc_data["rgb"]), walk.cloud.colors)
    np.testing.assert_array_equal(opened.pc_data["confidence"], walk.cloud.confidence)


@given(points=arrays.arrays(np.float32, SHAPES, elements=COORDINATES), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_any_cloud_survives_ply_and_pcd(tmp_path_factory, points, seed):
    generator = np.random.default_rng(seed)
    colors = generator.integers(0, 256, points.shape).astype(np.uint8)
    cloud = Cloud(points, colors, generator.uniform(1, 100, len(points)).astype(np.float32))
    folder = tmp_path_factory.mktemp("cloud")
    write_ply(folder / "a.ply", cloud)
    write_pcd(folder / "a.pcd", cloud)
    again = read_ply(folder / "a.ply")
    np.testing.assert_array_equal(again.points, points)
    np.testing.assert_array_equal(again.colors, colors)
    if len(points):
        np.testing.assert_array_equal(PointCloud.from_path(folder / "a.pcd").numpy(("x", "y", "z")), points)


def test_trajectory_in_evo(tmp_path, walk):
    write_trajectory(tmp_path / "trajectory.txt", walk.trajectory)
    opened = file_interface.read_tum_trajectory_file(tmp_path / "trajectory.txt")
    assert opened.check()[0]
    np.testing.assert_allclose(opened.timestamps, [pose.stamp_ns / 1e9 for pose in walk.trajectory])
    expected = np.array([pose.map_from_camera for pose in walk.trajectory])
    np.testing.assert_allclose(np.array(opened.poses_se3), expected, atol=1e-6)


def test_evo_traj_reads_the_walk(tmp_path, walk):
    """The command itself, in a separate process."""
    write_trajectory(tmp_path / "trajectory.txt", walk.trajectory)
    command = [Path(sys.executable).with_name("evo_traj"), "tum", "trajectory.txt", "--full_check"]
    environment = {**os.environ, "HOME": str(tmp_path), "MPLBACKEND": "agg"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = dict(line.strip().split("\t", 1) for line in done.stdout.splitlines() if line.count("\t") == 2)
    places = np.array([pose.map_from_camera[:3, 3] for pose in walk.trajectory])
    length = np.linalg.norm(np.diff(places, axis=0), axis=1).sum()
    assert int(facts["nr. of poses"]) == len(walk.trajectory), done.stdout
    assert float(facts["path length (m)"]) == pytest.approx(length, abs=1e-4)
    assert facts["quaternions"] == "ok"


def test_trajectory_keeps_nanoseconds(tmp_path):
    stamp_ns = 1_763_710_001_234_567_891
    write_trajectory(tmp_path / "t.txt", {stamp_ns: np.eye(4)})
    stamp, *pose = (tmp_path / "t.txt").read_text().split()
    assert stamp == "1763710001.234567891"
    assert [float(value) for value in pose] == [0, 0, 0, 0, 0, 0, 1]


def test_cameras_round_trip(tmp_path, walk):
    records = [record_of(view) for view in walk.views]
    write_cameras(tmp_path / "cameras.json", records, unit="m")
    again, unit = read_cameras(tmp_path / "cameras.json")
    assert unit == "m"
    for ours, read in zip(records, again, strict=True):
        assert (ours.name, ours.stamp_ns, ours.width) == (read.name, read.stamp_ns, read.width)
        np.testing.assert_array_equal(ours.map_from_camera, read.map_from_camera)
    (tmp_path / "other.json").write_text(json.dumps({"format": "someone else's"}))
    with pytest.raises(UserError, match="someone else's"):
        read_cameras(tmp_path / "other.json")


def test_colmap_model_in_pycolmap(tmp_path, walk, some_cloud):
    records = [record_of(view) for view in walk.views]
    write_colmap(tmp_path / "sparse" / "0", some_cloud, records)
    model = pycolmap.Reconstruction(str(tmp_path / "sparse" / "0"))
    assert len(model.images) == len(records)
    by_name = {image.name: image for image in model.images.values()}
    for record in records:
        image = by_name[f"{record.name}.png"]
        camera = model.cameras[image.camera_id]
        assert (camera.width, camera.height) == (record.width, record.height)
        np.testing.assert_allclose(camera.calibration_matrix(), record.intrinsics, atol=1e-4)
        camera_from_map = np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]])
        np.testing.assert_allclose(camera_from_map @ record.map_from_camera, np.eye(4), atol=1e-6)
    points = sorted(model.points3D.items())
    np.testing.assert_allclose([point.xyz for _, point in points], some_cloud.points, atol=1e-4)
    np.testing.assert_array_equal([point.color for _, point in points], some_cloud.colors)


def test_colmap_points_fall_on_their_pixels(tmp_path, walk):
    """A view's own points, projected by pycolmap's camera, hit the pixels they came from."""
    view = walk.views[3]
    points = view.points_camera.reshape(-1, 3) @ view.map_from_camera[:3, :3].T + view.map_from_camera[:3, 3]
    cloud = Cloud(
        points.astype(np.float32)[::97], view.image.reshape(-1, 3)[::97], np.ones(len(points[::97]))
    )
    write_colmap(tmp_path, cloud, [record_of(view)])
    model = pycolmap.Reconstruction(str(tmp_path))
    (image,) = model.images.values()
    pixels = [image.project_point(point.xyz) for _, point in sorted(model.points3D.items())]
    height, width = view.image.shape[:2]
    expected = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), -1).reshape(-1, 2)[::97]
    np.testing.assert_allclose(pixels, expected, atol=0.01)


def test_glb_in_trimesh(tmp_path, walk, some_cloud):
    records = [record_of(view) for view in walk.views]
    write_glb(tmp_path / "map.glb", some_cloud, records)
    scene = trimesh.load(tmp_path / "map.glb")
    points = scene.geometry["map"]
    np.testing.assert_allclose(points.vertices, some_cloud.points, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(points.colors)[:, :3], some_cloud.colors)
    transform, _ = scene.graph["map"]
    np.testing.assert_allclose(transform, GLTF_FROM_MAP)
    up = transform[:3, :3] @ [0, 0, 1]
    np.testing.assert_allclose(up, [0, 1, 0], atol=1e-9, err_msg="glTF is y up")
    lines = scene.geometry["cameras"].vertices
    for record in records:
        centre = record.map_from_camera[:3, 3]
        assert np.linalg.norm(lines - centre, axis=1).min() < 1e-4


def test_view_images(tmp_path, walk):
    view = walk.views[0]
    write_view_images(tmp_path, "000000", view)
    image = cv2.cvtColor(cv2.imread(str(tmp_path / "images/000000.png")), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(image, view.image)
    depth = cv2.imread(str(tmp_path / "depth/000000.png"), cv2.IMREAD_UNCHANGED)
    assert depth.dtype == np.uint16
    np.testing.assert_allclose(depth / DEPTH_STEPS, view.points_camera[..., 2], atol=0.51 / DEPTH_STEPS)
    confidence = cv2.imread(str(tmp_path / "confidence/000000.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_allclose(confidence / CONFIDENCE_STEPS, view.confidence, atol=0.51 / CONFIDENCE_STEPS)


def test_preview_shows_map_trajectory_ground_truth_and_views(tmp_path, walk):
    numbers = {"frames": 12, "points": len(walk.cloud.points)}
    arguments = {"cloud": walk.cloud, "trajectory": walk.trajectory, "views": walk.views, "numbers": numbers}
    # ground truth in other coordinates and units: it must be aligned before drawing
    world_from_map = np.eye(4)
    world_from_map[:3, :3] = 3.0 * Rotation.from_euler("xyz", [0.3, -0.2, 1.0]).as_matrix()
    moved = {stamp: world_from_map @ pose for stamp, pose in walk.truth.items()}
    write_preview(tmp_path / "preview.png", **arguments, title="walk.mp4", truth=moved, unit="m")
    picture = cv2.imread(str(tmp_path / "preview.png"))[:, :, ::-1].astype(int)
    assert picture.shape[1] == 1600
    assert len(np.unique(picture @ [1, 256, 65536])) > 5000, "a map and six colourful views are shown"
    maps = picture[230:750]  # without the legend
    assert (np.abs(maps - (0xE4, 0x57, 0x2E)).max(-1) < 12).sum() > 500, "the trajectory is drawn"
    # where the estimate is correct, both coincide
    assert (np.abs(maps - (0x2A, 0x9D, 0x8F)).max(-1) < 12).sum() > 100, "the ground truth is drawn"


@pytest.mark.parametrize(("reach", "expected"), [(0.01, 0.18), (3.0, 0.3), (100.0, 0.45)])
def test_frusta_do_not_hide_a_short_trajectory(reach, expected):
    way = np.array([[0.0, 0, 0], [reach, 0, 0]])
    assert _frustum_size(way, 10.0) == pytest.approx(expected)


@pytest.mark.parametrize(("noise", "word"), [(0.0, "Good"), (0.4, "Fair"), (3.0, "Poor")])
def test_verdict_of_a_noisy_trajectory(walk, noise, word):
    """Noise as a share of the trajectory's own spread."""
    places = np.array([pose.map_from_camera[:3, 3] for pose in walk.trajectory])
    spread = np.sqrt(((places - places.mean(0)) ** 2).sum(1).mean())
    shifts = np.random.default_rng(0).normal(size=places.shape) * noise * spread / np.sqrt(3)
    moved = []
    for pose, shift in zip(walk.trajectory, shifts, strict=True):
        map_from_camera = pose.map_from_camera.copy()
        map_from_camera[:3, 3] += shift
        moved.append(replace(pose, map_from_camera=map_from_camera))
    known = verdict(walk.cloud, moved, walk.truth)
    assert known.startswith(word)
    assert f"{trajectory_error(moved, walk.truth)['share_of_path']:.1%} of its length" in known
    assert verdict(walk.cloud, moved, None).startswith("It worked if")
    assert verdict(walk.cloud, moved, walk.truth, [60]).startswith(word)
    for truth in (None, walk.truth):
        assert verdict(walk.cloud, moved, truth, caveat="the demo model …") == "The demo model …"
        lost = verdict(walk.cloud, moved, truth, [41, 12, 7])
        assert lost.startswith("The camera lost track: 3 unconnected parts")
        assert "41 of 60 keyframes" in lost


@pytest.mark.parametrize("what", ["nothing", "one pose", "no views"])
def test_preview_of_little_still_appears(tmp_path, walk, what):
    empty = Cloud(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros(0, np.float32))
    cloud, trajectory, views = {
        "nothing": (empty, [], []),
        "one pose": (empty, walk.trajectory[:1], walk.views[:1]),
        "no views": (walk.cloud, walk.trajectory, []),
    }[what]
    path = tmp_path / "preview.png"
    write_preview(path, cloud=cloud, trajectory=trajectory, views=views, numbers={}, truth=walk.truth)
    assert cv2.imread(str(path)).shape[1] == 1600


@pytest.mark.slow
def test_preview_needs_no_display(tmp_path):
    """In a process without DISPLAY nothing of an interactive backend is imported."""
    code = (
        "import sys, numpy as np\n"
        "from fast3r_ros.io.preview import write_preview\n"
        "from fast3r_ros.mapping.data import Cloud\n"
        "cloud = Cloud(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros(0, np.float32))\n"
        "write_preview(sys.argv[1], cloud=cloud, trajectory=[], views=[], numbers={})\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'tkinter' not in sys.modules\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code, tmp_path / "p.png"], check=True, cwd=root, env=environment)


def write_half(path: Path, problem: int) -> None:
    with whole_file(path) as temporary:
        temporary.write_text("half of the n")
        raise OSError(problem, os.strerror(problem))


@pytest.mark.parametrize(
    ("problem", "words"), [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "Permission")]
)
def test_a_failed_write_gives_a_one_line_error_and_leaves_the_old_file(tmp_path, problem, words):
    target = tmp_path / "map.ply"
    target.write_text("old")
    with pytest.raises(UserError, match=f"cannot write .*{words}"):
        write_half(target, problem)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["map.ply"]


def test_folder_that_cannot_be_created_gives_a_one_line_error(tmp_path, some_cloud):
    (tmp_path / "file").write_text("a file where a folder is wanted")
    with pytest.raises(UserError, match="cannot write"):
        write_ply(tmp_path / "file" / "map.ply", some_cloud)


@pytest.mark.parametrize("motion", ["line", "turn"])
def test_straight_lines_and_turns_have_an_error_or_none(motion):
    """In a corridor the attitudes determine the roll; a pure rotation has no scale and no error."""
    turns = matrix_from_vector(np.outer(np.linspace(0, 2, 20), [0.0, 0.0, 1.0]))
    places = np.outer(np.linspace(0, 4, 20), [1.0, 0.0, 0.0]) if motion == "line" else np.ones((20, 3))
    truth = dict(enumerate(rigid_matrix(turns, places)))
    poses = [
        PoseEstimate(stamp, "camera", rigid_matrix(pose[:3, :3], 0.5 * pose[:3, 3]), np.eye(6), False)
        for stamp, pose in truth.items()
    ]
    error = trajectory_error(poses, truth)
    if motion == "turn":
        assert error is None
    else:
        assert error is not None
        assert error["rmse"] < 1e-6
        assert error["path"] == pytest.approx(4)


@pytest.mark.parametrize("length", [20, 120, 400, 2000])
def test_a_caveat_with_a_long_command_stays_above_the_numbers(length):
    """As text of Matplotlib in the picture's size, which is measured."""
    text = f"The demo model only knows synthetic rooms:\n  fast3r reconstruct {'a folder/' * (length // 9)}"
    figure = Figure(figsize=(16, 13), dpi=100)
    renderer = FigureCanvasAgg(figure).get_renderer()
    box = figure.text(0.04, 0.968, **_fitted(text), va="top").get_window_extent(renderer)
    assert box.y0 > 0.927 * 1300
    assert box.x1 < 1600

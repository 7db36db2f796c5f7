"""A whole source through the mapper with a stand-in network: files agree with the ground truth."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pycolmap
import pytest
import trimesh
from evo.core import metrics, sync
from evo.tools import file_interface
from PIL import Image
from pypcd4 import PointCloud
from rosbags.rosbag2 import Writer
from rosbags.typesys import Stores, get_typestore
from scipy.spatial.transform import Rotation, Slerp

from fast3r_ros.cli import main
from fast3r_ros.cli.reconstruct import mapper_config
from fast3r_ros.errors import UserError
from fast3r_ros.geometry.rigid import body_pose_from_optical
from fast3r_ros.io.cameras import trajectory_error, write_trajectory
from fast3r_ros.io.pipeline import Progress, begin_results, map_source, with_odometry, write_results
from fast3r_ros.io.recorder import Recorder
from fast3r_ros.io.results import read_results
from fast3r_ros.io.sources.rosbag import RosBag
from fast3r_ros.io.sources.synthetic_walk import SyntheticSource
from fast3r_ros.io.view_images import DEPTH_STEPS
from fast3r_ros.mapping.data import PoseEstimate
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.synthetic.oracle_network import OracleNetwork
from fast3r_ros.synthetic.sequence import demo_sequence


class Arguments:
    """The options of `fast3r reconstruct` that determine the mapper's parameters."""

    scale, min_confidence, voxel_size, set = "none", None, None, ()

    def __init__(self, mode):
        self.mode = mode


class Run(NamedTuple):
    """mode, the folder of results, the report, the true poses, and the mapper with the map."""

    mode: str
    folder: Path
    report: dict
    truth: dict
    mapper: Mapper


@pytest.fixture(scope="module", params=["window", "all"])
def run(request, tmp_path_factory):
    """Six seconds of the demo walk."""
    sequence = demo_sequence(6.0, width=112, height=80)
    source = SyntheticSource(sequence)
    mode = request.param
    indices = range(len(source)) if mode == "window" else range(0, len(source), 5)
    mapper = Mapper(OracleNetwork(sequence), mapper_config(Arguments(mode), len(indices)))
    folder = tmp_path_factory.mktemp(mode)
    begin_results(folder)
    recorder, progress = Recorder(folder), Progress()
    map_source(source.frames(indices), mapper, recorder, progress, lambda result: None)
    report = write_results(folder, source, mapper, recorder, progress, {"mode": mode})
    return Run(mode, folder, report, source.truth, mapper)


def test_the_map_agrees_with_the_truth(run):
    assert run.report["complete"]
    assert run.report["trajectory_error"]["share_of_path"] < 0.02
    if run.mode == "all":
        assert (run.report["windows"], run.report["keyframes"]) == (1, 12)


def test_evo_measures_the_reported_error(run, tmp_path):
    write_trajectory(tmp_path / "truth.txt", run.truth)
    reference = file_interface.read_tum_trajectory_file(tmp_path / "truth.txt")
    estimate = file_interface.read_tum_trajectory_file(run.folder / "trajectory.txt")
    reference, estimate = sync.associate_trajectories(reference, estimate)
    estimate.align(reference, correct_scale=True)
    error = metrics.APE(metrics.PoseRelation.translation_part)
    error.process_data((reference, estimate))
    rmse = error.get_statistic(metrics.StatisticsType.rmse)
    assert rmse == pytest.approx(run.report["trajectory_error"]["rmse"], abs=1e-4)


def test_tools_by_others_find_the_map_in_every_cloud(run):
    cloud = run.mapper.map.cloud()
    assert len(cloud.points) == run.report["map_points"] > 10_000
    ply, pcd = trimesh.load(run.folder / "map.ply"), PointCloud.from_path(run.folder / "map.pcd")
    glb = trimesh.load(run.folder / "map.glb").geometry["map"]
    colmap = pycolmap.Reconstruction(str(run.folder / "sparse" / "0"))
    colmap_points = [point for _, point in sorted(colmap.points3D.items())]
    for points, colors in (
        (ply.vertices, ply.colors[:, :3]),
        (pcd.numpy(("x", "y", "z")), PointCloud.decode_rgb(pcd.pc_data["rgb"])),
        (glb.vertices, glb.colors[:, :3]),
        ([point.xyz for point in colmap_points], [point.color for point in colmap_points]),
    ):
        np.testing.assert_allclose(points, cloud.points, atol=1e-4)
        np.testing.assert_array_equal(colors, cloud.colors)
    confidence = ply.metadata["_ply_raw"]["vertex"]["data"]["confidence"].ravel()
    np.testing.assert_allclose(confidence, cloud.confidence, atol=1e-4)


def test_tools_by_others_find_the_same_poses_and_cameras(run):
    poses = {pose.stamp_ns: pose.map_from_camera for pose in run.mapper.trajectory()}
    evo = file_interface.read_tum_trajectory_file(run.folder / "trajectory.txt")
    np.testing.assert_allclose(evo.timestamps, np.array(list(poses)) / 1e9, atol=1e-6)
    np.testing.assert_allclose(np.array(evo.poses_se3), np.array(list(poses.values())), atol=1e-4)
    results = read_results(run.folder)
    colmap = pycolmap.Reconstruction(str(run.folder / "sparse" / "0"))
    images = {image.name: image for image in colmap.images.values()}
    corners = trimesh.load(run.folder / "map.glb").geometry["cameras"].vertices
    assert len(results.cameras) == len(results.read_images()) == len(images) == run.report["keyframes"]
    for camera in results.cameras:
        image = images[f"{camera.name}.png"]
        np.testing.assert_allclose(camera.map_from_camera, poses[camera.stamp_ns], atol=1e-4)
        camera_from_map = np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]])
        np.testing.assert_allclose(camera_from_map @ camera.map_from_camera, np.eye(4), atol=1e-4)
        lens = colmap.cameras[image.camera_id]
        np.testing.assert_allclose(lens.calibration_matrix(), camera.intrinsics, atol=1e-4)
        shown = cv2.imread(str(run.folder / "images" / image.name)).shape
        assert (lens.height, lens.width) == shown[:2] == (camera.height, camera.width)
        assert np.linalg.norm(corners - camera.map_from_camera[:3, 3], axis=1).min() < 1e-4


def test_report_is_json_with_stages_memory_and_versions(run):
    text = (run.folder / "report.json").read_text()
    report = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert {"read", "encode", "network", "write"} <= set(report["seconds"])
    assert report["peak_memory_mib"]["host"] > 100
    assert {"fast3r_ros", "torch", "python"} <= set(report["versions"])


def test_a_killed_run_is_marked_and_an_earlier_result_is_gone(tmp_path):
    """The second run removes the files of the first, killed one, but not the user's."""
    begin_results(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "000000.png").write_text("old")
    (tmp_path / "depth").mkdir()
    (tmp_path / "depth" / "000000.png").write_text("old")
    (tmp_path / "map.ply").write_text("old")
    (tmp_path / "notes.txt").write_text("somebody else's")
    (tmp_path / "images" / "mine.png").write_text("somebody else's")
    begin_results(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "notes.txt", "report.json"]
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["mine.png"]
    assert json.loads((tmp_path / "report.json").read_text())["complete"] is False


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FOREIGN = [
    "map.ply",
    "preview.png",
    "images/000003.jpg",
    "sparse/0/cameras.txt",
    "depth/000000.png",
    "report.json",
]


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("report", [None, {"files": ["map.ply"]}, {"complete": True, "accuracy": 0.9}])
def test_files_that_no_run_wrote_are_never_replaced(tmp_path, name, report):
    if report is not None and name != "report.json":
        (tmp_path / "report.json").write_text(json.dumps(report))
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("the user's")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="not from an earlier run"):
        begin_results(tmp_path)
    assert contents(tmp_path) == before


def test_a_file_of_the_user_among_ours_is_never_replaced(tmp_path):
    begin_results(tmp_path)
    (tmp_path / "map.ply").write_text("ours")
    report = json.loads((tmp_path / "report.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps({**report, "complete": True, "files": ["map.ply"]}))
    (tmp_path / "map.pcd").write_text("the user's")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"map\.pcd"):
        begin_results(tmp_path)
    assert contents(tmp_path) == before
    (tmp_path / "map.pcd").unlink()
    begin_results(tmp_path)
    assert not (tmp_path / "map.ply").exists()


def test_a_link_to_the_users_folder_is_not_written_through(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "000000.jpg").write_text("the user's")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "images").symlink_to(tmp_path / "photos")
    with pytest.raises(UserError, match="images"):
        begin_results(tmp_path / "out")
    assert (tmp_path / "photos" / "000000.jpg").read_text() == "the user's"


def write_photos(folder):
    folder.mkdir(parents=True)
    for index in range(3):
        Image.fromarray(np.full((80, 112, 3), 40 * index, np.uint8)).save(folder / f"{index}.png")


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("scene/images", "scene"),
        ("scene/images", "scene/images"),
        ("scene/images", "scene/images/out"),
        ("scene/images/*.png", "scene"),
        ("scene/list.txt", "scene/images"),
        ("link", "scene"),
        ("scene/images", "link/.."),
    ],
)
def test_an_output_that_holds_or_lies_in_the_source_is_rejected(tmp_path, source, output, capsys):
    write_photos(tmp_path / "scene" / "images")
    (tmp_path / "scene" / "list.txt").write_text("images/0.png\nimages/1.png\n")
    (tmp_path / "link").symlink_to(tmp_path / "scene" / "images")
    before = contents(tmp_path)
    assert main(["reconstruct", str(tmp_path / source), "--output", str(tmp_path / output)]) == 2
    error = capsys.readouterr().err
    assert "choose another folder" in error
    assert error.count("\n") == 1
    assert contents(tmp_path) == before


def test_trajectory_error_is_zero_for_a_similar_copy_and_grows_with_noise():
    generator = np.random.default_rng(1)
    truth, exact, noisy = {}, [], []
    for index in range(20):
        pose = np.eye(4)
        pose[:3, 3] = [np.cos(index / 5), np.sin(index / 5), 0.1 * index]
        truth[index] = pose
        moved = pose.copy()
        moved[:3, 3] = 3 * pose[:3, 3][[1, 2, 0]] + 5
        exact.append(PoseEstimate(index, "camera", moved, np.eye(6), False))
        moved = moved.copy()
        moved[:3, 3] += generator.normal(scale=0.03, size=3)
        noisy.append(PoseEstimate(index, "camera", moved, np.eye(6), False))
    assert trajectory_error(exact, truth)["rmse"] == pytest.approx(0, abs=1e-5)
    assert 0.008 < trajectory_error(noisy, truth)["rmse"] < 0.025
    spread = np.array([pose[:3, 3] for pose in truth.values()])
    rms = np.sqrt(((spread - spread.mean(0)) ** 2).sum(1).mean())
    assert trajectory_error(noisy, truth)["standing_still"] == pytest.approx(rms, abs=1e-4)
    assert trajectory_error(exact[:2], truth) is None
    assert trajectory_error(exact, None) is None


@pytest.mark.parametrize("scale", [pytest.param("fixed=2.5", marks=pytest.mark.slow), "camera_height=1.3"])
def test_with_a_scale_every_file_is_in_metres(tmp_path, scale):
    """Depth pictures written before the scale was known are rescaled."""
    sequence = demo_sequence(6.0, width=112, height=80)
    source = SyntheticSource(sequence)
    arguments = Arguments("window")
    arguments.scale = scale
    mapper = Mapper(OracleNetwork(sequence), mapper_config(arguments, len(source)))
    begin_results(tmp_path)
    recorder, progress = Recorder(tmp_path), Progress()
    map_source(source, mapper, recorder, progress, lambda result: None)
    report = write_results(tmp_path, source, mapper, recorder, progress, {})
    assert report["unit"] == "m"
    results = read_results(tmp_path)
    assert results.unit == "m"
    for camera in results.cameras:
        depth = cv2.imread(str(tmp_path / "depth" / f"{camera.name}.png"), cv2.IMREAD_UNCHANGED)
        centre = float(np.median(depth[depth > 0])) / DEPTH_STEPS
        ahead = (results.cloud.points - camera.map_from_camera[:3, 3]) @ camera.map_from_camera[:3, :3]
        u, v, w = camera.intrinsics @ ahead.T.astype(np.float64)
        seen = (w > 0) & (np.abs(u / w - 56) < 56) & (np.abs(v / w - 40) < 40)
        assert centre == pytest.approx(float(np.median(w[seen])), rel=0.25), camera.name


def test_odometry_of_a_bag_gives_metres(tmp_path):
    """Odometry in its own frame, at other stamps than the images; the trajectory gets the true length."""
    sequence = demo_sequence(8.0, width=112, height=80)
    source = SyntheticSource(sequence)
    arguments = Arguments("window")
    arguments.scale = "odometry"
    mapper = Mapper(OracleNetwork(sequence), mapper_config(arguments, len(source)))
    bag = RosBag(write_walk_bag(tmp_path / "bag", sequence))
    assert len(list(bag.odometry())) == 2 * len(sequence) - 1
    begin_results(tmp_path / "out")
    recorder, progress = Recorder(tmp_path / "out"), Progress()
    frames = with_odometry(bag, bag.odometry(), mapper)
    map_source(frames, mapper, recorder, progress, lambda result: None)
    report = write_results(tmp_path / "out", source, mapper, recorder, progress, {})
    assert report["unit"] == "m"
    estimated = np.array([pose.map_from_camera[:3, 3] for pose in mapper.trajectory()])
    true = np.array([source.truth[pose.stamp_ns][:3, 3] for pose in mapper.trajectory()])
    length, true_length = (np.linalg.norm(np.diff(way, axis=0), axis=1).sum() for way in (estimated, true))
    assert length == pytest.approx(true_length, rel=0.05)


def write_walk_bag(path, sequence):
    """The sequence's images and, twice as often, the odometry of a base at the camera."""
    store = get_typestore(Stores.ROS2_JAZZY)
    types, image, odometry = store.types, "sensor_msgs/msg/Image", "nav_msgs/msg/Odometry"
    bases = body_pose_from_optical(sequence.world_from_camera)
    halfway = interpolated(bases)

    def header(stamp_ns, frame):
        return types["std_msgs/msg/Header"](
            types["builtin_interfaces/msg/Time"](*divmod(stamp_ns, 10**9)), frame
        )

    with Writer(path, version=9) as writer:
        images = writer.add_connection("/image", image, typestore=store)
        poses = writer.add_connection("/odom", odometry, typestore=store)
        for index, frame in enumerate(sequence):
            pixels = np.ascontiguousarray(frame.image).reshape(-1)
            top = header(frame.stamp_ns, sequence.camera)
            message = types[image](
                top, sequence.height, sequence.width, "rgb8", 0, 3 * sequence.width, pixels
            )
            writer.write(images, frame.stamp_ns, store.serialize_cdr(message, image))
            measured = [(frame.stamp_ns, bases[index])]
            if index < len(halfway):
                measured.append((frame.stamp_ns + 50_000_000, halfway[index]))
            for stamp_ns, pose in measured:
                x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat()
                placed = types["geometry_msgs/msg/Pose"](
                    types["geometry_msgs/msg/Point"](*pose[:3, 3]),
                    types["geometry_msgs/msg/Quaternion"](x, y, z, w),
                )
                zero = types["geometry_msgs/msg/Vector3"](0.0, 0.0, 0.0)
                twist = types["geometry_msgs/msg/TwistWithCovariance"](
                    types["geometry_msgs/msg/Twist"](zero, zero), np.zeros(36)
                )
                message = types[odometry](
                    header(stamp_ns, "odom"),
                    "base_link",
                    types["geometry_msgs/msg/PoseWithCovariance"](placed, np.zeros(36)),
                    twist,
                )
                writer.write(poses, stamp_ns, store.serialize_cdr(message, odometry))
    return path


def interpolated(poses):
    """The poses halfway between neighbours."""
    turns = Rotation.from_matrix(poses[:, :3, :3])
    between = poses[:-1].copy()
    between[:, :3, :3] = [
        Slerp([0, 1], Rotation.concatenate([a, b]))(0.5).as_matrix() for a, b in pairwise(turns)
    ]
    between[:, :3, 3] = (poses[:-1, :3, 3] + poses[1:, :3, 3]) / 2
    return between

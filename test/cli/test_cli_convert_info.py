"""`fast3r convert` and `fast3r info` on results, checkpoints, videos and bags."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pycolmap
import pytest
import trimesh
from evo.tools import file_interface
from pypcd4 import PointCloud
from rosbags.rosbag2 import Writer
from rosbags.typesys import Stores, get_typestore
from scipy.spatial.transform import Rotation

from fast3r_ros.cli import main
from fast3r_ros.geometry.rigid import rigid_matrix
from fast3r_ros.io.cameras import CameraRecord, read_cameras, write_cameras
from fast3r_ros.io.ply import read_ply, write_ply
from fast3r_ros.io.results import read_results
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import Cloud
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.synthetic.oracle_network import OracleNetwork
from fast3r_ros.synthetic.sequence import demo_sequence


@pytest.fixture
def results(tmp_path):
    """A folder of results with a hundred points and three cameras."""
    generator = np.random.default_rng(0)
    points = generator.normal(size=(100, 3)).astype(np.float32)
    colors = generator.integers(0, 256, (100, 3)).astype(np.uint8)
    folder = tmp_path / "results"
    write_ply(folder / "map.ply", Cloud(points, colors, np.linspace(1, 9, 100, dtype=np.float32)))
    matrix = np.array([[90.0, 0, 56], [0, 90, 40], [0, 0, 1]])
    turns = Rotation.from_euler("zx", [[0.3, 0.1], [0.5, -0.2], [2.0, 1.0]])
    poses = rigid_matrix(turns.as_matrix(), [[0, 0, 0], [1, 0.5, 0], [2, 1, 0.1]])
    records = [
        CameraRecord(f"{i:06d}", i * 10**8, "camera", 112, 80, matrix, pose) for i, pose in enumerate(poses)
    ]
    write_cameras(folder / "cameras.json", records, unit="m")
    return folder


FORMATS = ("map.ply", "map.pcd", "map.glb", "colmap")


@pytest.mark.parametrize("between", ["results", *FORMATS])
def test_convert_from_each_format_to_every_other(results, tmp_path, between):
    """Foreign readers find the map's content in the second file, for every intermediate format."""
    cloud, (records, _) = read_ply(results / "map.ply"), read_cameras(results / "cameras.json")
    source = results
    if between in FORMATS:
        source = tmp_path / "first" / between
        assert main(["convert", str(results), str(source)]) == 0
    posed = between in ("results", "colmap")
    for name in (*FORMATS, *(("a.txt", "a.json") if posed else ())):
        if name != "colmap" or posed:
            assert main(["convert", str(source), str(tmp_path / name)]) == 0
    ply, pcd = trimesh.load(tmp_path / "map.ply"), PointCloud.from_path(tmp_path / "map.pcd")
    glb = trimesh.load(tmp_path / "map.glb").geometry["map"]
    for points in (ply.vertices, pcd.numpy(tuple("xyz")), glb.vertices):
        np.testing.assert_allclose(points, cloud.points, atol=1e-4)
    for colors in (ply.colors[:, :3], PointCloud.decode_rgb(pcd.pc_data["rgb"]), glb.colors[:, :3]):
        np.testing.assert_array_equal(colors, cloud.colors)
    keeps_confidence = between not in ("map.glb", "colmap")  # formats that have no place for it
    expected = cloud.confidence if keeps_confidence else np.ones(len(cloud.points))
    np.testing.assert_allclose(pcd.pc_data["confidence"], expected)
    if posed:
        model = pycolmap.Reconstruction(str(tmp_path / "colmap"))
        np.testing.assert_allclose(
            [p.xyz for _, p in sorted(model.points3D.items())], cloud.points, atol=1e-4
        )
        poses = np.array(file_interface.read_tum_trajectory_file(tmp_path / "a.txt").poses_se3)
        np.testing.assert_allclose(poses, [record.map_from_camera for record in records], atol=1e-4)
        again, _ = read_cameras(tmp_path / "a.json")
        for record, read in zip(records, again, strict=True):
            assert (read.name, read.width, read.height) == (record.name, record.width, record.height)
            np.testing.assert_allclose(read.intrinsics, record.intrinsics, atol=1e-4)
            np.testing.assert_allclose(read.map_from_camera, record.map_from_camera, atol=1e-4)


def test_a_map_that_the_node_saved_is_read(tmp_path, capsys):
    """Views of an exact walk, saved like `~/save_map`."""
    sequence = demo_sequence(6.0, width=112, height=80)
    config = MapperConfig.from_flat({"window.size": 8, "loop.background": False})
    mapper = Mapper(OracleNetwork(sequence), config)
    for frame in sequence:
        mapper.add_frame(frame)
        if mapper.window_ready():
            mapper.process_window()
    mapper.finish()
    mapper.save_map(tmp_path / "saved")
    facts = info(capsys, tmp_path / "saved")
    assert (facts["kind"], facts["cameras"]) == ("map", len(mapper.map.keyframes))
    assert main(["convert", str(tmp_path / "saved"), str(tmp_path / "map.ply")]) == 0
    expected, found = mapper.map.cloud().points, trimesh.load(tmp_path / "map.ply").vertices
    assert len(found) == pytest.approx(len(expected), rel=0.01)
    np.testing.assert_allclose(np.median(found, 0), np.median(expected, 0), atol=0.01)


@pytest.mark.parametrize("name", ["x.pcd", "x.glb", "colmap"])
@pytest.mark.parametrize(
    "content", [b"", b"no map at all \n1 2 3", bytes(range(256)), b"FIELDS x\nDATA binary\n"]
)
def test_garbage_gives_a_one_line_error(tmp_path, capsys, name, content):
    (tmp_path / "colmap").mkdir()
    for file in ("x.pcd", "x.glb", *(f"colmap/{part}.txt" for part in ("cameras", "images", "points3D"))):
        (tmp_path / file).write_bytes(content)
    status = main(["convert", str(tmp_path / name), str(tmp_path / "a.ply")])
    if (name, content) == ("colmap", b""):  # an empty model, which is one
        assert status == 0
        return
    assert status == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line


def test_colmap_model_with_distortion_is_a_map_but_no_pinhole_cameras(results, tmp_path, capsys):
    assert main(["convert", str(results), str(tmp_path / "colmap")]) == 0
    cameras = tmp_path / "colmap" / "cameras.txt"
    cameras.write_text("".join(f"{number} OPENCV 112 80 90 90 56 40 0.1 0 0 0\n" for number in (1, 2, 3)))
    assert main(["convert", str(tmp_path / "colmap"), str(tmp_path / "a.ply")]) == 0
    capsys.readouterr()
    for output in ("pinholes", "a.json"):
        assert main(["convert", str(tmp_path / "colmap"), str(tmp_path / output)]) == 2
        assert "undistort the images" in capsys.readouterr().err


def test_pcd_of_others_as_text_and_without_colour(tmp_path):
    points = np.arange(12, dtype=np.float32).reshape(4, 3) / 8
    PointCloud.from_xyz_points(points).save(tmp_path / "plain.pcd")
    header = "VERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 4\nHEIGHT 1\nPOINTS 4\n"
    rows = "\n".join(" ".join(map(str, point)) for point in points)
    (tmp_path / "text.pcd").write_text(f"# a comment\n{header}DATA ascii\n{rows}\n")
    for name in ("plain.pcd", "text.pcd"):
        cloud = read_results(tmp_path / name).cloud
        np.testing.assert_array_equal(cloud.points, points)
        assert (cloud.confidence == 1).all()


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("results", "a.xyz", "unknown format .xyz"),
        ("results/map.ply", "colmap", "has no cameras"),
        ("missing", "a.ply", "no such file or folder"),
        ("empty", "a.ply", "holds no map.ply"),
    ],
)
def test_convert_reports_the_problem(results, tmp_path, capsys, source, target, words):
    (tmp_path / "empty").mkdir()
    assert main(["convert", str(tmp_path / source), str(tmp_path / target)]) == 2
    assert words in capsys.readouterr().err


def info(capsys, *arguments) -> dict:
    assert main(["info", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_info_of_results_and_checkpoint(results, small_model, capsys):
    facts = info(capsys, results)
    assert (facts["kind"], facts["points"], facts["cameras"], facts["unit"]) == ("map", 100, 3, "m")
    facts = info(capsys, small_model)
    assert (facts["kind"], facts["image size"], facts["local head"]) == ("checkpoint", 112, True)


def test_info_predicts_the_memory_of_a_pass(small_model, video, capsys):
    def gigabytes(views: int) -> float:
        facts = info(capsys, small_model, "--views", views)
        (text,) = [
            value for name, value in facts.items() if name.startswith(f"GPU memory, {views} views of ")
        ]
        return float(text.split()[0])

    assert 1.8 < gigabytes(100_000) / gigabytes(50_000) < 2.2
    assert main(["info", str(small_model), "--views", "0"]) == 2
    assert main(["info", str(video), "--views", "8"]) == 2
    errors = capsys.readouterr().err
    assert "--views is 0" in errors
    assert f"{video} is none" in errors


def test_info_of_a_video_as_text(video, capsys):
    assert main(["info", str(video)]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["frames"].strip() == "30"
    assert lines["image size"].strip() == "112 x 80"


def test_info_of_a_bag_without_images_lists_its_topics(tmp_path, capsys):
    store = get_typestore(Stores.ROS2_JAZZY)
    with Writer(tmp_path / "bag", version=9) as writer:
        connection = writer.add_connection("/chatter", "std_msgs/msg/String", typestore=store)
        message = store.types["std_msgs/msg/String"](data="hello")
        writer.write(connection, 10**9, store.serialize_cdr(message, "std_msgs/msg/String"))
    facts = info(capsys, tmp_path / "bag")
    assert facts["topics"] == ["/chatter (std_msgs/msg/String, 1 messages)"]
    assert "has no images" in facts["images"]


@pytest.mark.parametrize("name", ["old.ply", "old.json", "model"])
def test_convert_replaces_nothing_without_being_asked(results, tmp_path, name, capsys):
    old = tmp_path / name if "." in name else tmp_path / name / "images.txt"
    old.parent.mkdir(exist_ok=True)
    old.write_text("the user's")
    assert main(["convert", str(results), str(tmp_path / name)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert old.read_text() == "the user's"
    assert main(["convert", str(results), str(tmp_path / name), "--overwrite"]) == 0
    assert old.read_text(errors="replace") != "the user's"


WITHOUT_PYTORCH = """
import json, sys
from contextlib import suppress
from fast3r_ros.cli import main
for arguments in json.loads(sys.argv[1]):
    with suppress(SystemExit):  # of --help
        assert main(arguments) == 0, arguments
    assert "torch" not in sys.modules, arguments
print("none imported PyTorch")
"""


def test_commands_that_need_no_pytorch_do_not_wait_for_its_import(results, tmp_path, child_environment):
    commands = [
        ["--help"],
        *([name, "--help"] for name in ("reconstruct", "view", "train", "evaluate")),
        ["info", str(results)],
        ["convert", str(results), str(tmp_path / "map.pcd")],
    ]
    command = [sys.executable, "-c", WITHOUT_PYTORCH, json.dumps(commands)]
    done = subprocess.run(command, env=child_environment, capture_output=True, text=True)
    assert done.stdout.endswith("none imported PyTorch\n"), done.stderr

"""`fast3r convert` and `fast3r info` on results, checkpoints, videos and bags."""

from __future__ import annotations

import json

import numpy as np
import pycolmap
import pytest
import trimesh
from evo.tools import file_interface
from pypcd4 import PointCloud
from rosbags.rosbag2 import Writer
from rosbags.typesys import Stores, get_typestore

from fast3r_ros.cli import main
from fast3r_ros.io.cameras import CameraRecord, write_cameras
from fast3r_ros.io.ply import read_ply, write_ply
from fast3r_ros.mapping.data import Cloud


@pytest.fixture
def results(tmp_path):
    """A folder of results with a hundred points and three cameras."""
    generator = np.random.default_rng(0)
    points = generator.normal(size=(100, 3)).astype(np.float32)
    colors = generator.integers(0, 256, (100, 3)).astype(np.uint8)
    folder = tmp_path / "results"
    write_ply(folder / "map.ply", Cloud(points, colors, np.linspace(1, 9, 100, dtype=np.float32)))
    matrix = np.array([[90.0, 0, 56], [0, 90, 40], [0, 0, 1]])
    poses = [np.eye(4) + np.pad([[x, 0, 0]], ((0, 3), (0, 1))).T * 0 for x in range(3)]
    for index, pose in enumerate(poses):
        pose[:3, 3] = [index, 0.5 * index, 0]
    records = [
        CameraRecord(f"{i:06d}", i * 10**8, "camera", 112, 80, matrix, pose) for i, pose in enumerate(poses)
    ]
    write_cameras(folder / "cameras.json", records, unit="m")
    return folder


def test_convert_to_every_format(results, tmp_path):
    cloud = read_ply(results / "map.ply")
    for name in ("a.ply", "a.pcd", "a.glb", "a.txt", "colmap"):
        assert main(["convert", str(results), str(tmp_path / name)]) == 0
    np.testing.assert_array_equal(read_ply(tmp_path / "a.ply").points, cloud.points)
    np.testing.assert_array_equal(PointCloud.from_path(tmp_path / "a.pcd").numpy(tuple("xyz")), cloud.points)
    np.testing.assert_allclose(trimesh.load(tmp_path / "a.glb").geometry["map"].vertices, cloud.points)
    assert file_interface.read_tum_trajectory_file(tmp_path / "a.txt").num_poses == 3
    assert len(pycolmap.Reconstruction(str(tmp_path / "colmap")).images) == 3


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("results", "a.xyz", "unknown format .xyz"),
        ("results/map.ply", "colmap", "has no cameras"),
        ("missing", "a.ply", "no such file or folder"),
        ("empty", "a.ply", "holds no map.ply"),
    ],
)
def test_convert_says_what_is_wrong(results, tmp_path, capsys, source, target, words):
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

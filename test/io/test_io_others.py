"""Clouds and models of other programs, with their names and layouts."""

from __future__ import annotations

import numpy as np
import pycolmap
import pytest
from plyfile import PlyData, PlyElement

from fast3r_ros.cli import main
from fast3r_ros.errors import UserError
from fast3r_ros.io.cameras import CameraRecord
from fast3r_ros.io.pcd import read_pcd
from fast3r_ros.io.ply import read_ply
from fast3r_ros.io.results import read_results
from fast3r_ros.io.scenes import write_colmap
from fast3r_ros.mapping.data import Cloud

COLOURS = np.array([[200, 30, 10], [0, 128, 255], [90, 90, 90]], np.uint8)
SPLAT = (COLOURS / 255 - 0.5) / 0.28209479177387814
VARIANTS = {
    "bytes": (("red", "green", "blue"), "u1", COLOURS),
    "diffuse": (("diffuse_red", "diffuse_green", "diffuse_blue"), "u1", COLOURS),
    "letters": (("r", "g", "b"), "u1", COLOURS),
    "floats": (("red", "green", "blue"), "f4", COLOURS / 255),
    "floats to 255": (("red", "green", "blue"), "f4", COLOURS),
    "doubles": (("r", "g", "b"), "f8", COLOURS / 255),
    "16 bits": (("red", "green", "blue"), "u2", COLOURS.astype(int) * 257),
    "splats": (("f_dc_0", "f_dc_1", "f_dc_2"), "f4", SPLAT),
}


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("kind", VARIANTS)
def test_colours_by_any_name_and_number(tmp_path, kind, text):
    names, number, values = VARIANTS[kind]
    rows = np.zeros(3, [*((axis, "f4") for axis in "xyz"), *((name, number) for name in names)])
    for column, name in enumerate(names):
        rows[name] = values[:, column]
    PlyData([PlyElement.describe(rows, "vertex")], text=text).write(tmp_path / "a.ply")
    np.testing.assert_allclose(read_ply(tmp_path / "a.ply").colors.astype(int), COLOURS, atol=1)


def model(folder, names: list[str]) -> list[CameraRecord]:
    """A text model of some points and views, the images of which have these names."""
    records = []
    for index in range(len(names)):
        pose = np.eye(4)
        pose[:3, 3] = index, 2 * index, 0
        matrix = np.array([[80.0 + index, 0, 56], [0, 81, 40], [0, 0, 1]])
        records.append(CameraRecord(f"{index:06d}", index, "camera", 112, 80, matrix, pose))
    points = np.arange(9, dtype=np.float32).reshape(3, 3) / 8
    cloud = Cloud(points, COLOURS, np.ones(3, np.float32))
    write_colmap(folder, cloud, records, {record.name: n for record, n in zip(records, names, strict=True)})
    return records


NAMES = ["left cam/a 1.jpg", "right cam/a 1.jpg", "IMG 0001.JPG"]


@pytest.mark.parametrize("place", ["", "sparse/0", "sparse", "colmap/sparse/0"])
@pytest.mark.parametrize("binary", [False, True])
def test_models_as_colmap_writes_them(tmp_path, place, binary):
    records = model(tmp_path / "text", ["1", "2", "3"])
    loaded = pycolmap.Reconstruction(str(tmp_path / "text"))
    for (_, image), name in zip(sorted(loaded.images.items()), NAMES, strict=True):
        image.name = name
    folder = tmp_path / "scene" / place
    folder.mkdir(parents=True, exist_ok=True)
    (loaded.write_binary if binary else loaded.write_text)(str(folder))
    results = read_results(tmp_path / "scene")
    assert len(results.cloud.points) == 3
    order = np.argsort(results.cloud.points[:, 0])
    np.testing.assert_array_equal(results.cloud.colors[order], COLOURS)
    found = {camera.source.name: camera for camera in results.cameras}
    assert set(found) == set(NAMES)
    assert len({camera.name for camera in results.cameras}) == 3
    for name, record in zip(NAMES, records, strict=True):
        np.testing.assert_allclose(found[name].map_from_camera, record.map_from_camera, atol=1e-9)
        np.testing.assert_allclose(found[name].intrinsics, record.intrinsics, atol=1e-9)


def test_names_survive_a_conversion(tmp_path):
    model(tmp_path / "scene" / "sparse" / "0", NAMES)
    assert main(["convert", str(tmp_path / "scene"), str(tmp_path / "again")]) == 0
    again = read_results(tmp_path / "again").cameras  # COLMAP itself cuts names in text files at white space
    assert [camera.source.name for camera in again] == NAMES
    assert main(["info", str(tmp_path / "scene")]) == 0
    assert main(["convert", str(tmp_path / "scene"), str(tmp_path / "a.glb")]) == 0


def test_a_map_with_a_radial_lens_can_be_viewed(tmp_path):
    model(tmp_path / "text", NAMES)
    lines = "".join(f"{number} SIMPLE_RADIAL 112 80 80 56 40 0.05\n" for number in (1, 2, 3))
    (tmp_path / "text" / "cameras.txt").write_text(lines)
    (tmp_path / "scene").mkdir()
    pycolmap.Reconstruction(str(tmp_path / "text")).write_binary(str(tmp_path / "scene"))
    assert main(["convert", str(tmp_path / "scene"), str(tmp_path / "a.ply")]) == 0
    assert len(read_ply(tmp_path / "a.ply").points) == 3


def test_a_truncated_binary_model_gives_a_one_line_error(tmp_path, capsys):
    model(tmp_path / "text", NAMES)
    (tmp_path / "scene").mkdir()
    pycolmap.Reconstruction(str(tmp_path / "text")).write_binary(str(tmp_path / "scene"))
    for name in ("points3D.bin", "images.bin", "cameras.bin"):
        path = tmp_path / "scene" / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert main(["info", str(tmp_path / "scene")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "COLMAP" in line


def lzf(data: bytes) -> bytes:
    """Valid LZF, encoded differently than by PCL: literal runs, and one long copy of equal bytes."""
    packed = bytearray()
    for start in range(0, len(data), 32):
        run = data[start : start + 32]
        packed += bytes([len(run) - 1]) + run
    return bytes(packed)


def test_compressed_clouds_of_pcl_are_read(tmp_path):
    points = np.arange(12, dtype="<f4").reshape(4, 3)
    colors = np.array([0xFFC81E0A] * 4, "<u4")
    content = b"".join(points[:, axis].tobytes() for axis in range(3)) + colors.tobytes()
    # copies 12 bytes
    packed = lzf(content[:-16]) + bytes([3]) + content[-16:-12] + bytes([0xE0, 12 - 2 - 7, 3])
    head = (
        "VERSION 0.7\nFIELDS x y z rgba\nSIZE 4 4 4 4\nTYPE F F F U\nCOUNT 1 1 1 1\nWIDTH 4\nHEIGHT 1\n"
        "POINTS 4\nDATA binary_compressed\n"
    )
    sizes = np.array([len(packed), len(content)], "<u4").tobytes()
    (tmp_path / "a.pcd").write_bytes(head.encode() + sizes + packed)
    cloud = read_pcd(tmp_path / "a.pcd")
    np.testing.assert_array_equal(cloud.points, points)
    assert cloud.colors.tolist() == [[200, 30, 10]] * 4
    for broken in (sizes + packed[:-1], sizes[:4] + b"\xff" * 4 + packed, sizes + b"\xff" * len(packed)):
        (tmp_path / "a.pcd").write_bytes(head.encode() + broken)
        with pytest.raises(UserError, match="PCD"):
            read_pcd(tmp_path / "a.pcd")

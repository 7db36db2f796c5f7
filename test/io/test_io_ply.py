"""PLY: plyfile reads our files and we read its; malicious and damaged files are rejected."""

from __future__ import annotations

import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plyfile import PlyData, PlyElement

from fast3r_ros.errors import UserError
from fast3r_ros.io.ply import read_ply, write_ply
from fast3r_ros.mapping.data import Cloud

FIELDS = ["x", "y", "z", "red", "green", "blue", "confidence", "nx", "label"]
VERTEX = "element vertex 2\nproperty float x\nproperty float y\nproperty float z\n"


def some_vertices(count: int, names: list[str], kind: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    kinds = {"red": "u1", "green": "u1", "blue": "u1", "label": "i4"}
    vertices = np.empty(count, [(name, kinds.get(name, kind)) for name in names])
    for name in names:
        vertices[name] = rng.integers(0, 256, count) if name in kinds else rng.normal(size=count)
    return vertices


@given(
    others=st.permutations(FIELDS[3:]).flatmap(lambda names: st.sampled_from([names, names[:3], []])),
    encoding=st.sampled_from(["text", "<", ">"]),
    kind=st.sampled_from(["f4", "f8"]),
    count=st.integers(0, 5),
    first=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_files_of_plyfile_are_read(tmp_path_factory, others, encoding, kind, count, first):
    vertices = some_vertices(count, ["x", "y", "z", *others], kind, count)
    elements = [PlyElement.describe(vertices, "vertex")]
    camera = np.array([(1.5, 7)], [("view_px", "f4"), ("viewport", "i4")])
    faces = np.empty(1, [("vertex_indices", "O")])
    faces[0] = (np.array([0, 1, 2], np.int32),)
    elements += [PlyElement.describe(faces, "face")]
    elements.insert(0 if first else 1, PlyElement.describe(camera, "camera"))
    path = tmp_path_factory.mktemp("ply") / "a.ply"
    text = encoding == "text"
    PlyData(elements, text, "=" if text else encoding, ["by others"], ["info"]).write(str(path))
    cloud = read_ply(path)
    np.testing.assert_allclose(cloud.points.T, [vertices[name] for name in "xyz"], rtol=1e-5, atol=1e-6)
    if {"red", "green", "blue"} <= set(others):
        np.testing.assert_array_equal(cloud.colors.T, [vertices[name] for name in ("red", "green", "blue")])
    else:
        assert (cloud.colors == 128).all()
    confidence = vertices["confidence"] if "confidence" in others else np.ones(count)
    np.testing.assert_allclose(cloud.confidence, confidence, rtol=1e-5, atol=1e-6)


def test_plyfile_reads_what_is_written(tmp_path):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(1000, 3)).astype(np.float32)
    cloud = Cloud(points, rng.integers(0, 256, (1000, 3), np.uint8), rng.random(1000, np.float32))
    write_ply(tmp_path / "map.ply", cloud, comment="lengths in m\nend_header")
    opened = PlyData.read(str(tmp_path / "map.ply"))
    assert opened.comments == ["lengths in m end_header"]  # one line, that ends nothing
    vertices = opened["vertex"].data
    np.testing.assert_array_equal([vertices[name] for name in "xyz"], points.T)
    np.testing.assert_array_equal([vertices[name] for name in ("red", "green", "blue")], cloud.colors.T)
    np.testing.assert_array_equal(vertices["confidence"], cloud.confidence)


def test_colours_may_be_floats(tmp_path):
    colours = "property float red\nproperty float green\nproperty float blue\n"
    text = f"ply\r\nformat ascii 1.0\r\n{VERTEX}{colours}end_header\n0 0 1 0 0.5 1\n\n1 2 3 2 nan -1\n"
    (tmp_path / "a.ply").write_text(text)
    np.testing.assert_array_equal(read_ply(tmp_path / "a.ply").colors, [[0, 128, 255], [255, 0, 0]])


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ("", b""),
        ("plyx\n", b""),
        ("ply\n", b""),
        ("ply\nformat ascii 1.0\n", b"x" * 9000),
        ("ply\nformat ascii 1.0\n" + "comment nothing\n" * 5000, b""),
        (f"ply\n{VERTEX}end_header\n", bytes(24)),
        (f"ply\nformat binary_middle_endian 1.0\n{VERTEX}end_header\n", bytes(24)),
        (f"ply\nformat binary_little_endian 1.0\n{VERTEX}end_header\n", bytes(23)),
        (f"ply\nformat ascii 1.0\n{VERTEX}end_header\n", b"1 2 3\n"),
        (f"ply\nformat ascii 1.0\n{VERTEX}end_header\n", b"1 2 3\n4 5 six\n"),
        (f"ply\nformat ascii 1.0\n{VERTEX}end_header\n", b"1 2 3\n4 5\n"),
        (f"ply\nformat ascii 1.0\n{VERTEX}end_header\n", b"1 2 3 4\n4 5 6 7\n"),
        (f"ply\nformat ascii 1.0\n{VERTEX}end_header\n", b"\xff\xfe 2 3\n4 5 6\n"),
        *(
            (f"ply\nformat {encoding} 1.0\n{VERTEX.replace('vertex 2', f'vertex {count}')}end_header\n", b"1")
            for encoding in ("ascii", "binary_little_endian")
            for count in ("-1", "1e9", "two", "999999999999999", "9" * 400, "\u0664")
        ),
        ("ply\nformat ascii 1.0\nelement vertex 1\nend_header\n", b"1\n"),
        ("ply\nformat binary_little_endian 1.0\nelement vertex 1\nend_header\n", b"1\n"),
        ("ply\nformat ascii 1.0\nproperty float x\nend_header\n", b"1\n"),
        (f"ply\nformat ascii 1.0\n{VERTEX}property float x\nend_header\n", b"1 2 3 4\n1 2 3 4\n"),
        (f"ply\nformat ascii 1.0\n{VERTEX}property quad w\nend_header\n", b"1 2 3 4\n1 2 3 4\n"),
        (f"ply\nformat ascii 1.0\n{VERTEX}property\nend_header\n", b"1 2 3 4\n1 2 3 4\n"),
        (f"ply\nformat ascii 1.0\n{VERTEX}property list uchar int l\nend_header\n", b"1 2 3 0\n1 2 3 0\n"),
        (
            VERTEX.join(
                [
                    "ply\nformat binary_big_endian 1.0\nelement f 999999999999999\nproperty int i\n",
                    "end_header\n",
                ]
            ),
            b"",
        ),
        ("ply\nformat ascii 1.0\nelement face 999999999999999\nproperty int i\nend_header\n", b"1\n"),
        (f"ply\nformat ascii 1.0\n{VERTEX.replace('float z', 'float w')}end_header\n", b"1 2 3\n4 5 6\n"),
    ],
)
def test_a_damaged_or_malicious_file_is_rejected_in_one_line(tmp_path, header, data):
    (tmp_path / "a.ply").write_bytes(header.encode() + data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"a\.ply is not a PLY point cloud: ") as raised:
        read_ply(tmp_path / "a.ply")
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < 500 + len(str(tmp_path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@given(cut=st.integers(0, 400), position=st.integers(0, 400), value=st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_a_changed_file_is_read_or_rejected(tmp_path_factory, cut, position, value):
    folder = tmp_path_factory.mktemp("ply")
    write_ply(
        folder / "a.ply",
        Cloud(np.zeros((9, 3), np.float32), np.zeros((9, 3), np.uint8), np.ones(9, np.float32)),
    )
    content = bytearray((folder / "a.ply").read_bytes())
    content[position % len(content)] = value
    (folder / "a.ply").write_bytes(content[: len(content) - cut % 30])
    try:
        assert read_ply(folder / "a.ply").points.shape[1] == 3
    except UserError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017


def test_a_pipe_or_a_folder_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "missing.ply"):
        with pytest.raises(UserError, match="cannot read"):
            read_ply(path)

"""Cameras of datasets: lenses with distortion, COLMAP's models, calibrations beside a sequence."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from dataset_samples import (
    FRAMES,
    at_integers,
    colmap_text,
    distorted,
    points_of,
    render,
    transforms,
    units,
    write_image,
    write_scannetpp,
)

from fast3r_ros.datasets import open_dataset
from fast3r_ros.datasets.colmap import read_model
from fast3r_ros.datasets.posed import PosedSequence
from fast3r_ros.errors import UserError
from fast3r_ros.evaluation.offline import read_views
from fast3r_ros.synthetic.sequence import SyntheticSequence


def test_fisheye_images_of_scannetpp_are_read_as_a_pinhole_takes_them(tmp_path: Path) -> None:
    truth = write_scannetpp(tmp_path)
    sequences = open_dataset("scannetpp", tmp_path)
    assert [sequence.name for sequence in sequences] == ["02455b3d20/dslr"]
    assert_nearly_true_points(sequences[0], truth)


def test_lens_distortion_of_nerfstudio_is_removed(tmp_path: Path) -> None:
    truth, distortion = render(96, 64), (-0.12, 0.03, 0.002, -0.001)
    names = [f"images/{index}.png" for index in range(FRAMES)]
    content = transforms(truth, names, **dict(zip(("k1", "k2", "p1", "p2"), distortion, strict=True)))
    for entry, frame in zip(content["frames"], truth, strict=True):
        image, depth = distorted(truth, frame, distortion, fisheye=False)
        write_image(tmp_path / "room" / entry["file_path"], image)
        entry["depth_file_path"] = f"depth_{entry['file_path'][7:]}"
        write_image(tmp_path / "room" / entry["depth_file_path"], units(depth, 1000))
    (tmp_path / "room" / "transforms.json").write_text(json.dumps(content))
    assert_nearly_true_points(open_dataset("nerfstudio", tmp_path / "room")[0], truth)


def assert_nearly_true_points(sequence: PosedSequence, truth: SyntheticSequence) -> None:
    """Like `assert_true_points`, for images that were resampled twice: edges may be off by a pixel."""
    assert len(sequence.frames) == FRAMES
    views = read_views(sequence.frames, truth.width)
    points, valid = views.points_world(), views.valid
    assert valid.mean() > 0.8
    for index, frame in enumerate(truth):
        error = np.linalg.norm(points[index] - points_of(truth, index), axis=-1)[valid[index]]
        assert np.percentile(error, 90) < 0.03
        inner = np.s_[15:-15, 15:-15]
        assert np.abs(views.images[index].astype(int) - frame.image)[inner].mean() < 12


@pytest.mark.parametrize("camera", ["PINHOLE", "SIMPLE_RADIAL_FISHEYE", "FULL_OPENCV"])
def test_binary_models_are_read_as_colmap_reads_them(camera: str, tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    parameters = {
        "PINHOLE": "80 81 47 35",
        "SIMPLE_RADIAL_FISHEYE": "80 47 35 0.01",
        "FULL_OPENCV": "80 81 47 35 0.1 0.2 0.003 0.004 0.5 0.06 0.07 0.08",
    }[camera]
    names = [f"{index}.png" for index in range(FRAMES)]
    cameras, images = colmap_text(render(), names, f"{camera} 96 72 {parameters}")
    (tmp_path / "cameras.txt").write_text(cameras)
    (tmp_path / "images.txt").write_text(images.replace("10.5 20.25 -1 30 40 12", "10.5 20.25 -1 30 40 -1"))
    (tmp_path / "points3D.txt").write_text("")
    text = read_model(tmp_path)
    pycolmap.Reconstruction(str(tmp_path)).write_binary(str(tmp_path))
    binary = read_model(tmp_path)
    assert [image.name for image in binary] == names
    for one, other in zip(text, binary, strict=True):
        np.testing.assert_allclose(one.world_from_camera, other.world_from_camera, atol=1e-9)
        np.testing.assert_array_equal(one.lens.intrinsics, other.lens.intrinsics)
        assert (one.lens.distortion, one.lens.fisheye) == (other.lens.distortion, other.lens.fisheye)
    lens = binary[0].lens  # what COLMAP projects, OpenCV projects with these parameters
    point = np.array([0.3, -0.2, 1.0])
    projected = pycolmap.Reconstruction(str(tmp_path)).cameras[7].img_from_cam(point)
    matrix, distortion = at_integers(lens.intrinsics), np.array(lens.distortion or [0.0] * 4)
    project = cv2.fisheye.projectPoints if lens.fisheye else cv2.projectPoints
    ours, _ = project(point.reshape(1, 1, 3), np.zeros(3), np.zeros(3), matrix, distortion)
    np.testing.assert_allclose(ours.ravel() + 0.5, np.ravel(projected), atol=1e-6)


CALIBRATIONS = {
    "calibration.txt": "726.28 726.29 354.6496 186.46566\n",
    "intrinsics.txt": "726.28 0 354.6496\n0 726.29 186.46566\n0 0 1\n",
    "camera.yaml": "%YAML:1.0\nCamera.fx: 726.28\nCamera.fy: 726.29\nCamera.cx: 354.6496\n"
    "Camera.cy: 186.46566\n",
    "ost.yaml": "image_width: 739\ncamera_matrix: {rows: 3, cols: 3, data: [726.28, 0, 354.6496, 0, 726.29, "
    "186.46566, 0, 0, 1]}\n",
}


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_a_tum_sequence_brings_its_own_calibration(name: str, samples: dict, tmp_path: Path) -> None:
    folder = tmp_path / "rgbd_dataset_freiburg3_room"  # whose published focal length is another one
    shutil.copytree(samples["tum"][0] / folder.name, folder, copy_function=os.link)
    (folder / "another.yaml").write_text("Viewer.PointSize: 2\n")
    (folder / name).write_text(CALIBRATIONS[name])
    matrix = open_dataset("tum", tmp_path)[0].frames[0].intrinsics
    np.testing.assert_allclose(matrix, [[726.28, 0, 355.1496], [0, 726.29, 186.96566], [0, 0, 1]])
    (folder / name).write_text("fx: nonsense\n")
    with pytest.raises(UserError, match=name):
        open_dataset("tum", tmp_path)

"""Every dataset format on a tiny rendered sample, written by the format's specification.

Reading it back must reproduce every pixel's point of the renderer; that fails for a wrong axis, unit,
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
from typing import Any

import cv2
import numpy as np
import pytest

from fast3r_ros.datasets import open_dataset
from fast3r_ros.datasets.colmap import read_model
from fast3r_ros.datasets.posed import PosedSequence
from fast3r_ros.errors import UserError
from fast3r_ros.evaluation import held_out
from fast3r_ros.evaluation.offline import read_views, spread_frames
from fast3r_ros.geometry.intrinsics import pixel_rays
from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.geometry.rotation import quaternion_from_matrix
from fast3r_ros.synthetic.rooms import room_scene
from fast3r_ros.synthetic.sequence import SyntheticSequence, pinhole
from fast3r_ros.synthetic.trajectories import room_path
from fast3r_ros.training.stream import recorded_sequences, recorded_views

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


def write_blendedmvs(root: Path) -> SyntheticSequence:
    """As unpacked: low-resolution images, MVSNet cameras with the depth range, PFM depth, pair.txt beside."""
    truth = render()
    scene = root / "5a3ca9cb270f0e3f14d0eddb"
    for index, frame in enumerate(truth):
        write_image(scene / "blended_images" / f"{index:08d}.jpg", frame.image)
        write_image(scene / "blended_images" / f"{index:08d}_masked.jpg", frame.image)
        (scene / "rendered_depth_maps").mkdir(exist_ok=True)
        assert cv2.imwrite(str(scene / "rendered_depth_maps" / f"{index:08d}.pfm"), frame.depth)
        rows = [" ".join(f"{x:.6f}" for x in row) for row in inverse(truth.world_from_camera[index])]
        matrix = [" ".join(f"{x:.4f}" for x in row) for row in at_integers(truth.intrinsics)]
        text = ["extrinsic", *rows, "", "intrinsic", *matrix, "", "0.5 0.01 128 9.0"]
        (scene / "cams").mkdir(exist_ok=True)
        (scene / "cams" / f"{index:08d}_cam.txt").write_text("\n".join(text) + "\n")
    (scene / "cams" / "pair.txt").write_text("3\n0\n2 1 0.9 2 0.5\n")
    return truth


def write_arkitscenes(root: Path) -> SyntheticSequence:
    """Poses at other stamps than the images': written dense along the straight path between two frames."""
    truth = render()
    video, start = root / "Training" / "40753679", 6791.332
    lines = []
    for step in range(10 * (FRAMES - 1) + 1):  # 10 Hz beside images at 1 Hz
        first, share = divmod(step, 10)
        ends = truth.world_from_camera[[first, min(first + 1, FRAMES - 1)]]
        turn = cv2.Rodrigues(ends[0, :3, :3].T @ ends[1, :3, :3])[0] * share / 10
        pose = np.eye(4)
        pose[:3, :3] = ends[0, :3, :3] @ cv2.Rodrigues(turn)[0]
        pose[:3, 3] = ends[0, :3, 3] + (ends[1] - ends[0])[:3, 3] * share / 10
        world_to_camera = np.linalg.inv(pose)
        numbers = [*cv2.Rodrigues(world_to_camera[:3, :3])[0].ravel(), *world_to_camera[:3, 3]]
        lines.append(f"{start + step / 10:.6f} " + " ".join(f"{number:.9f}" for number in numbers))
    for index, frame in enumerate(truth):
        name = f"40753679_{start + index:.3f}"
        write_image(video / "lowres_wide" / f"{name}.png", frame.image)
        write_image(video / "lowres_depth" / f"{name}.png", units(frame.depth, 1000))
        matrix = at_integers(truth.intrinsics)
        values = [truth.width, truth.height, matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]]
        rounded = (
            video / "lowres_wide_intrinsics" / f"40753679_{start + index + (index == 1) * 1e-3:.3f}.pincam"
        )
        rounded.parent.mkdir(exist_ok=True)
        rounded.write_text(" ".join(f"{value:.6g}" for value in values) + "\n")
    write_image(video / "lowres_wide" / "40753679_6999.000.png", truth[0].image)  # after the last pose
    (video / "lowres_wide.traj").write_text("\n".join(lines) + "\n")
    return truth


def write_habitat(root: Path) -> SyntheticSequence:
    """Half-precision EXR of one channel, as OpenCV writes it with IMWRITE_EXR_TYPE_HALF."""
    exr = pytest.importorskip("OpenEXR", reason="OpenEXR is not installed: pip install OpenEXR")
    truth = render()
    folder = root / "hm3d" / "00800-TEEsavR23oF"
    for index, frame in enumerate(truth):
        stem = folder / f"00000012_{index}"
        write_image(stem.with_name(stem.name + ".jpg"), frame.image)
        stem.with_name(stem.name + ".jpg").rename(stem.with_name(stem.name + ".jpeg"))
        header = {"compression": exr.ZIP_COMPRESSION, "type": exr.scanlineimage}
        pixels = np.ascontiguousarray(frame.depth.astype(np.float16))
        exr.File(header, {"Y": pixels}).write(str(stem.with_name(stem.name + "_depth.exr")))
        pose = truth.world_from_camera[index]
        camera = {
            "camera_intrinsics": at_integers(truth.intrinsics).tolist(),
            "size": [truth.width, truth.height],
            "R_cam2world": pose[:3, :3].tolist(),
            "t_cam2world": pose[:3, 3].tolist(),
        }
        stem.with_name(stem.name + "_camera_params.json").write_text(json.dumps(camera))
    return truth


def colmap_text(truth: SyntheticSequence, names: list[str], camera: str) -> tuple[str, str]:
    """cameras.txt and images.txt; the second image has no points, so its line is empty."""
    lines = [
        "# Image list with two lines of data per image:",
        "#   IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, ID, NAME",
    ]
    for index, name in enumerate(names):
        camera_from_world = np.linalg.inv(truth.world_from_camera[index])
        x, y, z, w = quaternion_from_matrix(camera_from_world[:3, :3])
        numbers = " ".join(f"{number:.12f}" for number in [w, x, y, z, *camera_from_world[:3, 3]])
        lines += [f"{index + 1} {numbers} 7 {name}", "" if index == 1 else "10.5 20.25 -1 30 40 12"]
    return f"# Camera list\n7 {camera}\n", "\n".join(lines) + "\n"


def pinhole_words(truth: SyntheticSequence, factor: float = 1.0) -> str:
    """WIDTH HEIGHT FX FY CX CY of an image that is larger by a factor."""
    matrix = truth.intrinsics * factor
    size = f"{round(truth.width * factor)} {round(truth.height * factor)}"
    return f"{size} {matrix[0, 0]:.9f} {matrix[1, 1]:.9f} {matrix[0, 2]:.9f} {matrix[1, 2]:.9f}"


def write_megadepth(root: Path) -> SyntheticSequence:
    """The SfM model knows the original photos, twice as large; one image was not undistorted."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install h5py")
    truth = render()
    dense = root / "phoenix" / "S6" / "zl548" / "MegaDepth_v1" / "0015" / "dense1"
    names = [f"{index}9204_{index}.jpg" for index in range(FRAMES)]
    for name, frame in zip(names, truth, strict=True):
        write_image(dense / "imgs" / name, frame.image)
        (dense / "depths").mkdir(exist_ok=True)
        with h5py.File(dense / "depths" / name.replace(".jpg", ".h5"), "w") as file:
            file["depth"] = frame.depth
    model = root / "MegaDepth_v1_SfM" / "0015" / "sparse" / "manhattan" / "1"
    model.mkdir(parents=True)
    camera = f"PINHOLE {pinhole_words(truth, 2.0)}"
    (model / "cameras.txt").write_text(colmap_text(truth, names, camera)[0])
    (model / "images.txt").write_text(colmap_text(truth, names, camera)[1])
    return truth


def write_colmap(root: Path) -> SyntheticSequence:
    """Names with a folder and a space; depth of a dense workspace, by columns."""
    truth = render()
    scene = root / "garden"
    names = [f"cam 1/IMG_{9 + index}.png" for index in range(FRAMES)]
    for name, frame in zip(names, truth, strict=True):
        write_image(scene / "images" / name, frame.image)
        path = scene / "stereo" / "depth_maps" / f"{name}.geometric.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows, columns = frame.depth.shape
        header = f"{columns}&{rows}&1&".encode()
        path.write_bytes(header + frame.depth.astype("<f4").T.tobytes(order="F"))
    model = scene / "sparse" / "0"
    model.mkdir(parents=True)
    cameras, images = colmap_text(truth, names, f"PINHOLE {pinhole_words(truth)}")
    (model / "cameras.txt").write_text(cameras)
    (model / "images.txt").write_text(images)
    return truth


def transforms(truth: SyntheticSequence, names: list[str], **more: object) -> dict:
    matrix = truth.intrinsics
    frames = [
        {
            "file_path": name,
            "transform_matrix": (pose @ OPENGL_FROM_OPTICAL).tolist(),
            "mask_path": "none.png",
        }
        for name, pose in zip(names, truth.world_from_camera, strict=True)
    ]
    return {
        **{"w": truth.width, "h": truth.height, "fl_x": matrix[0, 0], "fl_y": matrix[1, 1]},
        **{"cx": matrix[0, 2], "cy": matrix[1, 2], "frames": frames, **more},
    }


def write_nerfstudio(root: Path) -> SyntheticSequence:
    """Names in another order than the frames', depth in millimetres, a frame whose pose is lost."""
    truth = render()
    names = [f"images/frame_{index + 9}.png" for index in range(FRAMES)]
    content = transforms(truth, names, camera_model="OPENCV", k1=0.0, k2=0.0, p1=0.0, p2=0.0)
    for entry, frame in zip(content["frames"], truth, strict=True):
        write_image(root / "poster" / entry["file_path"], frame.image)
        entry["depth_file_path"] = entry["file_path"].replace("images", "depths")
        write_image(root / "poster" / entry["depth_file_path"], units(frame.depth, 1000))
    lost = {"file_path": names[0], "transform_matrix": np.full((4, 4), None).tolist()}
    content["frames"] = [*content["frames"][::-1], {**lost, "transform_matrix": np.zeros((4, 4)).tolist()}]
    (root / "poster" / "transforms.json").write_text(json.dumps(content))
    return truth


def write_scannetpp(root: Path) -> SyntheticSequence:
    """The DSLR's fisheye images, with the depth that the set's tool renders."""
    distortion = (-0.03, 0.008, -0.003, 0.001)
    truth = render(96, 64)
    dslr = root / "data" / "02455b3d20" / "dslr"
    names = [f"DSC0{4200 + index}.JPG" for index in range(FRAMES)]
    for name, frame in zip(names, truth, strict=True):
        image, depth = distorted(truth, frame, distortion, fisheye=True)
        write_image(dslr / "resized_images" / name, image)
        write_image(dslr / "render_depth" / name.replace(".JPG", ".png"), units(depth, 1000))
    names_k = dict(zip(("k1", "k2", "k3", "k4"), distortion, strict=True))
    content = transforms(truth, names, camera_model="OPENCV_FISHEYE", **names_k)
    content["test_frames"] = [content["frames"].pop()]
    (dslr / "nerfstudio").mkdir()
    (dslr / "nerfstudio" / "transforms.json").write_text(json.dumps(content))
    return truth


def distorted(
    truth: SyntheticSequence, frame: Any, distortion: tuple[float, ...], fisheye: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Image and depth as a lens with distortion takes them: for each pixel, where a pinhole sees the same."""
    v, u = np.mgrid[: truth.height, : truth.width].astype(np.float64)
    pixels = np.stack([u, v], -1).reshape(-1, 1, 2)
    matrix = at_integers(truth.intrinsics)
    undistort = cv2.fisheye.undistortPoints if fisheye else cv2.undistortPoints
    straight = undistort(pixels, matrix, np.array(distortion), P=matrix).reshape(truth.height, truth.width, 2)
    x, y = straight[..., 0].astype(np.float32), straight[..., 1].astype(np.float32)
    return (
        cv2.remap(frame.image, x, y, cv2.INTER_LINEAR),
        cv2.remap(frame.depth, x, y, cv2.INTER_NEAREST),
    )


WRITERS: dict[str, tuple[Callable[[Path], SyntheticSequence], str]] = {
    "7scenes": (write_7scenes, "chess/seq-03"),
    "nrgbd": (write_nrgbd, "kitchen"),
    "dtu": (write_dtu, "scan1"),
    "tum": (write_tum, "rgbd_dataset_freiburg3_room"),
    "scannet": (write_scannet, "scene0000_00"),
    "co3d": (write_co3d, "apple/1_2"),
    "blendedmvs": (write_blendedmvs, "5a3ca9cb270f0e3f14d0eddb"),
    "arkitscenes": (write_arkitscenes, "40753679"),
    "habitat": (write_habitat, "hm3d/00800-TEEsavR23oF/00000012"),
    "megadepth": (write_megadepth, "0015/dense1"),
    "colmap": (write_colmap, "garden"),
    "nerfstudio": (write_nerfstudio, "poster"),
}


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


def test_the_iphone_of_scannetpp_has_arkit_poses(tmp_path: Path) -> None:
    truth = render()
    folder, entries = tmp_path / "data" / "02455b3d20" / "iphone", {}
    for index, frame in enumerate(truth):
        name = f"frame_{10 * index:06d}"
        write_image(folder / "rgb" / f"{name}.jpg", frame.image)
        write_image(folder / "depth" / f"{name}.png", units(frame.depth, 1000))
        entries[name] = {
            "timestamp": 17.5 + index,
            "pose": np.eye(4).tolist(),  # in the session's own frame
            "aligned_pose": truth.world_from_camera[index].tolist(),
            "intrinsic": at_integers(truth.intrinsics).tolist(),
        }
    (folder / "pose_intrinsic_imu.json").write_text(json.dumps(entries))
    assert_true_points(tmp_path, "scannetpp", truth)


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


@pytest.mark.parametrize(
    "name", ["7scenes", "scannet", "nrgbd", "dtu", "blendedmvs", "nerfstudio", "habitat"]
)
def test_rotations_from_text_are_made_rotations(name: str, tmp_path: Path) -> None:
    """Published poses are orthonormal only to 3e-4; poses read must pass the library's 1e-6."""
    WRITERS[name][0](tmp_path)
    changed = 0
    for path in [p for p in tmp_path.rglob("*") if p.suffix in (".txt", ".json")]:
        rounded = re.sub(r"-?\d\.\d{4,}", lambda found: f"{float(found[0]):.3f}", path.read_text())
        changed += rounded != path.read_text()
        path.write_text(rounded)
    assert changed
    for frame in open_dataset(name, tmp_path)[0].frames:
        rotation = frame.world_from_camera[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)


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
    """Every pixel's point equals the renderer's; at its own long side an image is only cropped."""
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


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_training_samples(name: str, samples: dict) -> None:
    """What training sees of two views: depth of one view, moved to the other, is the depth seen there."""
    sequences = recorded_sequences(name, str(samples[name][0]))
    views = recorded_views(sequences, 2, 100, 64, 48, np.random.default_rng(0))
    rays = pixel_rays(views.intrinsics[0], 48, 64) * views.depth[0][..., None]
    points = rays[views.depth[0] > 0]
    first, second = views.world_from_camera
    seen = (points @ first[:3, :3].T + first[:3, 3] - second[:3, 3]) @ second[:3, :3]
    pixels = seen @ views.intrinsics[1].T
    x, y = np.floor(pixels[:, :2] / pixels[:, 2:]).astype(int).T
    inside = (x >= 0) & (x < 64) & (y >= 0) & (y < 48) & (seen[:, 2] > 0)
    assert inside.mean() > 0.3
    measured = views.depth[1][y[inside], x[inside]]
    error = np.abs(measured / seen[inside, 2] - 1)[measured > 0]
    assert np.median(error) < 0.02


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
def test_every_damaged_file_is_named(name: str, content: str, samples: dict, tmp_path: Path) -> None:
    """One file of each kind is overwritten: a UserError that names it, and nothing else, comes out."""
    root, copy = samples[name][0], tmp_path / "copy"
    kinds: dict[str, Path] = {}
    for path in sorted(root.rglob("*.*")):
        if path.is_file() and not re.search(r"seq-01/|_masked|pair\.txt", str(path)):  # these are not read
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
    with pytest.raises(UserError, match="not a folder"):
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

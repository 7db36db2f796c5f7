"""Every dataset format as a tiny rendered sample, written as the format's specification says."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.geometry.rotation import quaternion_from_matrix
from fast3r_ros.synthetic.rooms import room_scene
from fast3r_ros.synthetic.sequence import SyntheticSequence, pinhole
from fast3r_ros.synthetic.trajectories import room_path

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


def points_of(truth: SyntheticSequence, index: int) -> np.ndarray:
    """(H, W, 3) true world points, straight from the renderer."""
    v, u = np.mgrid[: truth.height, : truth.width] + 0.5
    matrix, depth = truth.intrinsics, truth[index].depth
    x, y = (u - matrix[0, 2]) / matrix[0, 0] * depth, (v - matrix[1, 2]) / matrix[1, 1] * depth
    camera = np.stack([x, y, depth, np.ones_like(x)], axis=-1)
    return (camera @ truth.world_from_camera[index].T)[..., :3]

"""A reconstruction without a network: the ground truth of a synthetic walk in the mapper's form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from fast3r_ros.mapping.data import Cloud, PoseEstimate, ViewEstimate
from fast3r_ros.mapping.view_maps import ViewMaps
from fast3r_ros.synthetic.rooms import room_scene
from fast3r_ros.synthetic.sequence import DEMO_SEED, SyntheticSequence, pinhole
from fast3r_ros.synthetic.trajectories import room_path


@dataclass(frozen=True)
class Walk:
    """views and trajectory of a walk, the cloud of all points, and the truth by stamp."""

    views: list[ViewEstimate]
    trajectory: list[PoseEstimate]
    cloud: Cloud
    truth: dict[int, np.ndarray]


@pytest.fixture(scope="session")
def walk() -> Walk:
    """Twelve views of 112 x 80 pixels."""
    return make_walk(12, 112, 80)


def make_walk(count: int, width: int, height: int) -> Walk:
    """A walk through the demo room with exact depth; confidence falls with depth."""
    scene = room_scene(DEMO_SEED, size=(5.5, 4.5, 2.6))
    path = room_path(scene, count, seed=1, speed=0.25)
    intrinsics = pinhole(width, height, np.deg2rad(70))
    sequence = SyntheticSequence(scene, path, intrinsics, width, height, with_depth=True)
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = np.stack([columns, rows, np.ones_like(rows)], -1) @ np.linalg.inv(intrinsics).T
    views, points, colors, confidence = [], [], [], []
    for index, frame in enumerate(sequence):
        camera_points = (rays * frame.depth[..., None]).astype(np.float32)
        certainty = (1 + 20 * np.exp(-frame.depth)).astype(np.float32)
        pose = path[index]
        valid = np.isfinite(frame.depth)
        views.append(
            ViewEstimate(
                keyframe_id=index,
                stamp_ns=frame.stamp_ns,
                camera=frame.camera,
                map_from_camera=pose,
                covariance=np.eye(6) * 1e-6,
                intrinsics=intrinsics,
                network_from_image=np.eye(3),
                image=frame.image,
                maps=ViewMaps.of_arrays(camera_points, certainty, valid),
            )
        )
        points.append((camera_points @ pose[:3, :3].T + pose[:3, 3])[valid])
        colors.append(frame.image[valid])
        confidence.append(certainty[valid])
    cloud = Cloud(
        np.concatenate(points).astype(np.float32), np.concatenate(colors), np.concatenate(confidence)
    )
    trajectory = [
        PoseEstimate(view.stamp_ns, view.camera, view.map_from_camera, view.covariance, False)
        for view in views
    ]
    return Walk(views, trajectory, cloud, {view.stamp_ns: view.map_from_camera for view in views})

"""A sequence with ground truth through the mapper or a peer, scored by its trajectory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fast3r_ros.datasets.posed import PosedSequence
from fast3r_ros.errors import UserError
from fast3r_ros.evaluation.offline import sample
from fast3r_ros.evaluation.peers import peer_name, peer_poses
from fast3r_ros.geometry.intrinsics import pixel_rays, transform_intrinsics
from fast3r_ros.geometry.rigid import transform_points
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import Frame, WindowNetwork, WindowResult
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.metrics.dense import map_sharpness
from fast3r_ros.metrics.trajectory import align_trajectory, stamped_trajectory_scores, trajectory_scores

CAMERA = "camera_optical_frame"
REFERENCE_FRAMES = 40  # number of frames whose depth makes the reference cloud
MAP_POINTS = 50_000  # number of the map's points to compare


def score_mapper(
    sequence: PosedSequence,
    network: WindowNetwork,
    config: MapperConfig | None = None,
    on_frame: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """ATE and RPE of the keyframes' final poses after one similarity, and counts of the mapping.

    Every frame is offered and every window is waited for, so no frame is dropped for arriving late.  tracked:
    share of the sequence's time between the first and the last keyframe.  rejected: share of rejected
    windows.  With depth in the sequence, also `map_sharpness` of the map against its cloud, in the ground
    truth's units.  Errors are infinite when there is no trajectory.
    """
    # in the background, loop closure would finish at a different frame in every run
    mapper = Mapper(network, config or MapperConfig.from_flat({"loop.background": False}))
    results: list[WindowResult] = []
    for frame in sequence.frames:
        mapper.add_frame(Frame(frame.stamp_ns, CAMERA, frame.read_image(), frame.intrinsics))
        if mapper.window_ready():
            results += [result for result in [mapper.process_window()] if result is not None]
        on_frame()
    results += [result for result in [mapper.finish()] if result is not None]
    trajectory = mapper.trajectory()
    scores: dict[str, float] = {"keyframes": len(trajectory), "windows": len(results)}
    scores["rejected"] = sum(not result.accepted for result in results) / max(len(results), 1)
    if len(trajectory) < 3:
        return {**scores, "ate": np.inf, "ate_percent": np.inf, "tracked": 0.0}
    stamps = np.array([pose.stamp_ns for pose in trajectory], dtype=np.int64)
    true_stamps = np.array([frame.stamp_ns for frame in sequence.frames], dtype=np.int64)
    scores["tracked"] = float((stamps[-1] - stamps[0]) / max(true_stamps[-1] - true_stamps[0], 1))
    try:
        row = stamped_trajectory_scores(
            stamps,
            np.stack([pose.map_from_camera for pose in trajectory]),
            true_stamps,
            np.stack([frame.world_from_camera for frame in sequence.frames]),
        ).row()
    except UserError:
        return {**scores, "ate": np.inf, "ate_percent": np.inf}
    reference = reference_cloud(sequence)
    if reference is None:
        return {**scores, **row}
    true_poses = {frame.stamp_ns: frame.world_from_camera for frame in sequence.frames}
    paired = [pose for pose in trajectory if pose.stamp_ns in true_poses]
    world_from_map = align_trajectory(
        np.stack([pose.map_from_camera for pose in paired]),
        np.stack([true_poses[pose.stamp_ns] for pose in paired]),
        by_attitudes=True,
    )
    points = sample(world_from_map.apply(mapper.map.cloud().points.astype(np.float64)), MAP_POINTS)
    return {**scores, **row, **map_sharpness(points, *reference)}


def score_peer(peer: str, sequence: PosedSequence) -> dict[str, Any]:
    """ATE and RPE of a peer's poses of all frames.  Errors are infinite when too few frames have a pose."""
    poses = peer_poses(peer, sequence.frames)
    scores = {"method": peer_name(peer), "keyframes": int(np.isfinite(poses).all(axis=(1, 2)).sum())}
    try:
        truth = np.stack([frame.world_from_camera for frame in sequence.frames])
        return {**scores, **trajectory_scores(poses, truth).row()}
    except UserError:
        return {**scores, "ate": np.inf, "ate_percent": np.inf}


def reference_cloud(sequence: PosedSequence) -> tuple[NDArray[np.float64], float] | None:
    """Points (N, 3) of the true depth in the world, one per voxel, and the maximum distance of map points.

    The voxel is 0.5 %, the reach 5 % of the mean depth.  None for a sequence without depth.
    """
    step = max(1, len(sequence.frames) // REFERENCE_FRAMES)
    clouds, depths = [], []
    for frame in sequence.frames[::step]:
        if frame.read_depth is None:
            continue
        depth, image = frame.read_depth(), frame.read_image()
        size_ratio = np.diag([depth.shape[1] / image.shape[1], depth.shape[0] / image.shape[0], 1.0])
        rays = pixel_rays(transform_intrinsics(size_ratio, frame.intrinsics), *depth.shape)
        known = depth > 0
        clouds.append(transform_points(frame.world_from_camera, (rays * depth[..., None])[known]))
        depths.append(depth[known])
    if not clouds or not sum(map(len, depths)):
        return None
    mean_depth = float(np.concatenate(depths).mean())
    points = np.concatenate(clouds)
    _, first = np.unique(np.floor(points / (0.005 * mean_depth)).astype(np.int64), axis=0, return_index=True)
    return points[first], 0.05 * mean_depth

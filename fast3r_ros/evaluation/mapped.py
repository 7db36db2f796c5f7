"""The sliding-window mapper over a sequence with truth, scored by its trajectory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fast3r_ros.datasets.posed import PosedSequence
from fast3r_ros.errors import UserError
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import Frame, WindowNetwork, WindowResult
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.metrics.trajectory import stamped_trajectory_scores

CAMERA = "camera_optical_frame"


def score_mapper(
    sequence: PosedSequence,
    network: WindowNetwork,
    config: MapperConfig | None = None,
    on_frame: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """ATE and RPE of the keyframes' final poses after one similarity, and how the mapping went.

    Every frame is offered and every window is waited for, so nothing is dropped for being late.  tracked:
    share of the sequence's time between the first and the last keyframe.  rejected: share of windows kept
    out of the map.  Errors are infinite when there is no trajectory.
    """
    # in the background a loop closure would come at another frame in every run
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
        row = {"ate": np.inf, "ate_percent": np.inf}
    return {**scores, **row}

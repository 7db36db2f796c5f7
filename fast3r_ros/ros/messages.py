"""This package's own messages from the mapper's results."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from sensor_msgs.msg import CameraInfo

from fast3r_ros.mapping.data import Float64, ViewEstimate, WindowResult
from fast3r_ros.mapping.view_maps import mean_values
from fast3r_ros.msg import DropCount, StageLatency, WindowEstimate
from fast3r_ros.msg import ViewEstimate as ViewEstimateMessage
from fast3r_ros.ros.poses import pose_with_covariance, transform_from_matrix
from fast3r_ros.ros.times import stamp_from_ns


def counts(by_reason: Mapping[str, int]) -> list[DropCount]:
    """Counts by reason, the most frequent first.  The mapper's names become phrases: `no motion`."""
    ordered = sorted(by_reason.items(), key=lambda item: -item[1])
    return [DropCount(reason=in_words(reason), count=count) for reason, count in ordered]


def in_words(reason: str) -> str:
    """A reason of the mapper (`no_motion`) or of the node, human-readable."""
    return reason if " " in reason else reason.replace("_", " ")


def latencies(seconds: Mapping[str, float]) -> list[StageLatency]:
    """Seconds by stage, in the order of the stages."""
    return [StageLatency(stage=stage, seconds=float(value)) for stage, value in seconds.items()]


def input_intrinsics(view: ViewEstimate) -> Float64:
    """(3, 3) intrinsics in the pixels of the camera's image, centres at integer + 0.5."""
    return np.linalg.inv(view.network_from_image) @ view.intrinsics


def camera_info(intrinsics: Float64, width: int, height: int, stamp_ns: int, frame_id: str) -> CameraInfo:
    """CameraInfo of an undistorted image; pixel centres are at integers in ROS, here at integer + 0.5."""
    k = intrinsics.copy()
    k[:2, 2] -= 0.5
    info = CameraInfo(width=width, height=height, distortion_model="plumb_bob", d=[0.0] * 5)
    info.header.stamp = stamp_from_ns(stamp_ns)
    info.header.frame_id = frame_id
    info.k = k.reshape(9)
    info.r = np.eye(3).reshape(9)
    info.p = np.hstack([k, np.zeros((3, 1))]).reshape(12)
    return info


def view_message(
    view: ViewEstimate,
    map_frame: str,
    size: tuple[int, int],
    estimated: bool,
    mean_confidence: float,
    valid_share: float,
) -> ViewEstimateMessage:
    """One view; size: (width, height) of the camera's images; estimated: intrinsics are the network's."""
    message = ViewEstimateMessage(keyframe_id=view.keyframe_id, map_frame=map_frame)
    message.header.stamp = stamp_from_ns(view.stamp_ns)
    message.header.frame_id = view.camera
    message.pose = pose_with_covariance(view.map_from_camera, view.covariance)
    message.width, message.height = size
    message.k = input_intrinsics(view).reshape(9)
    message.intrinsics_estimated = estimated
    message.mean_confidence, message.valid_share = mean_confidence, valid_share
    return message


def window_message(
    result: WindowResult,
    map_frame: str,
    metres: bool,
    size_of: Callable[[ViewEstimate], tuple[int, int]],
    estimated: Callable[[ViewEstimate], bool],
) -> WindowEstimate:
    """A window with its views and its registration."""
    message = WindowEstimate(accepted=result.accepted, reason=result.reason, metres=metres)
    message.header.stamp = stamp_from_ns(result.stamp_ns)
    message.header.frame_id = map_frame
    means = mean_values([view.maps for view in result.views])
    message.views = [
        view_message(view, map_frame, size_of(view), estimated(view), *values)
        for view, values in zip(result.views, means, strict=True)
    ]
    rigid = np.eye(4)
    rigid[:3, :3] = result.map_from_window.rotation
    rigid[:3, 3] = result.map_from_window.translation
    message.map_from_window = transform_from_matrix(rigid)
    message.scale = float(result.map_from_window.scale)
    message.residual = float(result.residual)
    message.inlier_share = float(result.inlier_share)
    message.submap = int(result.submap)
    message.map_version = int(result.map_version)
    message.loop_closed = result.loop_closed
    message.latencies = latencies(result.timings)
    return message

"""The demo's observer of the mapping node: its topics, and whether they match the images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from nav_msgs.msg import Odometry, Path
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, PointCloud2
from tf2_msgs.msg import TFMessage

from fast3r_ros.io.cameras import trajectory_error
from fast3r_ros.mapping.data import Cloud, Float32, Float64, PoseEstimate, UInt8, ViewEstimate
from fast3r_ros.mapping.view_maps import ViewMaps
from fast3r_ros.msg import MappingStatus, WindowEstimate
from fast3r_ros.ros.image_messages import image_to_rgb
from fast3r_ros.ros.messages import message_to_cloud
from fast3r_ros.ros.pose_messages import matrix_from_pose, ns_from_stamp

NODE = "/fast3r_mapping"
SMALL_WIDTH = 320  # width at which images are stored for the preview
REPEAT_NS = 1000  # a transform within this time after the last one is a repetition
KEPT_IMAGES = 600
RELIABLE = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
RELIABLE_FEW = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)


@dataclass(frozen=True)
class Published:
    """One received message: its stamp and, for an image, its (width, height)."""

    stamp_ns: int
    size: tuple[int, int] | None = None


class DemoListener(Node):
    """Subscribes to everything needed for the summary and the preview.

    images: stamp in ns -> (width, height) of every camera image.  published: topic -> received messages.
    truth: stamp -> (4, 4) world_from_camera, if the source has ground truth.  path: stamp -> (4, 4)
    map_from_camera, the latest.
    """

    def __init__(self) -> None:
        super().__init__("fast3r_demo")
        self.images: dict[int, tuple[int, int]] = {}
        self.published: dict[str, list[Published]] = {
            topic: [] for topic in ("map_cloud", "cloud", "confidence", "depth", "tf")
        }
        self.truth: dict[int, Float64] = {}
        self._newest_transform: dict[str, int] = {}  # stamp in ns by child frame
        self.path: dict[int, Float64] = {}
        self.status: MappingStatus | None = None
        self.windows: list[WindowEstimate] = []
        self._map: PointCloud2 | None = None
        self._small: dict[int, UInt8] = {}
        self._confidence: dict[int, Float32] = {}
        self._depth: dict[int, Float32] = {}
        subscriptions: tuple[tuple[Any, str, Any, QoSProfile], ...] = (
            (Image, "image", self._on_image, RELIABLE_FEW),
            (Odometry, "ground_truth", self._on_truth, RELIABLE),
            (MappingStatus, f"{NODE}/status", self._on_status, RELIABLE_FEW),
            (WindowEstimate, f"{NODE}/window", self.windows.append, RELIABLE),
            (Path, f"{NODE}/path", self._on_path, LATCHED),
            (PointCloud2, f"{NODE}/map_cloud", self._on_map, LATCHED),
            (PointCloud2, f"{NODE}/cloud", self._on_cloud, RELIABLE_FEW),
            (Image, f"{NODE}/confidence", self._on_confidence, RELIABLE_FEW),
            (Image, f"{NODE}/depth/image_rect", self._on_depth, RELIABLE_FEW),
            (TFMessage, "/tf", self._on_transforms, RELIABLE),
        )
        for kind, topic, callback, qos in subscriptions:
            self.create_subscription(kind, topic, callback, qos)

    def map(self) -> Cloud:
        """The newest ~/map_cloud, empty without one."""
        if self._map is None:
            return Cloud(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros(0, np.float32))
        return message_to_cloud(self._map)

    def at_input(self, topic: str) -> int:
        """Number of messages of a topic with the stamp of a camera image and, for images, its size."""
        return sum(
            message.stamp_ns in self.images and message.size in (None, self.images[message.stamp_ns])
            for message in self.published[topic]
        )

    def trajectory(self) -> list[PoseEstimate]:
        """The path as estimates, in time order."""
        return [
            PoseEstimate(stamp, "camera", pose, np.zeros((6, 6)), False)
            for stamp, pose in sorted(self.path.items())
        ]

    def views(self) -> list[ViewEstimate]:
        """Every view of the path whose image, depth and confidence were received, at the small size."""
        intrinsics = {
            ns_from_stamp(view.header.stamp): (view.width, np.array(view.k).reshape(3, 3))
            for window in self.windows
            for view in window.views
        }
        stamps: Iterable[int] = self.path.keys() & self._small.keys() & self._depth.keys() & intrinsics.keys()
        return [
            self._view(stamp, *intrinsics[stamp]) for stamp in sorted(stamps) if stamp in self._confidence
        ]

    def _view(self, stamp: int, width: int, k: Float64) -> ViewEstimate:
        depth, image = self._depth[stamp], self._small[stamp]
        scale = np.diag([image.shape[1] / width] * 2 + [1.0])
        points = np.zeros((*depth.shape, 3), np.float32)
        points[..., 2] = depth
        return ViewEstimate(
            keyframe_id=0,
            stamp_ns=stamp,
            camera="camera",
            map_from_camera=self.path[stamp],
            covariance=np.zeros((6, 6)),
            intrinsics=scale @ k,
            network_from_image=scale,
            image=image,
            maps=ViewMaps.of_arrays(points, self._confidence[stamp], np.isfinite(depth)),
        )

    def _on_image(self, message: Image) -> None:
        stamp = ns_from_stamp(message.header.stamp)
        self.images[stamp] = (message.width, message.height)
        self._small[stamp] = _small(image_to_rgb(message))
        if len(self._small) > KEPT_IMAGES:  # removes the oldest of the unmapped ones
            unused = next((s for s in self._small if s not in self._confidence), stamp)
            del self._small[unused]

    def _on_truth(self, message: Odometry) -> None:
        self.truth[ns_from_stamp(message.header.stamp)] = matrix_from_pose(message.pose.pose)

    def _on_status(self, message: MappingStatus) -> None:
        self.status = message

    def _on_path(self, message: Path) -> None:
        self.path = {ns_from_stamp(p.header.stamp): matrix_from_pose(p.pose) for p in message.poses}

    def _on_map(self, message: PointCloud2) -> None:
        self._map = message
        self._note("map_cloud", message)

    def _on_cloud(self, message: PointCloud2) -> None:
        self._note("cloud", message)

    def _on_confidence(self, message: Image) -> None:
        self._note("confidence", message, (message.width, message.height))
        _keep(self._confidence, message)

    def _on_depth(self, message: Image) -> None:
        self._note("depth", message, (message.width, message.height))
        _keep(self._depth, message)

    def _on_transforms(self, message: TFMessage) -> None:
        """Record transforms, except repetitions of the last pose while nothing moves."""
        for transform in message.transforms:
            stamp_ns, child = ns_from_stamp(transform.header.stamp), transform.child_frame_id
            newest_ns = self._newest_transform.get(child, stamp_ns)  # older keyframes may arrive later
            repeated = 0 < stamp_ns - newest_ns < REPEAT_NS
            self._newest_transform[child] = max(stamp_ns, newest_ns)
            if not repeated:
                self._note("tf", transform)

    def _note(self, topic: str, message: Any, size: tuple[int, int] | None = None) -> None:
        self.published[topic].append(Published(ns_from_stamp(message.header.stamp), size))


def _keep(kept: dict[int, Float32], message: Image) -> None:
    """Store a 32FC1 image at the small size; if there are too many, keep every second one."""
    values = np.frombuffer(message.data, np.float32).reshape(message.height, message.width)
    kept[ns_from_stamp(message.header.stamp)] = _small(values)
    if len(kept) > KEPT_IMAGES:
        for stamp in list(kept)[1::2]:
            del kept[stamp]


def _small(image: Any) -> Any:
    """An image (h, w[, 3]) at the small width, by nearest neighbours, so that depth edges stay edges."""
    height = max(round(image.shape[0] * SMALL_WIDTH / image.shape[1]), 1)
    return cv2.resize(image, (SMALL_WIDTH, height), interpolation=cv2.INTER_NEAREST)


def unit(status: MappingStatus) -> str:
    """The map's unit of length, human-readable."""
    return "m" if status.metres else "map units"


def parts(listener: DemoListener, status: MappingStatus) -> list[int]:
    """Number of keyframes of the main (published) submap, and of the others together, as one part."""
    main = len(listener.path)
    return [main, max(0, status.frames_used - main)] if status.submaps > 1 else [main]


def numbers(listener: DemoListener, status: MappingStatus, sent: int) -> dict[str, str]:
    """The main numbers for the preview, as label -> text."""
    error = trajectory_error(listener.trajectory(), listener.truth)
    shown = {
        "frames used": f"{status.frames_used} of {sent}",
        "windows": f"{status.windows - status.windows_rejected} of {status.windows}",
        "map points": f"{status.map_points:,}",
        "image to result": f"{status.image_age:.1f} s",
    }
    if error is not None:
        label = f"trajectory RMSE\n(static baseline {error['standing_still']:.2f} m)"
        shown[label] = f"{error['rmse']:.2f} m ({error['share_of_path']:.1%})"
    return shown


def summary(listener: DemoListener, status: MappingStatus, sent: int) -> dict[str, str]:
    """The summary, as label -> line."""
    drops = ", ".join(f"{drop.count} {drop.reason}" for drop in status.drops if drop.count)
    stages = ", ".join(f"{each.stage} {each.seconds:.2f}" for each in status.latencies)
    lines = {
        "frames": f"{sent} played, {status.frames_received} received, {status.frames_used} used"
        + (f"; dropped: {drops}" if drops else ""),
        "windows": f"{status.windows} (up to {status.window_size} views), {status.windows_rejected} rejected",
        "map": f"{status.map_points:,} points in {unit(status)}, {status.map_bytes / 1e6:.0f} MB",
        "published": ", ".join(
            f"{listener.at_input(topic)}/{len(listener.published[topic])} {name}"
            for topic, name in (
                ("cloud", "clouds"),
                ("confidence", "confidence images"),
                ("tf", "transforms"),
            )
        )
        + " at an input image's stamp and size",
        "trajectory": _trajectory_line(listener),
        "latency": f"image to result {status.image_age:.2f} s, callbacks {1e3 * status.callback_p99:.1f} ms "
        f"(99th percentile); newest window in s: {stages}",
    }
    if status.last_error:
        lines["last error"] = status.last_error
    return lines


def _trajectory_line(listener: DemoListener) -> str:
    poses = f"{len(listener.path)} poses"
    if not listener.truth:
        return f"{poses}; the source has no ground truth"
    error = trajectory_error(listener.trajectory(), listener.truth)
    if error is None:
        return f"{poses}; too few to compare with the ground truth"
    rmse, path, share = error["rmse"], error["path"], error["share_of_path"]
    return f"{poses}; {rmse:.3f} m RMSE over {path:.1f} m after one similarity ({share:.1%})"

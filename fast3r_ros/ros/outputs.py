"""Outputs of the node: images and clouds of each window, and the map, packed on one thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nav_msgs.msg import OccupancyGrid, Odometry, Path
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from visualization_msgs.msg import MarkerArray

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.data import Cloud, Keyframe, PoseEstimate, ViewEstimate, WindowResult
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.mapping.occupancy import FloorUnknown, GridMaker, Occupancy
from fast3r_ros.msg import WindowEstimate
from fast3r_ros.ros.broadcaster import Broadcaster
from fast3r_ros.ros.camera import CameraFacts
from fast3r_ros.ros.counters import Counters, Guard
from fast3r_ros.ros.image_messages import (
    at_input_size,
    camera_info,
    confidence_color,
    float_to_image,
    rgb_to_image,
)
from fast3r_ros.ros.live_viewer import LiveViewer
from fast3r_ros.ros.messages import (
    cloud_to_message,
    grid_message,
    input_intrinsics,
    map_markers,
    view_to_message,
    window_message,
)
from fast3r_ros.ros.node_config import NodeConfig
from fast3r_ros.ros.pose_messages import keyframe_odometry, path_message

WAIT_SECONDS = 0.2
RELIABLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)
TOPICS: dict[str, tuple[Any, QoSProfile]] = {
    "map_cloud": (PointCloud2, LATCHED),
    "cloud": (PointCloud2, RELIABLE),
    "confidence": (Image, RELIABLE),
    "confidence_color": (Image, RELIABLE),
    "depth/image_rect": (Image, RELIABLE),
    "depth/camera_info": (CameraInfo, RELIABLE),
    "odometry": (Odometry, RELIABLE),
    "path": (Path, LATCHED),
    "window": (WindowEstimate, RELIABLE),
    "grid": (OccupancyGrid, LATCHED),
    "markers": (MarkerArray, LATCHED),
}
MAP_TOPICS = ("map_cloud", "path", "grid", "markers")
MEASURED = "~/cloud, ~/depth/image_rect, ~/odometry and ~/grid"
HELD_BACK = f"{MEASURED} wait until the map is in metres"


@dataclass(frozen=True)
class MapSnapshot:
    """The map at one version, for the publishing thread.  replaces: the published map was another one.

    loops: ids of keyframes connected by loop closures, None without subscribers to ~/markers.
    """

    version: int
    stamp_ns: int
    cloud: Cloud
    metres: bool
    replaces: bool
    trajectory: Sequence[PoseEstimate]
    keyframes: Mapping[int, Keyframe]
    loops: Sequence[tuple[int, int]] | None


class Outputs:
    """Publishers and the publishing thread.

    window(…) and idle(…) are called on the mapping thread and queue work.  facts: the camera of a frame id.
    viewer: stopped with the thread.  after_window() runs on the publishing thread.  config may be replaced at
    run time.  Nothing is published while `active` is False.
    """

    def __init__(
        self,
        node: Node,
        config: NodeConfig,
        counters: Counters,
        broadcaster: Broadcaster,
        facts: Mapping[str, CameraFacts],
        arrivals: Mapping[int, float],
        viewer: LiveViewer,
        after_window: Callable[[], None],
    ) -> None:
        self.config = config
        self.active = False
        self.newest_ns = 0  # stamp of the newest window
        self.image_age = 0.0
        self.latencies: dict[str, float] = {}
        self.no_grid = ""  # why there is no grid, "" if there is one or none is wanted
        self._grid = GridMaker()
        self._node, self._broadcaster = node, broadcaster
        self._guard = Guard(counters, node.get_logger())
        self._facts, self._arrivals = facts, arrivals
        self._viewer, self._after_window = viewer, after_window
        self._publishers = {
            name: node.create_publisher(kind, f"~/{name}", qos) for name, (kind, qos) in TOPICS.items()
        }
        self._jobs: queue.Queue[Callable[[], None]] = queue.Queue(maxsize=4)
        self._stopping = False
        self._newest_id = -1  # keyframe whose images were published last
        self.held_back = ""  # why metric outputs are not published, "" if they are
        self._pose_ns = 0
        self._map_sent = -1
        self._map_time = 0.0
        self._markers_sent = False  # whether markers were sent with that map
        self._outdated = False  # an outdated map was published, which new subscribers would get
        self._map_subscribers = 0
        self._thread = threading.Thread(target=self._run, name="fast3r_publishing", daemon=True)
        self._thread.start()

    # Mapping thread --------------------------------------------------------------------------------------

    def window(self, mapper: Mapper, result: WindowResult) -> None:
        """Queue a window; waits when the publishing thread is four jobs behind."""
        metres = mapper.status().metres
        if result.accepted:
            self._hold_back(metres)
        else:
            self._broadcaster.lost()
        self._put(lambda: self._publish_window(result, metres))
        self._offer_map(mapper, result.map_version, result.stamp_ns, at_once=result.loop_closed)

    def idle(self, mapper: Mapper) -> None:
        """Queue a newer pose, and the map if a subscriber waits for it."""
        pose = mapper.newest_pose()
        if pose is not None and pose.extrapolated and pose.stamp_ns != self._pose_ns:
            self._pose_ns = pose.stamp_ns
            self._broadcaster.expect(pose)
        self._offer_map(mapper, mapper.map.version, self.newest_ns, at_once=False)

    def _offer_map(self, mapper: Mapper, version: int, stamp_ns: int, at_once: bool) -> None:
        """Queue the map: at once for a new subscriber or on request, otherwise by the rate."""
        if not self.active or not (mapper.map.keyframes or self._outdated):
            return
        subscribers = self._subscribers(*MAP_TOPICS)
        new_subscriber = subscribers > self._map_subscribers
        self._map_subscribers = subscribers
        markers = self._subscribed("markers")
        sent = version == self._map_sent and (self._markers_sent or not markers)
        if sent or not (subscribers or self._viewer.active or self._outdated):
            return
        now = time.monotonic()
        first = self._map_sent < 0
        due = now - self._map_time >= 1.0 / self.config.output.map_rate
        if not (first or at_once or new_subscriber or due):
            return
        markers = markers or self._outdated  # which removes the old ones
        self._map_sent, self._map_time, self._markers_sent = version, now, markers
        wanted = self._viewer.active or self.config.grid.enabled or markers
        keyframes = mapper.map.part() if wanted else {}
        replaces, self._outdated = self._outdated, False
        cloud, metres = mapper.map.cloud(), mapper.map.metres
        path = mapper.trajectory(by_arrival=True)
        loops = mapper.loops() if markers else None
        snapshot = MapSnapshot(version, stamp_ns, cloud, metres, replaces, path, keyframes, loops)
        self._put(lambda: self._publish_map(snapshot))

    def grid(self, mapper: Mapper) -> OccupancyGrid:
        """On the mapping thread: the map's grid, whether ~/grid is published or not.

        Raises UserError if it would be too large, without metric scale, or without a floor.
        """
        if not self._measured(mapper.map.metres):
            raise UserError("there is no grid before the map is in metres, see /diagnostics")
        stamp_ns = self.newest_ns or self._node.get_clock().now().nanoseconds
        try:
            grid = GridMaker().make(mapper.map.cloud().points, mapper.map.part(), self.config.grid)
        except ValueError as error:
            raise UserError(f"there is no grid: {error}") from error
        return grid_message(grid, stamp_ns, self.config.frames.map)

    def _measured(self, metres: bool) -> bool:
        """Whether metric outputs may be published: the map is in metres, or no scale source is set."""
        return metres or self.config.mapper.scale.source == "none"

    def _put(self, job: Callable[[], None]) -> None:
        while not self._stopping:
            try:
                return self._jobs.put(job, timeout=0.5)
            except queue.Full:
                continue

    def _hold_back(self, metres: bool) -> None:
        """With a scale source, metric outputs are not published before the scale is known."""
        held_back = f"{HELD_BACK} (scale.source {self.config.mapper.scale.source})"
        reason = "" if self._measured(metres) else held_back
        if reason != self.held_back:
            text = (
                reason
                or "the map is in metres: ~/cloud, ~/depth/image_rect, ~/odometry and ~/grid are published"
            )
            self._node.get_logger().info(text)
        self.held_back = reason

    def restart(self) -> None:
        """The map was emptied or replaced: everything sent is outdated and replaced at once."""
        self._outdated = self._outdated or self._map_sent >= 0
        self._newest_id = -1
        self.held_back = ""
        self.newest_ns = self._pose_ns = 0
        self._map_sent = -1
        self.no_grid = ""

    def request_stop(self) -> None:
        """Ask the thread to end after the message in progress."""
        self._stopping = True

    def stop(self, timeout: float | None = None) -> bool:
        """End the thread and remove the publishers; False when that takes more than `timeout` seconds."""
        self.request_stop()
        self._thread.join(timeout)
        if self._thread.is_alive():
            return False
        self._viewer.stop()
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)
        return True

    # Publishing thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            try:
                job = self._jobs.get(timeout=WAIT_SECONDS)
            except queue.Empty:
                continue
            if self.active:
                self._guard.run("publishing", job)

    def _subscribed(self, *topics: str) -> bool:
        return self._subscribers(*topics) > 0

    def _subscribers(self, *topics: str) -> int:
        return sum(self._publishers[topic].get_subscription_count() for topic in topics)

    def _send(self, topic: str, message: Any) -> None:
        self._publishers[topic].publish(message)

    def _publish_window(self, result: WindowResult, metres: bool) -> None:
        start = time.perf_counter()
        fresh = [view for view in result.views if view.keyframe_id > self._newest_id]
        self._newest_id = max((view.keyframe_id for view in fresh), default=self._newest_id)
        frames = self._broadcaster.window(result.views, fresh, metres)
        measured = self._measured(metres)
        if measured:
            for view in fresh:
                self._publish_odometry(view, result.views, frames[view.keyframe_id])
            if fresh:
                self._publish_cloud(fresh[-1], frames[fresh[-1].keyframe_id])
        for view in fresh:
            self._publish_images(view, frames[view.keyframe_id], measured)
        self.latencies = {**result.timings, "publish": time.perf_counter() - start}
        self.newest_ns = result.stamp_ns
        arrived = self._arrivals.get(result.stamp_ns)
        self.image_age = time.monotonic() - arrived if arrived else 0.0
        if self._subscribed("window"):
            map_frame = self.config.frames.map
            message = window_message(
                result,
                map_frame,
                metres,
                lambda view: self._facts[view.camera].size,
                lambda view: not self._facts[view.camera].calibrated,
            )
            self._send("window", message)
        self._after_window()

    def _publish_odometry(self, view: ViewEstimate, views: Sequence[ViewEstimate], frame: str) -> None:
        if self._subscribed("odometry"):
            frames = self.config.frames
            camera_mode = self.config.tf_mode == "camera"
            camera = self._broadcaster.camera_frame(view.camera) if camera_mode else frame
            self._send("odometry", keyframe_odometry(view, views, frames.map, frames.base, camera))

    def _publish_cloud(self, view: ViewEstimate, frame: str) -> None:
        if self._subscribed("cloud"):
            self._send("cloud", view_to_message(view, frame))

    def _publish_images(self, view: ViewEstimate, frame: str, measured: bool) -> None:
        """Confidence of one view, and its depth if it may be published, at its stamp."""
        stamp = view.stamp_ns
        size = self._facts[view.camera].size
        network = self.config.output.image_size == "network"

        def resampled(values: Any, outside: float) -> Any:
            return values if network else at_input_size(values, view.network_from_image, size, outside)

        if self._subscribed("confidence", "confidence_color"):
            confidence = resampled(view.maps.confidence_image(), 0.0)
            self._send("confidence", float_to_image(confidence, stamp, frame))
            if self._subscribed("confidence_color"):
                rgb = confidence_color(confidence, self.config.output.max_confidence)
                self._send("confidence_color", rgb_to_image(rgb, stamp, frame))
        if measured and self._subscribed("depth/image_rect", "depth/camera_info"):
            depth = resampled(view.maps.depth_image(), np.nan)
            height, width = depth.shape
            intrinsics = view.intrinsics if network else input_intrinsics(view)
            self._send("depth/image_rect", float_to_image(depth, stamp, frame))
            self._send("depth/camera_info", camera_info(intrinsics, width, height, stamp, frame))

    def _publish_grid(self, snapshot: MapSnapshot, stamp_ns: int) -> None:
        """Publish the grid, or log why there is none."""
        try:
            grid = self._grid.make(snapshot.cloud.points, snapshot.keyframes, self.config.grid)
        except FloorUnknown as error:
            if not self.no_grid:
                self._node.get_logger().warning(f"no ~/grid: {error}")
            self.no_grid = str(error)
        else:
            self.no_grid = ""
            self._send("grid", grid_message(grid, stamp_ns, self.config.frames.map))

    def _publish_map(self, snapshot: MapSnapshot) -> None:
        frame = self.config.frames.map
        stamp = snapshot.stamp_ns or self._node.get_clock().now().nanoseconds
        self._send("map_cloud", cloud_to_message(snapshot.cloud, stamp, frame))
        newest = snapshot.trajectory[-self.config.output.path_length :]
        stamps = [pose.stamp_ns for pose in newest]
        self._send("path", path_message(stamps, [pose.map_from_camera for pose in newest], frame, stamp))
        if snapshot.loops is not None:
            self._send("markers", map_markers(snapshot.keyframes, snapshot.loops, stamp, frame))
        if self.config.grid.enabled:
            if snapshot.replaces:  # clears the old grid, even without a new one
                empty = Occupancy(np.empty((0, 0), np.int8), self.config.grid.resolution, np.zeros(2), 0.0)
                self._send("grid", grid_message(empty, stamp, frame))
            if self._measured(snapshot.metres) and snapshot.keyframes:
                self._publish_grid(snapshot, stamp)
        self._viewer.show(snapshot.cloud, snapshot.keyframes, snapshot.metres)

"""Transforms broadcast by the node, by REP-105: never a second parent for a frame."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from geometry_msgs.msg import TransformStamped
from rclpy.node import Node
from rclpy.qos import QoSProfile
from tf2_msgs.msg import TFMessage

from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.mapping.data import Float64, PoseEstimate, ViewEstimate
from fast3r_ros.ros.camera import CameraFacts
from fast3r_ros.ros.node_config import NodeConfig
from fast3r_ros.ros.pose_messages import NS, ns_from_stamp, stamped_transform
from fast3r_ros.ros.transforms import OwnFrames, TransformLookup, TransformMissing
from fast3r_ros.ros.upstream import TF2_ROS

VIEW_FRAME = "fast3r_view_"
QUIET_SECONDS = 1.0  # without a transform, after which the last one is sent again for new listeners


@dataclass(frozen=True)
class _Edge:
    """map -> child, (4, 4) map_from_child, of a pose at stamp_ns.

    images: the frame of the camera's published images, connected to the map.  below: a frame at the child's
    pose that is broadcast below it, "" for none.  drifts: the child is an odometry frame, which moves in the
    map only as odometry drifts (REP-105).
    """

    child: str
    map_from_child: Float64
    stamp_ns: int
    images: str
    below: str = ""
    drifts: bool = False


class Broadcaster:
    """Broadcasts poses by `tf_mode`, called from any thread.  config may be replaced at run time.

    facts: the camera of an image frame id.  log(text): prints a line on the console, once per change.
    waiting_for: why a pose is not broadcast as intended, "" if it is; broadcast: the broadcast transforms.
    """

    def __init__(
        self,
        publish: Callable[[list[TransformStamped]], Any],
        config: NodeConfig,
        own_frames: OwnFrames,
        lookup: TransformLookup,
        facts: Mapping[str, CameraFacts],
        log: Callable[[str], Any] = lambda _: None,
    ) -> None:
        self.config = config
        self._own_frames, self._lookup, self._facts = own_frames, lookup, facts
        self._publish, self._log = publish, log
        self._lock = threading.RLock()
        self._foreign: set[str] = set()
        self._told: dict[str, str] = {}
        self.reset()

    def reset(self) -> None:
        """The map starts again: no pose in it is known."""
        with self._lock:
            self._metres = False
            self._newest: dict[str, _Edge] = {}  # by image frame
            self._is_lost = False
            self._stamps: dict[str, int] = {}  # newest stamp sent, by child
            self._sent = 0.0  # monotonic seconds
            self._odometry: _Edge | None = None  # the newest edge to an odometry frame
            self.waiting_for = self.broadcast = ""

    @property
    def parents(self) -> dict[str, str]:
        """Frames that another node broadcasts, with their parent; ours are not broadcast."""
        with self._lock:
            others = {child: self._own_frames.other_parent(child) for child in self._foreign}
            known = {child: other for child, other in others.items() if other is not None}
            self._foreign = set(known)
            return known

    def camera_frame(self, camera: str) -> str:
        """The frame of the estimated camera for the image frame `camera`."""
        name = self._facts[camera].name if camera in self._facts else ""
        return f"{self.config.frames.camera}_{name}" if name else self.config.frames.camera

    def window(
        self, views: Sequence[ViewEstimate], fresh: Sequence[ViewEstimate], metres: bool
    ) -> dict[int, str]:
        """Broadcast the new keyframes of a window, each at its stamp, before publishing their data.

        views: all of the window, in time order; fresh: the new ones.  Returns keyframe id -> frame of the
        images of each new one, connected to the map.
        """
        with self._lock:
            if not views:  # rejected
                return {}
            self._metres, self._is_lost = metres, False
            self._foreign = set()
            if self.config.publish_view_frames:
                self._send([self._view_frame(index, view) for index, view in enumerate(views)])
            if self.config.tf_mode == "none":
                return {view.keyframe_id: view.camera for view in fresh}
            self.waiting_for = ""
            frames: dict[int, str] = {}
            children: list[str] = []
            for view in fresh:
                edge = self._edge(view)
                frames[view.keyframe_id] = edge.images if edge else view.camera
                if edge is None:
                    continue
                if edge.drifts:
                    self._odometry = edge
                if self._send_edge(edge, view.stamp_ns):
                    children.append(edge.child)
            if children:
                self._describe(", ".join(dict.fromkeys(children)))
            return frames

    def expect(self, pose: PoseEstimate) -> None:
        """Set the newest pose between windows; it is broadcast with the next image without motion."""
        with self._lock, contextlib.suppress(TransformMissing):
            if self.config.tf_mode != "none":
                child, drifts = self._child(pose.camera, pose.stamp_ns)
                if not drifts:
                    self._newest[pose.camera] = self._edge_to(child, drifts, pose)

    def place(self, map_from_base: Float64) -> None:
        """Set the base's pose (4, 4): map -> odom follows at once, as navigation expects of a localisation.

        The next accepted window corrects it.
        """
        frames = self.config.frames
        with self._lock, contextlib.suppress(TransformMissing):
            if self.config.tf_mode not in ("auto", "map_to_odom"):
                return
            odom_from_base = self._lookup.lookup(frames.odom, frames.base, None)
            map_from_odom = map_from_base @ inverse(odom_from_base)
            self._odometry = _Edge(frames.odom, map_from_odom, 0, frames.odom, drifts=True)

    def still(self, camera: str, stamp_ns: int) -> None:
        """Broadcast the last pose again for an image without motion."""
        with self._lock:
            if self.config.tf_mode == "none" or self._is_lost:
                return
            try:
                children = self._child(camera, stamp_ns)[0], self.camera_frame(camera)
            except TransformMissing:
                return
            edges = [edge for edge in self._newest.values() if edge.child in children and not edge.drifts]
            newest = max(edges, key=lambda edge: edge.stamp_ns, default=None)
            if newest is not None and newest.stamp_ns < stamp_ns:
                self._send_edge(newest, stamp_ns)

    def lost(self) -> None:
        """Mark the pose as unknown until a window is accepted; map -> odom stays, by REP-105."""
        with self._lock:
            self._is_lost = True

    def time_went_back(self) -> None:
        """Stamps start again: earlier broadcasts lie in the future."""
        with self._lock:
            self._newest.clear()
            self._stamps.clear()

    def tick(self, now_ns: int) -> None:
        """Broadcast map -> odom, stamped slightly into the future, so that listeners need not wait.

        When nothing else is broadcast (no images, paused, lost), the last pose is sent again for new
        listeners, a nanosecond later each time, because tf2 warns about repeated stamps.
        """
        with self._lock:
            if self._odometry is not None:
                # off by a nanosecond, so that with a coarse clock it cannot equal a future image's stamp
                self._send_edge(self._odometry, now_ns + round(self.config.tf.tolerance * NS) + 1)
            if time.monotonic() - self._sent > QUIET_SECONDS:
                for edge in list(self._newest.values()):
                    if edge.child in self._stamps and self._own_frames.other_parent(edge.child) is None:
                        self._send_edge(edge, self._stamps[edge.child] + 1)

    # ----------------------------------------------------------------------------------------------------

    def _view_frame(self, index: int, view: ViewEstimate) -> TransformStamped:
        namespace, slash, _ = self.config.frames.camera.rpartition("/")
        child = f"{namespace}{slash}{VIEW_FRAME}{index}"
        return stamped_transform(view.map_from_camera, self.config.frames.map, child, view.stamp_ns)

    def _send_edge(self, edge: _Edge, stamp_ns: int) -> bool:
        """Broadcast an edge, once per stamp, because tf2 keeps only the first; False when it was rejected."""
        transforms = [stamped_transform(edge.map_from_child, self.config.frames.map, edge.child, stamp_ns)]
        if edge.below:
            transforms.append(stamped_transform(np.eye(4), edge.child, edge.below, stamp_ns))
        fresh = [each for each in transforms if not self._own_frames.is_own(each)]
        if fresh and not self._send(fresh):
            return False
        self._stamps[edge.child] = max(stamp_ns, self._stamps.get(edge.child, stamp_ns))
        return True

    def _edge(self, pose: ViewEstimate | PoseEstimate) -> _Edge | None:
        """The edge of a pose on TF; None if it cannot be broadcast, with the reason in waiting_for."""
        edge = None
        try:
            child, drifts = self._child(pose.camera, pose.stamp_ns)
            try:
                edge = self._edge_to(child, drifts, pose)
            except TransformMissing as error:
                if drifts and self._odometry is not None and self._odometry.child == child:
                    edge = self._odometry  # the last correction is nearly correct
                elif self.config.tf_mode == "auto":
                    edge = self._edge_to(self.camera_frame(pose.camera), False, pose)
                raise error
        except TransformMissing as error:
            self._wait(str(error))
        if edge is None:
            self._newest.pop(pose.camera, None)
        else:
            self._newest[pose.camera] = edge
        return edge

    def _child(self, camera: str, stamp_ns: int) -> tuple[str, bool]:
        """The frame broadcast below the map for an image frame, and whether it is an odometry frame.

        Raises TransformMissing.
        """
        frames, mode = self.config.frames, self.config.tf_mode
        if mode in ("camera", "base"):
            return (self.camera_frame(camera) if mode == "camera" else frames.base), False
        root = frames.odom
        if mode == "auto":
            chain = self._own_frames.chain(camera, stamp_ns)
            root = chain[-1]
            if root == self._own_frames.chain(frames.map, stamp_ns)[-1]:
                path = " -> ".join(reversed(chain))
                raise TransformMissing(
                    f"another node broadcasts the pose of {camera} in {frames.map} ({path}): stop it, or set "
                    "frames.map to another name"
                )
            if root != frames.odom and frames.base not in chain[:-1]:
                return root, False
        if self._metres:
            return root, True
        text = f"{frames.map} -> {root} waits until the map is in metres"
        if mode == "map_to_odom":
            raise TransformMissing(f"{text}: move the robot until the scale is known")
        if self.config.mapper.scale.source == "none":
            text += ", which needs scale.source"
        self._wait(f"{text}; until then poses are {frames.map} -> {self.camera_frame(camera)}")
        return self.camera_frame(camera), False

    def _edge_to(self, child: str, drifts: bool, pose: ViewEstimate | PoseEstimate) -> _Edge:
        """map -> child such that child -> camera gives the estimated pose.  Raises TransformMissing."""
        camera, stamp_ns, estimated = pose.camera, pose.stamp_ns, self.camera_frame(pose.camera)
        map_from_child = map_from_camera = pose.map_from_camera
        images, below = camera, ""
        if child == estimated:
            if self.config.tf_mode != "camera":
                images = child
            elif child != camera and self._own_frames.other_parent(camera, stamp_ns) is None:
                below = camera
        elif child != camera:
            try:
                child_from_camera = self._lookup.lookup(child, camera, stamp_ns)
            except TransformMissing as error:
                text = f"no transform {child} -> {camera} at the image's stamp: {error}"
                raise TransformMissing(text) from error
            map_from_child = map_from_camera @ inverse(child_from_camera)
        return _Edge(child, map_from_child, stamp_ns, images, below, drifts)

    def _wait(self, text: str) -> None:
        self.waiting_for = text
        self._log_once("waiting", text.partition(":")[0], text)

    def _describe(self, children: str) -> None:
        """Report the broadcast transforms and their unit."""
        unit = "in metres" if self._metres else "up to scale"
        if not self._metres and self.config.mapper.scale.source == "none":
            unit += " (scale.source is none)"
        self.broadcast = f"{self.config.frames.map} -> {children}, {unit}"
        self._log_once("broadcast", self.broadcast, f"broadcasting {self.broadcast}")

    def _log_once(self, topic: str, key: str, text: str) -> None:
        """Print a line on the console when the key differs from the topic's last one."""
        if self._told.get(topic) != key:
            self._told[topic] = key
            self._log(text)

    def _send(self, transforms: Sequence[TransformStamped]) -> bool:
        """Broadcast our own frames, and none below a frame of another node; False when none is left."""
        ours: list[TransformStamped] = []
        rejected: set[str] = set()
        for transform in transforms:
            child, parent = transform.child_frame_id, transform.header.frame_id
            other = self._own_frames.other_parent(child, ns_from_stamp(transform.header.stamp))
            if other is not None:
                self._foreign.add(child)
                self._log_once(
                    f"refused {child}", other, f"{child} already has the parent {other}: not broadcast"
                )
            if other is not None or parent in rejected:
                rejected.add(child)
                continue
            self._foreign.discard(child)
            self._own_frames.sent(transform)
            ours.append(transform)
        if ours:
            self._sent = time.monotonic()
            self._publish(ours)
        return bool(ours)


def tf_publisher(node: Node) -> Callable[[list[TransformStamped]], Any]:
    """tf2_ros's broadcaster if installed, otherwise a plain publisher on /tf."""
    if TF2_ROS is not None:
        return TF2_ROS.TransformBroadcaster(node).sendTransform
    publisher = node.create_publisher(TFMessage, "/tf", QoSProfile(depth=100))
    return lambda transforms: publisher.publish(TFMessage(transforms=transforms))

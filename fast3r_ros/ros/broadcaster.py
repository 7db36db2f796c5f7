"""Transforms that the node broadcasts, as REP-105 wants them: never a second parent for a frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from geometry_msgs.msg import TransformStamped
from rclpy.node import Node
from rclpy.qos import QoSProfile
from tf2_msgs.msg import TFMessage

from fast3r_ros.mapping.data import Float64, PoseEstimate, ViewEstimate
from fast3r_ros.ros.config import NodeConfig
from fast3r_ros.ros.intake import CameraFacts
from fast3r_ros.ros.poses import rigid_inverse, stamped_transform
from fast3r_ros.ros.times import NS
from fast3r_ros.ros.transforms import OwnFrames, TransformLookup, TransformMissing
from fast3r_ros.ros.upstream import TF2_ROS

VIEW_FRAME = "fast3r_view_"


class Broadcaster:
    """Broadcasts poses by `tf_mode`.  config may be replaced at run time.

    facts: what is known of the camera of an image frame id.  parents: our frames that somebody
    else broadcasts, with their other parent; waiting_for: why nothing is broadcast, "" when all is well.
    """

    def __init__(
        self,
        publish: Callable[[list[TransformStamped]], Any],
        config: NodeConfig,
        own_frames: OwnFrames,
        lookup: TransformLookup,
        facts: Mapping[str, CameraFacts],
    ) -> None:
        self.config = config
        self._own_frames, self._lookup, self._facts = own_frames, lookup, facts
        self._publish = publish
        self._map_from_odom: Float64 | None = None
        self.parents: dict[str, str] = {}
        self.waiting_for = ""

    def camera_frame(self, camera: str) -> str:
        """The frame of the estimated camera for the image frame `camera`."""
        name = self._facts[camera].name if camera in self._facts else ""
        return f"{self.config.frames.camera}_{name}" if name else self.config.frames.camera

    def window(self, views: Sequence[ViewEstimate], metres: bool) -> None:
        """Broadcast what a new window says about its newest view (and about all, if wanted)."""
        transforms = []
        if self.config.publish_view_frames:
            for index, view in enumerate(views):
                transforms.append(self._map_to(f"{VIEW_FRAME}{index}", view))
        if self.config.tf_mode == "camera":
            newest = {view.camera: view for view in views}  # in time order: the last of a camera stays
            for view in newest.values():
                transforms += self._camera(view)
        elif self.config.tf_mode == "map_to_odom" and views:
            self._find_map_from_odom(views[-1], metres)
        self._send(transforms)

    def pose(self, pose: PoseEstimate) -> None:
        """Broadcast a pose between windows."""
        if self.config.tf_mode == "camera":
            self._send(self._camera(pose))

    def tick(self, now_ns: int) -> None:
        """Broadcast map -> odom, stamped a little into the future, so that nobody waits for it."""
        if self.config.tf_mode == "map_to_odom" and self._map_from_odom is not None:
            frames = self.config.frames
            stamp_ns = now_ns + round(self.config.tf.tolerance * NS)
            self._send([stamped_transform(self._map_from_odom, frames.map, frames.odom, stamp_ns)])

    def reset(self) -> None:
        """Forget map -> odom: the map starts anew."""
        self._map_from_odom = None

    def _map_to(self, child: str, view: ViewEstimate | PoseEstimate) -> TransformStamped:
        return stamped_transform(view.map_from_camera, self.config.frames.map, child, view.stamp_ns)

    def _camera(self, view: ViewEstimate | PoseEstimate) -> list[TransformStamped]:
        """map -> estimated camera, and on to the image's own frame while nobody else says where that is."""
        child = self.camera_frame(view.camera)
        transforms = [self._map_to(child, view)]
        if view.camera != child and self._own_frames.other_parent(view.camera) is None:
            transforms.append(stamped_transform(np.eye(4), child, view.camera, view.stamp_ns))
        return transforms

    def _find_map_from_odom(self, view: ViewEstimate, metres: bool) -> None:
        """map -> odom such that odom -> base -> camera goes on to the estimated pose."""
        if not metres:
            self.waiting_for = "map -> odom waits until the map is in metres: drive on"
            return
        odom = self.config.frames.odom
        try:
            odom_from_camera = self._lookup.lookup(odom, view.camera, view.stamp_ns)
        except TransformMissing as error:
            self.waiting_for = f"no transform {odom} -> {view.camera} at the image's stamp: {error}"
            return
        self.waiting_for = ""
        self._map_from_odom = view.map_from_camera @ rigid_inverse(odom_from_camera)

    def _send(self, transforms: Sequence[TransformStamped]) -> None:
        ours = []
        for transform in transforms:
            child = transform.child_frame_id
            other = self._own_frames.other_parent(child)
            if other is None:
                self.parents.pop(child, None)
                self._own_frames.sent(transform)
                ours.append(transform)
            else:
                self.parents[child] = other
        if ours:
            self._publish(ours)


def tf_publisher(node: Node) -> Callable[[list[TransformStamped]], Any]:
    """tf2_ros's broadcaster where it is installed, a plain publisher on /tf otherwise."""
    if TF2_ROS is not None:
        return TF2_ROS.TransformBroadcaster(node).sendTransform
    publisher = node.create_publisher(TFMessage, "/tf", QoSProfile(depth=100))
    return lambda transforms: publisher.publish(TFMessage(transforms=transforms))

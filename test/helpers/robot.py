"""A robot in the test process that drives through the synthetic room, and a listener to the node."""

from __future__ import annotations

import time
from collections import deque
from functools import lru_cache

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from fast3r_ros.msg import MappingStatus, WindowEstimate
from geometry_msgs.msg import TransformStamped
from nav_msgs.msg import Odometry
from nav_msgs.srv import GetMap
from patience import wait_until
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from ros_harness import NODE, Listener
from rosgraph_msgs.msg import Clock
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import Image
from tf2_msgs.msg import TFMessage

from fast3r_ros.geometry.rigid import BODY_FROM_OPTICAL, inverse
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import Frame
from fast3r_ros.ros.image_messages import packed, rgb_to_image
from fast3r_ros.ros.pose_messages import (
    matrix_from_pose,
    ns_from_stamp,
    odometry_message,
    stamp_from_ns,
    stamped_transform,
)
from fast3r_ros.synthetic.sequence import demo_sequence

CAMERA = "camera_optical_frame"
QUICK = {
    "output.status_rate": 30.0,
    "window.stride": 2,
}  # the walk is short, and each image waits for a status
ENOUGH = QUICK["window.stride"] + MapperConfig().window.overlap  # number of keyframes that begin a map


def listener_for(domain_id: int, node: str = NODE) -> Listener:
    """Receives status, windows, transforms and diagnostics."""
    listener = Listener(domain_id)
    listener.listen(MappingStatus, f"{node}/status")
    listener.listen(WindowEstimate, f"{node}/window")
    listener.listen(TFMessage, "/tf")
    listener.listen(DiagnosticArray, "/diagnostics")
    return listener


def latched() -> QoSProfile:
    """As /tf_static is published."""
    return QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@lru_cache(maxsize=1)
def frames() -> tuple[Frame, ...]:
    """The walk with its depth images, rendered once."""
    return tuple(demo_sequence(with_depth=True))


class Robot:
    """Publishes the walk like a robot: images, odometry in metres, odom -> base_link -> camera on TF.

    prefix: of the topics of camera and odometry.  node: that maps its images.  best_effort: as most camera
    drivers publish.  odom, base: its frames.  pans: the camera sits on a head that turns from side to side.
    """

    def __init__(
        self,
        listener: Listener,
        prefix: str = "",
        node: str = NODE,
        best_effort: bool = False,
        odom: str = "odom",
        base: str = "base_link",
        pans: bool = False,
    ) -> None:
        self._odom, self._base, self.pans = odom, base, pans
        self._sequence = demo_sequence()
        self._listener, self._status, self._sent = listener, f"{node}/status", 0
        self._best_effort = best_effort
        self.shown_at = 0.0  # monotonic seconds before the newest image was sent
        reliability = ReliabilityPolicy.BEST_EFFORT if best_effort else ReliabilityPolicy.RELIABLE
        qos = QoSProfile(depth=30, reliability=reliability)
        self.images = listener.node.create_publisher(Image, f"{prefix}/image", qos)
        self._depth = listener.node.create_publisher(Image, f"{prefix}/depth", qos)
        self._odometry = listener.node.create_publisher(Odometry, f"{prefix}/odometry", qos)
        self._clock = listener.node.create_publisher(Clock, "/clock", 10)
        self._tf = listener.node.create_publisher(TFMessage, "/tf", 100)
        self._tf_static = listener.node.create_publisher(TFMessage, "/tf_static", latched())
        self.base_from_camera = BODY_FROM_OPTICAL.copy()
        self.base_from_camera[:3, 3] = (0.2, 0.05, 0.4)
        # odometry starts at another pose
        self._odom_from_world = np.eye(4)
        self._odom_from_world[:3, :3] = Rotation.from_euler("z", 0.7).as_matrix()
        self._odom_from_world[:3, 3] = (3.0, -2.0, 0.0)
        if not pans:
            static = stamped_transform(self.base_from_camera, base, CAMERA, 0)
            self._tf_static.publish(TFMessage(transforms=[static]))

    def base_from_camera_at(self, index: int) -> np.ndarray:
        head = np.eye(4)
        head[:3, :3] = Rotation.from_euler("z", 0.6 * np.sin(index / 8) * self.pans).as_matrix()
        return head @ self.base_from_camera

    def world_from_camera(self, index: int) -> np.ndarray:
        return self._sequence.world_from_camera[index]

    def odom_from_base(self, index: int) -> np.ndarray:
        base_from_camera = self.base_from_camera_at(index)
        world_from_base = self._sequence.world_from_camera[index] @ inverse(base_from_camera)
        return self._odom_from_world @ world_from_base

    def index_at(self, stamp_ns: int) -> int:
        return round((stamp_ns - self._sequence.start_ns) * self._sequence.rate / 1e9)

    def drive(
        self,
        *,
        tf: bool = False,
        odometry: bool = False,
        depth: bool = False,
        late: int = 0,
        clock: bool = False,
    ) -> None:
        """The whole walk, as fast as the node maps it.

        tf, odometry, depth, clock: what is published beside the images.  late: number of images between an
        image and its transforms.
        """
        behind: deque[TFMessage] = deque()
        self._listener.connect(self.images, *[self._depth] * depth)
        self._listener.connect(*[self._odometry] * odometry, *[self._tf] * tf, adapts=False)
        for index, frame in enumerate(frames()):
            moved = self.odom_from_base(index)
            if clock:
                self._clock.publish(Clock(clock=stamp_from_ns(frame.stamp_ns)))
            if tf:
                transforms = [stamped_transform(moved, self._odom, self._base, frame.stamp_ns)]
                if self.pans:
                    mount = self.base_from_camera_at(index)
                    transforms.append(stamped_transform(mount, self._base, CAMERA, frame.stamp_ns))
                behind.append(TFMessage(transforms=transforms))
                if len(behind) > late:
                    self._tf.publish(behind.popleft())
            if odometry:
                self._odometry.publish(
                    odometry_message(moved, np.eye(6) * 1e-4, self._odom, self._base, frame.stamp_ns)
                )
            if depth:
                self._depth.publish(depth_in_millimetres(frame))
            self.show(frame, late)
        for message in behind:
            self._tf.publish(message)

    def show(self, frame: Frame, late: int = 0) -> None:
        """Send an image, and wait until the node has received it and mapped the ones before.

        late: number of images that may wait for their transforms.
        """
        self.shown_at = time.monotonic()
        self.images.publish(rgb_to_image(frame.image, frame.stamp_ns, CAMERA))
        self._sent += 1
        if self._best_effort:  # it may be lost
            self._listener.later(self._status)
        wait_until(lambda: self._mapped(late), f"{self._sent} images in the node and in its map")

    def _mapped(self, late: int) -> bool:
        status = self._listener.newest(self._status)
        received = self._best_effort or status.frames_received >= self._sent
        return received and status.frames_waiting <= ENOUGH + late

    def broadcast(self, parent: str, child: str) -> None:
        self._tf.publish(TFMessage(transforms=[stamped_transform(np.eye(4), parent, child, 0)]))

    def scale_error(self, window: WindowEstimate) -> float:
        """Relative error of the longest distance between two of a window's views."""
        ours = np.array([matrix_from_pose(view.pose.pose)[:3, 3] for view in window.views])
        indices = [self.index_at(ns_from_stamp(view.header.stamp)) for view in window.views]
        true = np.array([self._sequence.world_from_camera[index][:3, 3] for index in indices])
        distances = np.linalg.norm(true[:, None] - true, axis=-1)
        i, j = np.unravel_index(distances.argmax(), distances.shape)
        return abs(float(np.linalg.norm(ours[i] - ours[j]) / distances[i, j]) - 1.0)


def settle(listener: Listener, node: str = NODE, most_waiting: int = QUICK["window.stride"] - 1) -> None:
    """Wait until a node has mapped what it received, and its windows have come.

    most_waiting: number of keyframes that are too few for a window.
    """
    topic, before = f"{node}/status", None
    while True:
        status = listener.later(topic)
        now = status.frames_received, status.frames_used, status.windows
        if now == before and status.frames_waiting <= most_waiting:
            break
        before = now
        listener.call(GetMap, f"{node}/get_map")  # answered by the mapping thread, between two windows
    heard = listener.heard[f"{node}/window"]
    wait_until(lambda: len(heard) == status.windows, f"{status.windows} windows")


def depth_in_millimetres(frame: Frame) -> Image:
    """The frame's metric depth as a RealSense publishes it."""
    assert frame.depth is not None
    pixels = np.nan_to_num(frame.depth * 1000).astype("<u2")
    message = Image(height=pixels.shape[0], width=pixels.shape[1], encoding="16UC1", step=pixels.strides[0])
    message.header.stamp = stamp_from_ns(frame.stamp_ns)
    message.header.frame_id = frame.camera
    message.data = packed(pixels)
    return message


def transforms_to(listener: Listener, child: str) -> list[TransformStamped]:
    """All transforms received so far that give a frame a parent."""
    return [t for message in listener.heard["/tf"] for t in message.transforms if t.child_frame_id == child]

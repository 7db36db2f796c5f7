"""Inputs of the node: images, calibrations, odometry and transforms, converted outside of the executor.

Callbacks leave references in the mailbox; one thread takes them, converts images to frames and passes them
on.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from geometry_msgs.msg import PoseWithCovarianceStamped, TransformStamped
from nav_msgs.msg import Odometry
from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage

from fast3r_ros.errors import UserError
from fast3r_ros.io.pixels import BadImage
from fast3r_ros.mapping.data import Float64, Frame
from fast3r_ros.mapping.expectation import InitialPose
from fast3r_ros.ros.camera import DEPTHS, MASKS, CameraFacts, Companions, Intake, Rejected, TimeWentBack
from fast3r_ros.ros.counters import LOST, Counters, Guard
from fast3r_ros.ros.node_config import NodeConfig
from fast3r_ros.ros.pose_messages import NS, BadPose, initial_pose, matrix_from_pose, ns_from_stamp
from fast3r_ros.ros.subscriptions import CameraSubscriptions, Mailbox
from fast3r_ros.ros.transforms import OwnFrames, TransformLookup
from fast3r_ros.ros.waiting import Mounts, Ready, WaitingImages

NUMBER = re.compile(r"\d+(\.\d+)?")
TOLD = 200  # maximum number of kinds of invalid input that are logged
ARRIVALS = 1000  # number of frames whose arrival time is stored
FRAMES = 5000  # maximum number of stored TF frames; a robot has some hundred
NAME_LENGTH = 256  # maximum length of a frame's name


class FrameSink(Protocol):
    """Receiver of frames and metric poses; called on the conversion thread."""

    def add_frame(self, frame: Frame) -> None:
        """A new frame."""
        ...

    def add_odometry(self, stamp_ns: int, odom_from_base: Float64) -> None:
        """A pose (4, 4) of the robot's base in its odometry frame, metres."""
        ...

    def set_initial_pose(self, pose: InitialPose) -> None:
        """The pose of the robot's base in the map, set by the user."""
        ...


class Inputs:
    """Subscriptions and the conversion thread.

    on_time_back() runs on the conversion thread.  config may be replaced at run time.
    """

    def __init__(
        self,
        node: Node,
        config: NodeConfig,
        counters: Counters,
        lookup: TransformLookup,
        own_frames: OwnFrames,
        group: CallbackGroup,
        sink: FrameSink,
        on_time_back: Callable[[], None],
    ) -> None:
        self.config = config
        self._node, self._counters, self._group = node, counters, group
        self._guard = Guard(counters, node.get_logger())
        self._lookup, self._own_frames = lookup, own_frames
        self._sink, self._on_time_back = sink, on_time_back
        self.intakes = {name: Intake(name, config.input.frame_id) for name in config.cameras or ("",)}
        self._companions = {name: Companions() for name in self.intakes}
        self.cameras: list[CameraSubscriptions] = []
        self._others: list[Any] = []
        self._mailbox = Mailbox()
        self._frames: dict[str, bool] = {}  # frames on TF -> whether by a static transform
        self._stopping = False
        self._restart = False
        self._told: set[str] = set()  # logged kinds of invalid input
        self.paused = False
        self.last_image_time: dict[str, float] = {}  # camera -> time.monotonic()
        self.arrivals: OrderedDict[int, float] = OrderedDict()  # stamp of a frame -> time.monotonic()
        self._newest: tuple[int, float] | None = None  # stamp and arrival time of the newest frame
        self._waiting = WaitingImages(lookup, time.monotonic, self._mask_to_come)
        self.mounts = Mounts(node.get_logger(), config.frames.base)
        self.facts: dict[str, CameraFacts] = {}  # image frame id -> its camera
        self._thread = threading.Thread(target=self._run, name="fast3r_conversion", daemon=True)
        self._thread.start()
        self._subscribe_transforms()

    # Subscriptions ---------------------------------------------------------------------------------------

    def _subscribe_transforms(self) -> None:
        static = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        for topic, qos, handler in (
            ("/tf", QoSProfile(depth=100), self._take_tf),
            ("/tf_static", static, self._take_static_tf),
        ):
            self._others.append(self._subscribe_small(TFMessage, topic, qos, handler))

    def _subscribe_small(self, kind: Any, topic: str, qos: QoSProfile, handler: Callable[[Any], None]) -> Any:
        def leave(message: Any) -> None:
            self._leave(topic.lstrip("/"), handler, message)

        return self._node.create_subscription(kind, topic, leave, qos, callback_group=self._group)

    def open(self) -> None:
        """Subscribe to the cameras and the odometry."""
        settings = self.config.input
        self.cameras = [
            CameraSubscriptions(
                self._node,
                name,
                settings.transport,
                settings.reliability,
                self._group,
                self._image_callback,
                self._info_callback,
                self._mask_callback,
                self._depth_callback if self.config.mapper.scale.source == "depth" else None,
                self._foreign_callback,
                self._lost_callback,
            )
            for name in self.intakes
        ]
        self._others.append(
            self._subscribe_small(
                PoseWithCovarianceStamped, "initialpose", QoSProfile(depth=1), self._take_pose
            )
        )
        if settings.odometry == "topic":
            subscription = self._subscribe_small(
                Odometry, "odometry", qos_profile_sensor_data, self._take_odometry
            )
            self._others.append(subscription)

    def close(self) -> None:
        """Unsubscribe from cameras and odometry; waiting images are dropped."""
        for camera in self.cameras:
            camera.destroy()
        self.cameras = []
        while len(self._others) > 2:  # the transforms stay
            self._node.destroy_subscription(self._others.pop())
        for _ in range(self._mailbox.clear()):
            self._counters.dropped("not active")
        self._mailbox.put(self._drop_waiting, "not active")

    def adapt(self) -> None:
        """Adapt every camera to its publishers; called about twice a second."""
        for camera in self.cameras:
            camera.adapt()

    def restart(self) -> None:
        """Take sizes, frame ids and stamps from the next images again."""
        self._restart = True

    def request_stop(self) -> None:
        """Ask the thread to end after the message in progress."""
        self._stopping = True
        self._mailbox.close()

    def stop(self, timeout: float | None = None) -> bool:
        """Unsubscribe from all and end the thread; False when that takes more than `timeout` seconds."""
        self.close()
        while self._others:
            self._node.destroy_subscription(self._others.pop())
        self.request_stop()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # Executor --------------------------------------------------------------------------------------------

    def _image_callback(self, name: str, message: Any) -> None:
        with self._counters.timed_callback():
            self._counters.received()
            self.last_image_time[name] = time.monotonic()
            if self.paused:
                self._counters.dropped("paused")
            elif self._mailbox.put_image(name, message):
                self._counters.dropped("too slow: a newer image replaced it")

    def _leave(self, kind: str, handler: Callable[[Any], None], message: Any) -> None:
        """Leave a small message for the conversion thread; lost ones are counted."""
        if self._mailbox.put(handler, message, kind):
            self._counters.problem(f"too many messages at once: {kind}")

    def _info_callback(self, name: str, message: CameraInfo) -> None:
        if self.config.input.use_camera_info:
            self._leave(f"{name}/camera_info".lstrip("/"), partial(self._take_info, name), message)

    def _depth_callback(self, name: str, message: Image) -> None:
        # only the newest are used, so replaced ones are not counted
        self._mailbox.put(self._companions[name].add_depth, message, f"{name}/depth", DEPTHS)

    def _mask_callback(self, name: str, message: Image) -> None:
        self._mailbox.put(self._companions[name].add_mask, message, f"{name}/mask", MASKS)

    def _foreign_callback(self, name: str) -> None:
        self._counters.received()
        self._counters.dropped("second publisher on the image topic")

    def _lost_callback(self, name: str, count: int) -> None:
        self._counters.problem(LOST, count)

    # Conversion thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            small, image = self._mailbox.take(timeout=max(0.0, min(1.0, self._waiting.seconds_left())))
            if self._restart:
                self._restart = False
                self._drop_waiting("waited for transforms at a reset")
                self._make_room()
                for intake in self.intakes.values():
                    intake.restart()
            for handler, message in small:
                self._guard.run(type(message).__name__, partial(handler, message))
            if image is not None:
                try:
                    self._take_image(*image)
                except Exception as error:
                    self._counters.dropped("internal error")
                    self._guard.failed("image", error)
            self._guard.run("images that waited for transforms", self._hand_on)

    def _take_image(self, name: str, message: Any) -> None:
        """Convert one image to a frame, or count the reason for dropping it."""
        intake = self.intakes[name]
        arrived = self.last_image_time[name]
        try:
            frame = intake.frame(message, self.config.input.jump_back)
        except TimeWentBack as error:
            self._counters.dropped(error.reason)
            self._report(f"{error}: a new window starts")
            self._guard.run("time went back", self._time_went_back)
        except (Rejected, BadImage) as error:
            self._counters.dropped(error.reason)
            self._report(str(error))
        else:
            size = (frame.image.shape[1], frame.image.shape[0])
            self.facts[frame.camera] = CameraFacts(size, intake.calibrated, name)
            self._waiting.add(frame, arrived)

    def _hand_on(self) -> None:
        """Pass the images whose transforms are available, or overdue, to the mapper."""
        for stamp_ns, odom_from_base in self._waiting.late_odometry(self.config):
            self._sink.add_odometry(stamp_ns, odom_from_base)
        try:
            for ready in self._waiting.release(self.config):
                if not self._guard.run("image with its transforms", partial(self._hand_on_one, ready)):
                    self._counters.dropped("internal error")
        except Exception as error:  # the lookup of its transforms failed; it no longer waits
            self._counters.dropped("internal error")
            self._guard.failed("transforms of an image", error)

    def _hand_on_one(self, ready: Ready) -> None:
        frame = ready.frame
        self.mounts.seen(frame)
        if ready.odom_from_base is not None:
            self._sink.add_odometry(frame.stamp_ns, ready.odom_from_base)
        elif self.config.input.odometry == "tf":
            self._counters.problem("no odometry on TF")
            self._report(f"an image waited too long for {ready.missing[-1]}")
        self.arrivals[frame.stamp_ns] = ready.arrived
        self._newest = frame.stamp_ns, ready.arrived
        if len(self.arrivals) > ARRIVALS:
            self.arrivals.popitem(last=False)
        self._sink.add_frame(self._with_companions(frame))

    def image_time_ns(self) -> int | None:
        """The present time by the images' clock; None before the first image.  From any thread."""
        newest = self._newest
        return None if newest is None else newest[0] + round((time.monotonic() - newest[1]) * NS)

    def _drop_waiting(self, reason: str) -> None:
        for _ in range(self._waiting.clear()):
            self._counters.dropped(reason)

    def clock_went_back(self) -> None:
        """Notify the conversion thread that the clock jumped back."""
        self._mailbox.put(lambda _: self._time_went_back(), None)

    def _time_went_back(self) -> None:
        """Reset everything from before the jump."""
        self._drop_waiting("time went back")
        self._lookup.clear()
        for intake in self.intakes.values():
            intake.restart()
        self._on_time_back()

    def _take_info(self, name: str, message: CameraInfo) -> None:
        try:
            self.intakes[name].calibration(message)
        except UserError as error:
            self._counters.problem("unusable camera_info")
            self._report(str(error))

    def _take_odometry(self, message: Odometry) -> None:
        try:
            odom_from_base = matrix_from_pose(message.pose.pose)
        except BadPose as error:
            self._counters.problem(f"odometry: {error.reason}")
            self._report(f"odometry: {error}")
        else:
            self._sink.add_odometry(ns_from_stamp(message.header.stamp), odom_from_base)

    def _take_pose(self, message: PoseWithCovarianceStamped) -> None:
        """RViz's 2D Pose Estimate."""
        frame, wanted = message.header.frame_id, self.config.frames.map
        try:
            if frame != wanted:
                raise BadPose("in another frame", f"it is in {frame!r}; give it in {wanted!r}")
            pose = initial_pose(message.pose)
        except BadPose as error:
            self._counters.problem(f"initialpose: {error.reason}")
            self._report(f"initialpose: {error}")
        else:
            self._sink.set_initial_pose(pose)

    def _mask_to_come(self, frame: Frame) -> bool:
        name = self.facts[frame.camera].name
        masked = any(camera.masked for camera in self.cameras if camera.name == name)
        return masked and not self._companions[name].has_mask(frame.stamp_ns)

    def _with_companions(self, frame: Frame) -> Frame:
        """The frame with its depth and its mask; invalid ones are counted and reported."""
        name = self.facts[frame.camera].name
        intake, companions = self.intakes[name], self._companions[name]
        if self._mask_to_come(frame):
            self._counters.problem("no mask in time")
            self._report(f"a mask is published for {frame.camera}, but none for an image's stamp in time")
        for find in (companions.with_depth, companions.with_mask):
            try:
                frame = find(frame, intake.depth)
            except BadImage as error:
                self._counters.problem(error.reason)
                self._report(str(error))
        return frame

    def _take_tf(self, message: TFMessage) -> None:
        for transform in message.transforms:
            self._insert(transform, static=False)

    def _take_static_tf(self, message: TFMessage) -> None:
        for transform in message.transforms:
            self._insert(transform, static=True)

    def _insert(self, transform: TransformStamped, static: bool) -> None:
        names = transform.header.frame_id, transform.child_frame_id
        if not self._has_room_for(*names, static):
            self._counters.problem("too many frames on TF")
            self._report(
                f"more than {FRAMES} frames on TF, or a name that is too long; the others are ignored"
            )
            return
        if self._own_frames.is_own(transform):
            return
        try:
            self._lookup.insert(transform, static)
            self._own_frames.heard(transform, static)
        except BadPose as error:
            self._counters.problem(f"transform: {error.reason}")
            self._report(f"transform {names[0]} -> {names[1]}: {error}")

    def _has_room_for(self, parent: str, child: str, static: bool) -> bool:
        """Whether a transform's frames are known, or there is room to store them."""
        if max(len(parent), len(child)) > NAME_LENGTH:
            return False
        new = {parent, child} - self._frames.keys()
        if len(self._frames) + len(new) > FRAMES:
            return not new
        self._frames.update(dict.fromkeys(new, static))
        return True

    def _make_room(self) -> None:
        """At a reset: remove the frames of a flood; static transforms stay, they are not sent again."""
        if len(self._frames) >= FRAMES - 1:
            self._lookup.clear()
            self._frames = {name: static for name, static in self._frames.items() if static}

    def _report(self, text: str) -> None:
        """Log a problem of the input, once per kind; ~/status has the newest."""
        self._counters.error(text)
        kind = NUMBER.sub("", text)
        if kind not in self._told and len(self._told) < TOLD:
            self._told.add(kind)
            self._node.get_logger().warning(f"{text}; more of this kind are only counted")

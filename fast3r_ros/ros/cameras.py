"""Subscriptions of one camera: image and camera_info, with a QoS that follows the publishers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

IMAGE_DEPTH = 5


def adapted_reliability(offered: list[ReliabilityPolicy], wanted: str) -> ReliabilityPolicy:
    """The reliability to subscribe with: reliable where every publisher is, as rosbag2 does it.

    Best effort loses most images above 500 kB; a reliable subscription gets nothing from a best-effort
    publisher.
    """
    if wanted != "auto":
        return ReliabilityPolicy.RELIABLE if wanted == "reliable" else ReliabilityPolicy.BEST_EFFORT
    if offered and all(each == ReliabilityPolicy.RELIABLE for each in offered):
        return ReliabilityPolicy.RELIABLE
    return ReliabilityPolicy.BEST_EFFORT


class CameraSubscriptions:
    """`image` (or `image/compressed`) and `camera_info` below the camera's name.

    on_image(name, message) and on_info(name, message) run on the executor.  With two publishers on the image
    topic, only the images of the first are passed on where the middleware tells them apart, none otherwise;
    on_foreign(name) is called for the others.
    """

    def __init__(
        self,
        node: Node,
        name: str,
        transport: str,
        reliability: str,
        group: CallbackGroup,
        on_image: Callable[[str, Any], None],
        on_info: Callable[[str, CameraInfo], None],
        on_foreign: Callable[[str], None],
    ) -> None:
        self._node, self.name, self._group = node, name, group
        self._wanted = reliability
        self._on_image, self._on_foreign = on_image, on_foreign
        prefix = f"{name}/" if name else ""
        base = node.resolve_topic_name(f"{prefix}image")
        self._type = CompressedImage if transport == "compressed" else Image
        # as image_transport does: the transport's name goes behind the remapped topic
        self.topic = f"{base}/compressed" if transport == "compressed" else base
        self._reliability: ReliabilityPolicy | None = None
        self._image: Any = None
        self._chosen: bytes | None = None
        self.publishers: list[str] = []
        self._info = node.create_subscription(
            CameraInfo,
            f"{prefix}camera_info",
            lambda message: on_info(name, message),
            qos_profile_sensor_data,
            callback_group=group,
        )
        self.adapt()

    def adapt(self) -> None:
        """Look at the publishers and subscribe anew when another reliability serves better."""
        endpoints = self._node.get_publishers_info_by_topic(self.topic)
        self.publishers = [f"{each.node_namespace.rstrip('/')}/{each.node_name}" for each in endpoints]
        if self._chosen not in [bytes(each.endpoint_gid) for each in endpoints]:
            self._chosen = None
        if self._image is not None and not endpoints:
            return
        reliability = adapted_reliability([each.qos_profile.reliability for each in endpoints], self._wanted)
        if reliability == self._reliability:
            return
        if self._image is not None:
            self._node.destroy_subscription(self._image)
        self._reliability = reliability
        self._image = self._node.create_subscription(
            self._type,
            self.topic,
            self._receive,
            QoSProfile(depth=IMAGE_DEPTH, reliability=reliability),
            callback_group=self._group,
        )

    def _receive(self, message: Any, info: Any) -> None:
        gid = _gid(info)
        if self._chosen is None:
            self._chosen = gid
        # a publisher newer than our last look at the graph has a foreign id, too
        if gid != self._chosen or (gid is None and len(self.publishers) > 1):
            self._on_foreign(self.name)
        else:
            self._on_image(self.name, message)

    @property
    def reliable(self) -> bool:
        """Whether the image subscription is reliable now."""
        return self._reliability == ReliabilityPolicy.RELIABLE

    def destroy(self) -> None:
        """Unsubscribe."""
        self._node.destroy_subscription(self._info)
        self._node.destroy_subscription(self._image)


def _gid(info: Any) -> bytes | None:
    """The publisher's id in a message's info, None where this rclpy does not tell."""
    try:
        return bytes(info["publisher_gid"]["data"])
    except (KeyError, TypeError):
        return None

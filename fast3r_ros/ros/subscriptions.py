"""A camera's subscriptions, and the queue between their callbacks and the conversion thread."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.topic_endpoint_info import TopicEndpointInfo
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

QUEUE_LENGTH = (
    2000  # maximum number of waiting small messages (odometry, transforms, calibrations) of one kind
)
Handler = Callable[[Any], None]


class Mailbox:
    """Images wait in one slot per camera, where a newer one replaces an older one.

    Small messages are taken in order of arrival.  Each kind has a queue of bounded length, which drops its
    oldest ones, so that a flood of one kind does not affect the others.
    """

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._images: dict[str, Any] = {}
        self._small: dict[str, deque[tuple[int, Handler, Any]]] = {}
        self._count = 0  # number of small messages so far, for their order
        self._closed = False

    def put_image(self, camera: str, message: Any) -> bool:
        """Leave an image; True when it replaced a waiting one."""
        with self._ready:
            replaced = self._images.pop(camera, None) is not None  # the new one goes to the end of the queue
            self._images[camera] = message
            self._ready.notify()
        return replaced

    def put(self, handler: Handler, message: Any, kind: str = "", most: int = QUEUE_LENGTH) -> bool:
        """Leave a small message with its handler for the conversion thread.

        kind: of the message; at most `most` of them wait.  True when the oldest of its kind was dropped.
        """
        with self._ready:
            queue = self._small.setdefault(kind, deque())
            self._count += 1
            queue.append((self._count, handler, message))
            lost = len(queue) > most
            if lost:
                queue.popleft()
            self._ready.notify()
        return lost

    def take(self, timeout: float) -> tuple[list[tuple[Handler, Any]], tuple[str, Any] | None]:
        """All small messages, and the image that has waited longest, if any; waits at most `timeout` s."""
        with self._ready:
            if not (self._images or self._small or self._closed):
                self._ready.wait(timeout)
            in_order = sorted(itertools.chain(*self._small.values()), key=lambda each: each[0])
            small = [(handler, message) for _, handler, message in in_order]
            self._small.clear()
            camera = next(iter(self._images), None)
            return small, (None if camera is None else (camera, self._images.pop(camera)))

    def close(self) -> None:
        """Wake the waiting thread."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()

    def clear(self) -> int:
        """Drop the images and return their number; small messages stay: latched ones come once."""
        with self._ready:
            count = len(self._images)
            self._images.clear()
            return count


IMAGE_DEPTH = 5
SILENCE_SECONDS = 2.0  # seconds without images after which another publisher may take over


def adapted_reliability(offered: Sequence[ReliabilityPolicy], wanted: str) -> ReliabilityPolicy:
    """The reliability of a subscription: reliable if every publisher is, as in rosbag2.

    Best effort loses most images above 500 kB; a reliable subscription gets nothing from a best-effort
    publisher.
    """
    if wanted != "auto":
        return ReliabilityPolicy.RELIABLE if wanted == "reliable" else ReliabilityPolicy.BEST_EFFORT
    if offered and all(each == ReliabilityPolicy.RELIABLE for each in offered):
        return ReliabilityPolicy.RELIABLE
    return ReliabilityPolicy.BEST_EFFORT


class AdaptiveSubscription:
    """A subscription that is recreated when another reliability matches the publishers better.

    callback(message, info) runs on the executor.  wanted: auto, reliable or best_effort.
    """

    def __init__(
        self,
        node: Node,
        kind: Any,
        topic: str,
        wanted: str,
        group: CallbackGroup,
        callback: Callable[[Any, Any], None],
    ) -> None:
        self._node, self._kind, self._wanted, self._group = node, kind, wanted, group
        self._callback = callback
        self._subscription: Any = None
        self.topic = topic
        self.reliability: ReliabilityPolicy | None = None

    def adapt(self) -> list[TopicEndpointInfo]:
        """Adapt the subscription to the publishers, and return them."""
        endpoints = self._node.get_publishers_info_by_topic(self.topic)
        if self._subscription is not None and not endpoints:
            return endpoints
        reliability = adapted_reliability([each.qos_profile.reliability for each in endpoints], self._wanted)
        if reliability != self.reliability:
            self.destroy()
            self.reliability = reliability
            qos = QoSProfile(depth=IMAGE_DEPTH, reliability=reliability)
            callback: Any = self._callback  # Jazzy's type hints lack callbacks with message info
            self._subscription = self._node.create_subscription(
                self._kind, self.topic, callback, qos, callback_group=self._group
            )
        return endpoints

    def destroy(self) -> None:
        """Unsubscribe."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None


class Gaps:
    """Detects lost messages by the middleware's sequence numbers of each publisher."""

    def __init__(self) -> None:
        self._publisher: bytes | None = None
        self._newest: int | None = None

    def before(self, publisher: bytes | None, number: int | None) -> int:
        """Number of messages lost before this one; 0 before a publisher's first."""
        newest, self._newest = self._newest, number
        known, self._publisher = publisher == self._publisher, publisher
        if not known or newest is None or number is None or number <= newest:
            return 0
        return number - newest - 1

    def restart(self) -> None:
        """Start again with the next message: messages sent without a subscription are not lost."""
        self._newest = None


class CameraSubscriptions:
    """The topics below a camera's name.

    on_image, on_info, on_mask and on_depth(name, message) run on the executor; on_depth: None without depth.
    masked: whether masks are published.  If the image topic has two publishers, only the first one's images
    are passed on if the middleware can distinguish them, otherwise none; on_foreign(name) is called for the
    others.  on_lost(name, count): called for images lost in transport.  transport: auto, raw or compressed.
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
        on_mask: Callable[[str, Image], None],
        on_depth: Callable[[str, Image], None] | None,
        on_foreign: Callable[[str], None],
        on_lost: Callable[[str, int], None],
    ) -> None:
        self.name = name
        self._node = node
        self._on_image, self._on_foreign, self._on_lost = on_image, on_foreign, on_lost
        self._gaps = Gaps()
        self._chosen: bytes | None = None  # id of the publisher whose images are used
        self._chosen_time = 0.0
        self.publishers: list[str] = []
        self.unheard: list[str] = []  # publishers whose reliability is incompatible with ours
        self.others: list[str] = []  # published image topics, if ours has no publisher
        prefix = f"{name}/" if name else ""
        topic = node.resolve_topic_name(f"{prefix}image")
        # like image_transport: the transport's name follows the remapped topic
        self._topics: dict[Any, str] = {Image: topic, CompressedImage: f"{topic}/compressed"}
        self._auto, self._reliability, self._group = transport == "auto", reliability, group
        self._looks = 0  # consecutive checks in which only the other transport was published
        self._image = self._subscribe(CompressedImage if transport == "compressed" else Image)
        self.masked = False
        self._mask = self._subscribe_next_to("mask", on_mask)
        self._depth = self._subscribe_next_to("depth", on_depth) if on_depth is not None else None
        self._info = node.create_subscription(
            CameraInfo,
            f"{prefix}camera_info",
            lambda message: on_info(name, message),
            qos_profile_sensor_data,
            callback_group=group,
        )
        self.adapt()

    def _subscribe(self, kind: Any) -> AdaptiveSubscription:
        self._kind = kind
        topic = self._topics[kind]
        return AdaptiveSubscription(self._node, kind, topic, self._reliability, self._group, self._receive)

    def _subscribe_next_to(self, topic: str, callback: Callable[[str, Image], None]) -> AdaptiveSubscription:
        topic = self._node.resolve_topic_name(f"{self.name}/{topic}" if self.name else topic)
        return AdaptiveSubscription(
            self._node,
            Image,
            topic,
            self._reliability,
            self._group,
            lambda message, info: callback(self.name, message),
        )

    @property
    def note(self) -> str:
        """A remark on the subscription."""
        return " (no publisher of raw images)" if self._auto and self._kind is CompressedImage else ""

    @property
    def topic(self) -> str:
        """The full name of the image topic."""
        return self._image.topic

    @property
    def reliable(self) -> bool:
        """Whether the image subscription is reliable now."""
        return self._image.reliability == ReliabilityPolicy.RELIABLE

    def adapt(self) -> None:
        """Adapt the subscriptions to the publishers."""
        if self._auto:
            self._choose_transport()
        before = self._image.reliability
        endpoints = self._image.adapt()
        if self._image.reliability != before:
            self._gaps.restart()
        self.masked = bool(self._mask.adapt())
        if self._depth is not None:
            self._depth.adapt()
        self.publishers = [_full_name(each) for each in endpoints]
        self.unheard = [_full_name(each) for each in endpoints if self.reliable and not _is_reliable(each)]
        if self._chosen not in [bytes(each.endpoint_gid) for each in endpoints]:
            self._chosen = None

        self.others = [] if endpoints else published_images(self._node)

    def _choose_transport(self) -> None:
        """Change to the other transport if only that is published in two consecutive checks.

        A driver that offers both is not discovered at once.
        """
        other = Image if self._kind is CompressedImage else CompressedImage
        published = {kind: self._node.count_publishers(topic) for kind, topic in self._topics.items()}
        self._looks = self._looks + 1 if published[other] and not published[self._kind] else 0
        if self._looks >= 2:
            self._looks = 0
            self._image.destroy()
            self._gaps.restart()
            self._image = self._subscribe(other)

    def _receive(self, message: Any, info: Any) -> None:
        gid, now = _gid(info), time.monotonic()
        if self._chosen is None or now - self._chosen_time > SILENCE_SECONDS:
            self._chosen = gid  # the previous one is gone; a crashed publisher stays in the graph for a while
        if gid == self._chosen:
            self._chosen_time = now
        # a publisher newer than our last check of the graph also has a foreign id
        if gid != self._chosen or (gid is None and len(self.publishers) > 1):
            self._on_foreign(self.name)
            return
        missing = self._gaps.before(gid, info.get("publication_sequence_number"))
        if missing:
            self._on_lost(self.name, missing)
        self._on_image(self.name, message)

    def destroy(self) -> None:
        """Unsubscribe."""
        self._node.destroy_subscription(self._info)
        self._image.destroy()
        self._mask.destroy()
        if self._depth is not None:
            self._depth.destroy()


def published_images(node: Node) -> list[str]:
    """Image topics published by other nodes."""
    kinds = {"sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"}
    own = f"{node.get_fully_qualified_name()}/"
    return sorted(
        topic
        for topic, types in node.get_topic_names_and_types()
        if kinds & set(types) and not topic.startswith(own) and node.count_publishers(topic)
    )


def _full_name(endpoint: TopicEndpointInfo) -> str:
    return f"{endpoint.node_namespace.rstrip('/')}/{endpoint.node_name}"


def _is_reliable(endpoint: TopicEndpointInfo) -> bool:
    return bool(endpoint.qos_profile.reliability == ReliabilityPolicy.RELIABLE)


def _gid(info: Any) -> bytes | None:
    """The publisher's id in a message's info, None if this rclpy does not provide it."""
    try:
        return bytes(info["publisher_gid"]["data"])
    except (KeyError, TypeError):
        return None

"""A ROS bag as a source, without ROS.

Reads rosbag2 (sqlite3 or mcap, compressed or not) and ROS 1 bags, with topics of raw images, compressed
images and video packets.
"""

from __future__ import annotations

import heapq
import re
import struct
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fast3r_ros.errors import UserError, optional
from fast3r_ros.files import one_line
from fast3r_ros.geometry.rotation import matrix_from_quaternion
from fast3r_ros.io.pixels import DEPTH_ENCODINGS, decode_compressed, decode_image
from fast3r_ros.io.rectify import Rectifier, rectifier_of_info
from fast3r_ros.io.sources.bag_storage import BagMessage, BagStorage, open_storage
from fast3r_ros.io.sources.source import SkippedFrame
from fast3r_ros.io.sources.video import PACKETS, codec_of, decode_packets
from fast3r_ros.mapping.data import Float64, Frame, UInt8

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGES = ("sensor_msgs/msg/CompressedImage", "foxglove_msgs/msg/CompressedImage")
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
ODOMETRY = "nav_msgs/msg/Odometry"
TRANSPORTS = (
    "compressed",
    "ffmpeg",
    "foxglove",
    "h264",
    "zstd",
)  # last words of topics that belong to a camera
_FOXGLOVE = """\
builtin_interfaces/Time timestamp
string frame_id
uint8[] data
string format
"""
# in topics of images that are not for viewing
_NO_PICTURE = re.compile("depth|disparity|range|label|segment")
_CALIBRATIONS_TRIED = 100  # maximum number of camera infos to try: drivers begin with zeros


def bag_topics(path: Path) -> list[str]:
    """The topics of a bag: `TOPIC (TYPE, N messages)`.  Raises UserError when it cannot be read."""
    storage = open_storage(path)
    topics = [f"{name} ({kind}, {count} messages)" for (name, kind), count in storage.topics.items()]
    return sorted([*topics, *(f"{topic} ({what})" for topic, what in storage.unread.items())])


class RosBag:
    """The images of one topic of a bag, in order of their stamps, rectified when the bag has a CameraInfo.

    topic: may be omitted when the bag has one colour image topic.  camera_info: whether to use the
    calibration; without it images stay distorted and the focal length is estimated.  Only this topic, its
    calibration and the odometry matter; other topics, even if damaged, have no effect.  See `Source`.
    """

    def __init__(self, path: Path, topic: str | None = None, camera_info: bool = True):
        self.name = str(path)
        self.paths: tuple[Path, ...] = (path,)
        self.skipped: list[SkippedFrame] = []
        self.truth: Mapping[int, Float64] | None = None
        self.synthetic = False
        self._storage = open_storage(path)
        self._note_damage()
        if topic and any(name == f"/{topic}" for name, _ in self._storage.topics):
            topic = f"/{topic}"  # topic names in bags begin with a slash
        self._topic = topic or _only_image_topic(self._storage, self.name)
        kinds = {kind for name, kind in self._storage.topics if name == self._topic}
        if not kinds & {IMAGE, *COMPRESSED_IMAGES, *PACKETS}:
            known = ", ".join(_image_topics(self._storage)) or "none"
            raise UserError(f"{self.name} has no image topic {self._topic}; its image topics: {known}")
        stamps = self._read_stamps()
        self._order = np.argsort(np.array(stamps, np.int64), kind="stable")
        self._count = len(stamps)
        ascending = [stamps[place] for place in self._order]
        for index in range(1, len(ascending)):  # two images with the same stamp are different images
            ascending[index] = max(ascending[index], ascending[index - 1] + 1)
        self._stamps = ascending
        self.stamps_ns: Sequence[int] | None = ascending
        duration_s = (ascending[-1] - ascending[0]) / 1e9
        self.rate_hz = (self._count - 1) / max(duration_s, 1e-3) if self._count > 1 else 1.0
        self._rectifier = self._find_calibration() if camera_info else None
        self._codec = _video_codec(self._storage, self._topic)

    @property
    def topic(self) -> str:
        """The image topic."""
        return self._topic

    def __len__(self) -> int:
        """Number of messages on the topic."""
        return self._count

    def __iter__(self) -> Iterator[Frame]:
        """Every image that can be decoded; see `Source`."""
        return self.frames(range(len(self)))

    def frame_name(self, stamp_ns: int) -> str:
        """`message N of TOPIC`, counted from 0 in order of the stamps."""
        return f"message {bisect_left(self._stamps, stamp_ns)} of {self._topic}"

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """The chosen images; see `Source`.  A damaged file yields the rest; `skipped` notes the damage.

        Raises UserError when none can be read.
        """
        read = 0
        reported = len(self.skipped)
        for frame in self._video_frames(set(indices)) if self._codec else self._images(indices):
            read += 1
            yield frame
        self._note_damage()
        if indices and not read:
            reason = self.skipped[-1].reason if len(self.skipped) > reported else "it has no messages"
            raise UserError(f"no image of {self._topic} in {self.name} can be read: {reason}")

    def _images(self, indices: Sequence[int]) -> Iterator[Frame]:
        """The chosen images of a topic of independent images, in order of their stamps."""
        rank = np.empty(self._count, int)  # rank of each message of the file by stamp
        rank[self._order] = np.arange(self._count)
        wanted = sorted(set(indices))
        due = iter(wanted)
        next_due = next(due, None)
        early: list[tuple[int, int, Frame | None]] = []  # decoded, waiting for earlier stamps recorded later
        chosen = set(wanted)
        for place, message in enumerate(self._storage.messages([self._topic])):
            if place >= self._count or int(rank[place]) not in chosen:
                continue
            index = int(rank[place])
            heapq.heappush(early, (index, place, self._frame(message, index)))
            while early and early[0][0] == next_due:
                frame = heapq.heappop(early)[2]
                next_due = next(due, None)
                if frame is not None:
                    yield frame

    def _video_frames(self, wanted: set[int]) -> Iterator[Frame]:
        """The chosen pictures of a topic whose messages are packets of one video.

        A packet depends on earlier ones, so all are decoded; `skipped` counts packets without a picture.
        """
        rank = np.empty(self._count, int)
        rank[self._order] = np.arange(self._count)
        cameras: list[str] = []
        missing = set(wanted)
        latest = -1
        try:
            for place, image in decode_packets(self._codec, self._packets(cameras)):
                index = int(rank[place]) if place < self._count else -1
                if index in missing and index > latest:
                    missing.discard(index)
                    latest = index
                    frame = self._of_image(image, index, cameras[place])
                    if frame is not None:
                        yield frame
                if not missing:
                    break
        except UserError as error:
            self.skipped.append(SkippedFrame(self._topic, str(error)))
            return
        if missing:
            text = (
                f"{len(missing)} of {len(wanted)} messages give no picture: an earlier key frame is missing"
            )
            self.skipped.append(SkippedFrame(f"message {min(missing)} of {self._topic}", text))

    def _packets(self, cameras: list[str]) -> Iterator[bytes]:
        """The data of every message, empty for garbage; appends the names of their cameras to `cameras`."""
        for message in self._storage.messages([self._topic]):
            try:
                content: Any = _deserialize(message)
                cameras.append(_camera(content))
                yield bytes(content.data)
            except Exception:  # decoders raise many types on garbage
                cameras.append("camera")
                yield b""

    def _note_damage(self) -> None:
        """Notes the unreadable parts of the files, each line once."""
        damage = [SkippedFrame("a part of the bag", line) for line in self._storage.damage]
        self.skipped += [each for each in damage if each not in self.skipped]

    def odometry(self) -> Iterator[tuple[int, Float64]]:
        """Stamp in ns and (4, 4) `odom_from_base` in metres of every nav_msgs/Odometry message, in order.

        Raises UserError when the bag has no odometry topic, or several.
        """
        topics = sorted(topic for topic, kind in self._storage.topics if kind == ODOMETRY)
        if len(topics) != 1:
            found = ", ".join(topics) or "none"
            raise UserError(f"{self.name} needs one topic of {ODOMETRY} for --scale odometry; found: {found}")
        for each in self._storage.messages(topics):
            try:
                message: Any = _deserialize(each)
                place, turn = message.pose.pose.position, message.pose.pose.orientation
                odom_from_base = np.eye(4)
                odom_from_base[:3, :3] = matrix_from_quaternion([turn.x, turn.y, turn.z, turn.w])
                odom_from_base[:3, 3] = place.x, place.y, place.z
            except Exception as error:  # decoders raise many types on garbage
                self.skipped.append(SkippedFrame(f"a message of {topics[0]}", one_line(error)))
                continue
            stamp = message.header.stamp
            yield stamp.sec * 10**9 + stamp.nanosec, odom_from_base

    def _read_stamps(self) -> list[int]:
        """The stamp of every message of the topic, ns; the recorder's times where the stamps are zero."""
        recorded, stamps = [], []
        for message in self._storage.messages([self._topic]):
            recorded.append(message.time_ns)
            stamps.append(_header_stamp(message.data, message.ros1))
        if not any(stamps):
            return recorded
        shift = int(np.median([s - r for s, r in zip(stamps, recorded, strict=True) if s]))
        return [stamp or time_ns + shift for stamp, time_ns in zip(stamps, recorded, strict=True)]

    def _frame(self, message: BagMessage, index: int) -> Frame | None:
        """The frame of a message; None, and a line in `skipped`, when its image cannot be read."""
        try:
            content: Any = _deserialize(message)
            image, camera = _decode(content), _camera(content)
        except Exception as error:  # decoders raise many types on garbage
            self.skipped.append(SkippedFrame(f"message {index} of {self._topic}", one_line(error)))
            return None
        return self._of_image(image, index, camera)

    def _of_image(self, image: UInt8, index: int, camera: str) -> Frame | None:
        """The frame of a picture; None, and a line in `skipped`, when the calibration does not fit it."""
        if self._rectifier is None:
            return Frame(self._stamps[index], camera, image)
        try:
            rectifier = self._rectifier.for_size(image.shape[1], image.shape[0])
        except UserError as error:
            reason = f"{one_line(error)}; --no-camera-info ignores the calibration"
            self.skipped.append(SkippedFrame(f"message {index} of {self._topic}", reason))
            return None
        return Frame(self._stamps[index], camera, rectifier(image), rectifier.intrinsics)

    def _find_calibration(self) -> Rectifier | None:
        """The first valid CameraInfo next to the image topic; None when there is none."""
        plain = _of_camera(self._topic)
        namespace = plain.rsplit("/", 1)[0]
        topic = f"{namespace}/camera_info"
        if (topic, CAMERA_INFO) not in self._storage.topics:
            return None
        rectified = "rect" in plain.rsplit("/", 1)[-1]
        problem = ""
        for number, message in enumerate(self._storage.messages([topic])):
            if number >= _CALIBRATIONS_TRIED:
                break
            try:
                return rectifier_of_info(_deserialize(message), rectified)
            except Exception as error:  # zeros of an uncalibrated driver, or garbage
                problem = one_line(error)
        if problem:
            text = f"no valid calibration, so the focal length is estimated: {problem}"
            self.skipped.append(SkippedFrame(topic, text))
        return None


def _header_stamp(data: bytes, ros1: bool) -> int:
    """The stamp at the beginning of a serialised message, ns; 0 where there is none.

    CDR begins with four bytes of encapsulation, the second for the byte order; ROS 1 with a sequence number.
    """
    if len(data) < 12:
        return 0
    order = "<" if ros1 or data[1] & 1 else ">"
    seconds, nanoseconds = struct.unpack_from(f"{order}iI", data, 4)
    return max(seconds, 0) * 10**9 + min(nanoseconds, 999_999_999)


def _decode(content: Any) -> Any:
    if not hasattr(content, "step"):
        return decode_compressed(content.data, getattr(content, "format", ""))
    return decode_image(
        content.data,
        height=content.height,
        width=content.width,
        step=content.step,
        encoding=content.encoding,
        is_bigendian=bool(content.is_bigendian),
    )


@lru_cache(maxsize=2)
def _types(ros1: bool) -> Any:
    with optional("rosbags", "a rosbag"):
        from rosbags.typesys import Stores, get_types_from_msg, get_typestore
    store = get_typestore(Stores.ROS1_NOETIC if ros1 else Stores.ROS2_HUMBLE)
    for kind, definition in {COMPRESSED_IMAGES[1]: _FOXGLOVE, **PACKETS}.items():
        store.register(get_types_from_msg(definition, kind))
    return store


def _deserialize(message: BagMessage) -> Any:
    store = _types(message.ros1)
    return (store.deserialize_ros1 if message.ros1 else store.deserialize_cdr)(message.data, message.kind)


def _camera(content: Any) -> str:
    """The optical frame of a message; foxglove's messages have it without a header."""
    return getattr(content, "header", content).frame_id or "camera"


def _of_camera(topic: str) -> str:
    """An image topic without its transport."""
    base, _, last = topic.rpartition("/")
    return base if last in TRANSPORTS else topic


def _video_codec(storage: BagStorage, topic: str) -> str:
    """The codec of a topic of video packets; empty for independent images."""
    if all(kind == IMAGE for name, kind in storage.topics if name == topic):
        return ""
    for number, message in enumerate(storage.messages([topic])):
        try:
            return codec_of(_deserialize(message))
        except Exception:  # the other messages may be valid
            if number > _CALIBRATIONS_TRIED:
                break
    return ""


def _image_topics(storage: BagStorage) -> list[str]:
    """Topics of colour or grey images; depth images are recognised by name or encoding."""
    topics = []
    for topic, kind in storage.topics:
        if kind in (*COMPRESSED_IMAGES, *PACKETS) or (
            kind == IMAGE and _first_encoding(storage, topic) not in DEPTH_ENCODINGS
        ):
            topics += [] if "depth" in topic.lower() else [topic]
    return sorted(set(topics))


def _first_encoding(storage: BagStorage, topic: str) -> str:
    """The encoding of the first readable image, empty if there is none."""
    for message in storage.messages([topic]):
        try:
            return str(_deserialize(message).encoding).lower()
        except Exception:  # the other messages may be valid
            continue
    return ""


def _only_image_topic(storage: BagStorage, name: str) -> str:
    topics = _image_topics(storage)
    # a camera recorded both raw and compressed counts once
    distinct = [topic for topic in topics if _of_camera(topic) == topic or _of_camera(topic) not in topics]
    if not distinct:  # a thermal camera's 16UC1 is not depth unless its topic says so
        distinct = [t for t, k in storage.topics if k == IMAGE and not _NO_PICTURE.search(t.lower())]
        distinct = [t for t in distinct if _first_encoding(storage, t) == DEPTH_ENCODINGS[0]]
    if not distinct:
        known = [*storage.topics, *storage.unread.items()]
        pictures = [f"{t} ({k})" for t, k in known if "image" in k.lower() or "video" in k.lower()]
        if pictures:
            raise UserError(f"{name} has images in an unsupported format: {', '.join(sorted(pictures))}")
        all_topics = ", ".join(sorted({topic for topic, _ in known})) or "none"
        raise UserError(f"{name} has no images; its topics: {all_topics}")
    if len(distinct) > 1:
        raise UserError(f"{name} has several image topics, choose one with --topic: {', '.join(distinct)}")
    return distinct[0]

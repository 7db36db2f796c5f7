"""A ROS bag as a source, through the `rosbags` library: no ROS is needed.

Reads rosbag2 (sqlite3 or mcap, compressed or not) and ROS 1 bags; raw and compressed image topics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fast3r_ros.errors import UserError, optional
from fast3r_ros.geometry.rotation import matrix_from_quaternion
from fast3r_ros.io.pixels import DEPTH_ENCODINGS, decode_compressed, decode_image
from fast3r_ros.io.rectify import Rectifier
from fast3r_ros.io.sources.source import SkippedFrame
from fast3r_ros.mapping.data import Float64, Frame

with optional("rosbags", "a rosbag"):
    from rosbags.highlevel import AnyReader
    from rosbags.interfaces import Connection
    from rosbags.typesys import Stores, get_typestore

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
ODOMETRY = "nav_msgs/msg/Odometry"


def bag_topics(path: Path) -> list[str]:
    """What a bag holds: `TOPIC (TYPE, N messages)`.  Raises UserError when it cannot be read."""
    with _open(path) as reader:
        return [
            f"{connection.topic} ({connection.msgtype}, {connection.msgcount} messages)"
            for connection in sorted(reader.connections, key=lambda connection: connection.topic)
        ]


class RosBag:
    """The images of one topic of a bag, in recorded order, rectified when the bag has their CameraInfo.

    topic: chosen by itself when the bag has one colour image topic.  See `Source`.
    """

    def __init__(self, path: Path, topic: str | None = None):
        self.name = str(path)
        self.paths = (path,)
        self.skipped: list[SkippedFrame] = []
        self.truth: Mapping[int, Float64] | None = None
        self._path = path
        with _open(path) as reader:
            self._topic = topic or _only_image_topic(reader, self.name)
            connections = [c for c in reader.connections if c.topic == self._topic]
            if not any(c.msgtype in (IMAGE, COMPRESSED_IMAGE) for c in connections):
                known = ", ".join(_image_topics(reader)) or "none"
                raise UserError(f"{self.name} has no image topic {self._topic}; its image topics: {known}")
            self._count = sum(c.msgcount for c in connections)
            if not self._count:
                raise UserError(f"the topic {self._topic} of {self.name} has no messages")
            self.rate_hz = self._count / max(reader.duration / 1e9, 1e-3)
            self._rectifier = self._find_calibration(reader)

    @property
    def topic(self) -> str:
        """The image topic that is read."""
        return self._topic

    def __len__(self) -> int:
        """Number of messages on the topic."""
        return self._count

    def __iter__(self) -> Iterator[Frame]:
        """Every image that can be decoded; see `Source`."""
        return self.frames(range(len(self)))

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """The chosen images; see `Source`.  A file that breaks off ends them and is noted in `skipped`.

        Raises UserError when none can be read.
        """
        wanted = set(indices)
        read = 0
        with _open(self._path) as reader:
            connections = [c for c in reader.connections if c.topic == self._topic]
            messages = enumerate(reader.messages(connections))
            while True:
                try:
                    index, (connection, time_ns, data) = next(messages)
                except StopIteration:
                    break
                except Exception as error:  # the storage library's own, of many types
                    self.skipped.append(SkippedFrame("the rest of the bag", _reason(error)))
                    break
                if index not in wanted:
                    continue
                try:
                    frame = self._frame(reader.deserialize(data, connection.msgtype), time_ns)
                except Exception as error:  # garbage bytes raise about anything in a decoder
                    self.skipped.append(SkippedFrame(f"message {index} of {self._topic}", _reason(error)))
                    continue
                read += 1
                yield frame
        if wanted and not read:
            reason = self.skipped[-1].reason if self.skipped else "it has no messages"
            raise UserError(f"no image of {self._topic} in {self.name} can be read: {reason}")

    def odometry(self) -> Iterator[tuple[int, Float64]]:
        """Stamp in ns and (4, 4) `odom_from_base` in metres of every nav_msgs/Odometry message, in order.

        Raises UserError when the bag has no odometry topic, or several.
        """
        with _open(self._path) as reader:
            connections = [c for c in reader.connections if c.msgtype == ODOMETRY and c.msgcount]
            topics = sorted({c.topic for c in connections})
            if len(topics) != 1:
                found = ", ".join(topics) or "none"
                raise UserError(
                    f"{self.name} needs one topic of {ODOMETRY} for --scale odometry; found: {found}"
                )
            for connection, _, data in reader.messages(connections):
                message: Any = reader.deserialize(data, connection.msgtype)
                place, turn = message.pose.pose.position, message.pose.pose.orientation
                odom_from_base = np.eye(4)
                odom_from_base[:3, :3] = matrix_from_quaternion([turn.x, turn.y, turn.z, turn.w])
                odom_from_base[:3, 3] = place.x, place.y, place.z
                stamp = message.header.stamp
                yield stamp.sec * 10**9 + stamp.nanosec, odom_from_base

    def _frame(self, message: Any, time_ns: int) -> Frame:
        if hasattr(message, "format"):
            image = decode_compressed(message.data)
        else:
            image = decode_image(
                message.data,
                height=message.height,
                width=message.width,
                step=message.step,
                encoding=message.encoding,
                is_bigendian=bool(message.is_bigendian),
            )
        stamp = message.header.stamp
        stamp_ns = stamp.sec * 10**9 + stamp.nanosec or time_ns
        camera = message.header.frame_id or "camera"
        if self._rectifier is None:
            return Frame(stamp_ns, camera, image)
        return Frame(stamp_ns, camera, self._rectifier(image), self._rectifier.intrinsics)

    def _find_calibration(self, reader: AnyReader) -> Rectifier | None:
        """The first CameraInfo beside the image topic; None when there is none or it says nothing."""
        namespace = self._topic.removesuffix("/compressed").rsplit("/", 1)[0]
        infos = [
            c
            for c in reader.connections
            if c.msgtype == CAMERA_INFO and c.topic == f"{namespace}/camera_info"
        ]
        if not infos:
            return None
        for connection, _, data in reader.messages(infos):
            info: Any = reader.deserialize(data, connection.msgtype)
            rectified = "rect" in self._topic.removesuffix("/compressed").rsplit("/", 1)[-1]
            matrix = np.asarray(info.P if hasattr(info, "P") else info.p).reshape(3, 4)[:, :3]
            distortion: Sequence[float] = []
            if not rectified or not matrix.any():
                matrix = np.asarray(info.K if hasattr(info, "K") else info.k).reshape(3, 3)
            if not rectified:
                distortion = info.D if hasattr(info, "D") else info.d
            try:
                return Rectifier(matrix, distortion, info.distortion_model, info.width, info.height)
            except UserError:
                return None  # an uncalibrated driver publishes zeros; the focal length is then estimated
        return None


def _open(path: Path) -> AnyReader:
    file = _readable_path(path)
    try:
        return _OpenedReader([file], default_typestore=get_typestore(Stores.ROS2_HUMBLE))
    except PermissionError:
        raise
    except Exception as error:
        raise UserError(f"{path} is not a bag that can be read: {_reason(error)}") from error


class _OpenedReader(AnyReader):
    """An `AnyReader` that is open from its construction on, so that `with` and errors are in one place."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.open()

    def __enter__(self) -> _OpenedReader:
        return self


def _readable_path(path: Path) -> Path:
    """The folder with metadata.yaml, or the one storage file of a folder without it."""
    if not path.is_dir() or (path / "metadata.yaml").exists():
        return path
    files = sorted([*path.glob("*.mcap"), *path.glob("*.db3")])
    if len(files) != 1:
        raise UserError(f"{path} holds {len(files)} bag files and no metadata.yaml; name one of the files")
    return files[0]


def _image_topics(reader: AnyReader) -> list[str]:
    """Topics of colour or grey images with messages; depth images are told by name or encoding."""
    topics = []
    for connection in reader.connections:
        name = connection.topic
        if not connection.msgcount or connection.msgtype not in (IMAGE, COMPRESSED_IMAGE):
            continue
        if "depth" in name.lower() or _is_depth(reader, connection):
            continue
        topics.append(name)
    return sorted(set(topics))


def _is_depth(reader: AnyReader, connection: Connection) -> bool:
    if connection.msgtype != IMAGE:
        return False
    for _, _, data in reader.messages([connection]):
        message: Any = reader.deserialize(data, connection.msgtype)
        return str(message.encoding).lower() in DEPTH_ENCODINGS
    return False


def _only_image_topic(reader: AnyReader, name: str) -> str:
    topics = _image_topics(reader)
    # a camera that was recorded raw and compressed is one camera
    distinct = [
        t for t in topics if t.removesuffix("/compressed") not in topics or not t.endswith("/compressed")
    ]
    if not distinct:
        all_topics = ", ".join(sorted({c.topic for c in reader.connections})) or "none"
        raise UserError(f"{name} has no images; its topics: {all_topics}")
    if len(distinct) > 1:
        raise UserError(f"{name} has several image topics, choose one with --topic: {', '.join(distinct)}")
    return distinct[0]


def _reason(error: Exception) -> str:
    """The first line of an error, or its type when it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__

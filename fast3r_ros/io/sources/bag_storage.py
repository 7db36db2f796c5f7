"""The storage of ROS bags, read with as few assumptions as possible.

A rosbag2 consists of its storage files.  metadata.yaml, which recorders leave unfinished and people edit,
only gives their order.  Topics in encodings other than ROS's, unknown definitions and damaged chunks do not
affect the other topics.  mcap files are read in file order, which also works after the recorder was killed.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fast3r_ros.errors import UserError, optional
from fast3r_ros.files import one_line

SUFFIXES = (".mcap", ".db3")
_ZSTD = b"\x28\xb5\x2f\xfd"  # start of compressed messages; no CDR message starts with it
_LARGEST = 1 << 30  # bytes of one message or chunk after decompression


@dataclass(frozen=True)
class BagMessage:
    """One recorded message.

    kind: such as sensor_msgs/msg/Image.  time_ns: of the recorder.  ros1: whether the data are serialised in
    ROS 1's format.
    """

    topic: str
    kind: str
    time_ns: int
    data: bytes
    ros1: bool = False


@dataclass
class BagStorage:
    """A bag that can be read repeatedly.

    files: in order.  topics: (topic, kind) -> number of messages.  unread: topic -> description, for topics
    in encodings other than ROS's.  damage: one line for each part that could not be read.
    """

    files: list[Path]
    topics: Counter[tuple[str, str]] = field(default_factory=Counter)
    unread: dict[str, str] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)

    def messages(self, topics: Collection[str] | None = None) -> Iterator[BagMessage]:
        """The messages of these topics (None: all); rewrites `damage`."""
        self.damage.clear()
        for path in self.files:
            if path.suffix == ".bag":
                messages = _ros1_messages(path, topics, self.damage)
            elif ".mcap" in path.suffixes:
                messages = _mcap_messages(path, topics, self.damage, self.unread)
            else:
                messages = _sqlite_messages(path, topics, self.damage)
            for message in messages:
                if message.data[:4] == _ZSTD and not message.ros1:
                    with optional("zstandard", "a compressed bag"):
                        import zstandard
                    try:
                        data = zstandard.ZstdDecompressor().decompress(message.data, max_output_size=_LARGEST)
                    except zstandard.ZstdError as error:
                        self.damage.append(f"{path.name}: a message of {message.topic}: {one_line(error)}")
                        continue
                    message = BagMessage(message.topic, message.kind, message.time_ns, data)
                yield message


def open_storage(path: Path) -> BagStorage:
    """The storage behind a .mcap, .db3 or .bag file, or a folder of them.

    Raises UserError when there is none, or when a file cannot be opened.
    """
    storage = BagStorage(_ordered_files(path) if path.is_dir() else [path])
    for message in storage.messages():
        storage.topics[message.topic, message.kind] += 1
    if not storage.topics and storage.damage:
        raise UserError(f"{path} is not a bag that can be read: {storage.damage[0]}")
    return storage


def _ordered_files(folder: Path) -> list[Path]:
    """The storage files of a folder: in the order of metadata.yaml if it lists them, else by name."""
    from fast3r_ros.io.sources.images import natural_order

    found = [p for p in folder.iterdir() if {*p.suffixes[-2:]} & {*SUFFIXES} and p.is_file()]
    if not found:
        raise UserError(f"{folder} holds no bag file ({' or '.join(SUFFIXES)})")
    order: list[str] = []
    try:
        content = yaml.safe_load((folder / "metadata.yaml").read_text(encoding="utf-8"))
        order = [Path(name).name for name in content["rosbag2_bagfile_information"]["relative_file_paths"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError):
        pass  # unfinished or damaged: order by name
    place = {name: index for index, name in enumerate(order)}
    return sorted(found, key=lambda path: (place.get(path.name, len(place)), natural_order(path)))


def _decompressed(path: Path, folder: str) -> Path:
    """A storage file, decompressed into `folder` if the whole file is compressed."""
    if path.suffix != ".zstd":
        return path
    with optional("zstandard", "a compressed bag"):
        import zstandard
    plain = Path(folder) / path.stem
    with path.open("rb") as source, plain.open("wb") as target:
        zstandard.ZstdDecompressor().copy_stream(source, target)
    return plain


def _mcap_messages(
    path: Path, topics: Collection[str] | None, damage: list[str], unread: dict[str, str]
) -> Iterator[BagMessage]:
    with optional("mcap", "a .mcap file"):
        from mcap import records, stream_reader
    schemas: dict[int, str] = {}
    channels: dict[int, tuple[str, str, bool]] = {}

    def of_chunk(record: Any) -> Iterator[Any]:
        if not isinstance(record, records.Chunk):
            yield record
            return
        try:
            yield from stream_reader.breakup_chunk(record, validate_crc=True)
        except Exception as error:  # decompressors raise many types
            damage.append(f"{path.name}: a damaged chunk was skipped: {one_line(error)}")

    with tempfile.TemporaryDirectory() as folder:
        try:
            with _decompressed(path, folder).open("rb") as file:
                for record in stream_reader.StreamReader(
                    file, emit_chunks=True, record_size_limit=_LARGEST
                ).records:
                    for part in of_chunk(record):
                        if isinstance(part, records.Schema):
                            schemas[part.id] = part.name
                        elif isinstance(part, records.Channel):
                            kind = schemas.get(part.schema_id, "")
                            ros1 = part.message_encoding == "ros1"
                            if ros1 or part.message_encoding == "cdr":
                                package, _, name = kind.rpartition("/")
                                kind = f"{package}/msg/{name}" if ros1 and "/" not in package else kind
                                channels[part.id] = (part.topic, kind, ros1)
                            else:
                                unread[part.topic] = f"{kind} in {part.message_encoding or 'no encoding'}"
                        elif isinstance(part, records.Message) and part.channel_id in channels:
                            topic, kind, ros1 = channels[part.channel_id]
                            if topics is None or topic in topics:
                                yield BagMessage(topic, kind, part.log_time, part.data, ros1)
        except (PermissionError, UserError):
            raise
        except Exception as error:  # truncated data and garbage raise mcap's errors, struct.error and others
            text = "the file is truncated: the recorder was killed or the copy was incomplete"
            damage.append(f"{path.name}: {text} ({one_line(error)}); `mcap recover` repairs it")


def _sqlite_messages(path: Path, topics: Collection[str] | None, damage: list[str]) -> Iterator[BagMessage]:
    """The messages in time order; for a truncated file the remaining messages, in order of writing."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            connection = _connect(_decompressed(path, folder), folder)
        except (PermissionError, UserError):
            raise
        except Exception as error:  # including zstandard's errors
            damage.append(f"{path.name}: {one_line(error)}")
            return
        seen: set[int] = set()
        try:
            rows = connection.execute("SELECT id, name, type FROM topics WHERE serialization_format = 'cdr'")
            known = {row[0]: (str(row[1]), str(row[2])) for row in rows}
            for source in ("messages ORDER BY timestamp", "messages NOT INDEXED"):
                try:
                    for identity, number, time_ns, data in connection.execute(
                        f"SELECT id, topic_id, timestamp, data FROM {source}"
                    ):
                        topic, kind = known.get(number, ("", ""))
                        if topic and (topics is None or topic in topics) and identity not in seen:
                            seen.add(identity)
                            yield BagMessage(topic, kind, int(time_ns), bytes(data))
                    break
                except (
                    sqlite3.DatabaseError
                ) as error:  # the index is at the end of the file and is lost first
                    problem = f"{path.name}: the file is damaged ({one_line(error)})"
                    damage[:] = [*(line for line in damage if line != problem), problem]
        except (sqlite3.Error, TypeError, ValueError) as error:
            damage.append(f"{path.name}: the file is damaged ({one_line(error)})")
        finally:
            connection.close()


def _connect(path: Path, folder: str) -> sqlite3.Connection:
    """A database, opened without writing files next to it.

    The journal that a killed recorder leaves is read from a copy in `folder`.
    """
    with path.open("rb"):  # sqlite would create a missing file
        pass
    journal = path.with_name(f"{path.name}-wal")
    if journal.is_file() and journal.stat().st_size:
        copy = Path(folder) / "whole.db3"
        shutil.copyfile(path, copy)
        shutil.copyfile(journal, f"{copy}-wal")
        return sqlite3.connect(copy)
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
    connection.execute("PRAGMA writable_schema = ON")  # makes a truncated file readable
    return connection


def _ros1_messages(path: Path, topics: Collection[str] | None, damage: list[str]) -> Iterator[BagMessage]:
    with optional("rosbags", "a bag of ROS 1"):
        from rosbags.rosbag1 import Reader
    try:
        with Reader(path) as reader:
            chosen = [c for c in reader.connections if topics is None or c.topic in topics]
            for connection, time_ns, data in reader.messages(chosen) if chosen else ():
                yield BagMessage(connection.topic, connection.msgtype, time_ns, data, ros1=True)
    except PermissionError:
        raise
    except Exception as error:  # the library raises many types
        damage.append(f"{path.name}: the file is damaged ({one_line(error)}); `rosbag reindex` may help")

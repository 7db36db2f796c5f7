"""Sources of other recorders, cameras and copies: valid parts are read, the rest is reported."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mcap.writer import Writer as McapWriter
from PIL import Image
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from fast3r_ros.cli import main
from fast3r_ros.errors import UserError
from fast3r_ros.io.cameras import read_cameras
from fast3r_ros.io.rectify import rectifier_of_info
from fast3r_ros.io.sources import open_source
from fast3r_ros.io.sources.rosbag import RosBag, bag_topics

STORE = get_typestore(Stores.ROS2_JAZZY)
TYPES = STORE.types
IMAGE, INFO = "sensor_msgs/msg/Image", "sensor_msgs/msg/CameraInfo"
START = 1_700_000_000 * 10**9
COUNT = 12


def picture(index: int, width: int = 64, height: int = 48) -> np.ndarray:
    return np.full((height, width, 3), (10 * index + 5) % 256, np.uint8)


def header(stamp_ns: int):
    time = TYPES["builtin_interfaces/msg/Time"](stamp_ns // 10**9, stamp_ns % 10**9)
    return TYPES["std_msgs/msg/Header"](time, "camera")


def image(index: int, stamp_ns: int):
    pixels = picture(index)
    return TYPES[IMAGE](header(stamp_ns), 48, 64, "rgb8", 0, 64 * 3, pixels.ravel())


def info(width: int = 64, height: int = 48, focal: float = 50.0, **changes: object):
    matrix = np.array([focal, 0, width / 2 - 0.5, 0, focal, height / 2 - 0.5, 0, 0, 1.0])
    projection = np.array([focal, 0, matrix[2], 0, 0, focal, matrix[5], 0, 0, 0, 1, 0.0])
    region = TYPES["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    values = {"model": "plumb_bob", "d": np.zeros(5), "binning": 0, "roi": region, **changes}
    return TYPES[INFO](
        *(header(START), height, width, values["model"], values["d"], matrix, np.eye(3).ravel(), projection),
        *(values["binning"], values["binning"], values["roi"]),
    )


def write_bag(
    path: Path,
    stamps: list[int] | None = None,
    infos: list | None = None,
    plugin: StoragePlugin = StoragePlugin.MCAP,
    compression: CompressionMode | None = None,
) -> Path:
    """Images at 10 Hz of the recorder, with the given header stamps."""
    writer = Writer(path, version=9, storage_plugin=plugin)
    if compression is not None:
        writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        pictures = writer.add_connection("/front/image", IMAGE, typestore=STORE)
        calibration = writer.add_connection("/front/camera_info", INFO, typestore=STORE) if infos else None
        for index, message in enumerate(infos or []):
            data = message if isinstance(message, bytes) else STORE.serialize_cdr(message, INFO)
            writer.write(calibration, START + index, data)
        for index in range(COUNT):
            recorded = START + index * 10**8
            stamp = recorded if stamps is None else stamps[index]
            writer.write(pictures, recorded, STORE.serialize_cdr(image(index, stamp), IMAGE))
    return path


def shades(frames) -> list[int]:
    return [int(frame.image[0, 0, 0]) // 10 for frame in frames]


METADATA = {
    "missing": None,
    "empty": "",
    "not YAML": "{[",
    "another version": "rosbag2_bagfile_information: {version: 99}",
    "renamed files": "rosbag2_bagfile_information: {version: 9, relative_file_paths: [other.mcap]}",
    "a list": "- 1",
}


@pytest.mark.parametrize("metadata", METADATA)
@pytest.mark.parametrize("plugin", list(StoragePlugin))
def test_a_bag_is_its_storage_files_regardless_of_metadata(tmp_path, metadata, plugin):
    bag = write_bag(tmp_path / "bag", plugin=plugin)
    (bag / "metadata.yaml").unlink()
    if METADATA[metadata] is not None:
        (bag / "metadata.yaml").write_text(METADATA[metadata])
    assert shades(open_source(bag)) == list(range(COUNT))


@pytest.mark.parametrize("plugin", list(StoragePlugin))
@pytest.mark.parametrize("mode", [CompressionMode.MESSAGE, CompressionMode.FILE])
def test_compression_is_seen_without_metadata(tmp_path, plugin, mode):
    if plugin is StoragePlugin.MCAP and mode is CompressionMode.MESSAGE:
        pytest.skip("rosbag2 compresses chunks of mcap files, not messages")
    bag = write_bag(tmp_path / "bag", plugin=plugin, compression=mode)
    (bag / "metadata.yaml").unlink()
    assert shades(open_source(bag)) == list(range(COUNT))


def test_files_of_a_split_bag_are_read_in_order(tmp_path):
    for part in (10, 2, 9):
        write_bag(tmp_path / f"part{part}", [START + part * 10**10 + i for i in range(COUNT)])
        source = next((tmp_path / f"part{part}").glob("*.mcap"))
        (tmp_path / "bag").mkdir(exist_ok=True)
        source.rename(tmp_path / "bag" / f"bag_{part}.mcap")
    source = open_source(tmp_path / "bag")
    assert len(source) == 3 * COUNT
    assert [frame.stamp_ns // 10**10 - START // 10**10 for frame in source][::COUNT] == [2, 9, 10]


def test_a_damaged_chunk_and_a_cut_cost_only_themselves(tmp_path):
    path = tmp_path / "walk.mcap"
    with path.open("wb") as file:
        writer = McapWriter(file, chunk_size=20_000)
        writer.start(profile="ros2")
        schema = writer.register_schema(IMAGE, "ros2msg", b"")
        channel = writer.register_channel("/front/image", "cdr", schema)
        writer.register_channel("/diagnostics", "json", writer.register_schema("d", "jsonschema", b"{}"))
        for index in range(COUNT):
            stamp = START + index * 10**8
            writer.add_message(channel, stamp, bytes(STORE.serialize_cdr(image(index, stamp), IMAGE)), stamp)
        writer.finish()
    whole = path.read_bytes()
    assert shades(open_source(path)) == list(range(COUNT))
    middle = bytearray(whole)
    chunk = whole.index(b"\x06", len(whole) // 3)
    middle[chunk + 200 : chunk + 260] = bytes(60)
    path.write_bytes(middle)
    damaged = open_source(path)
    assert 1 <= len(shades(damaged)) < COUNT
    assert any("damaged" in skipped.reason or "truncated" in skipped.reason for skipped in damaged.skipped)
    path.write_bytes(whole[: len(whole) // 2])
    cut = open_source(path)
    found = shades(cut)
    assert found == list(range(len(found)))
    assert 2 <= len(found) < COUNT
    assert "truncated" in cut.skipped[-1].reason


def test_the_journal_of_a_killed_recorder_is_read_and_left_alone(tmp_path):
    bag = write_bag(tmp_path / "live", plugin=StoragePlugin.SQLITE3)
    (file,) = bag.glob("*.db3")
    recorder = sqlite3.connect(file)
    recorder.execute("PRAGMA journal_mode = WAL")
    recorder.execute("PRAGMA wal_autocheckpoint = 0")
    columns = "topic_id, timestamp, data"
    recorder.execute(f"INSERT INTO messages ({columns}) SELECT {columns} FROM messages")
    recorder.commit()
    killed = tmp_path / "killed"
    shutil.copytree(bag, killed)
    recorder.close()
    before = {path.name: path.read_bytes() for path in killed.iterdir()}
    assert len(list(open_source(killed))) == 2 * COUNT
    assert {path.name: path.read_bytes() for path in killed.iterdir()} == before


def test_a_truncated_database_gives_its_remaining_messages(tmp_path, capsys):
    bag = write_bag(tmp_path / "bag", plugin=StoragePlugin.SQLITE3)
    (file,) = bag.glob("*.db3")
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 7 // 10])
    source = open_source(bag)
    found = shades(source)
    assert found == list(range(len(found)))
    assert 4 <= len(found) < COUNT
    assert "damaged" in source.skipped[-1].reason
    assert main(["info", str(bag)]) == 0
    assert "damaged" in capsys.readouterr().out


STAMPS = {
    "zero": ([0] * COUNT, [START + i * 10**8 for i in range(COUNT)], list(range(COUNT))),
    "doubled": (
        [START + i // 2 * 10**8 for i in range(COUNT)],
        [START + i // 2 * 10**8 + i % 2 for i in range(COUNT)],
        list(range(COUNT)),
    ),
    "out of order": (
        [START + (i ^ 1) * 10**8 for i in range(COUNT)],
        [START + i * 10**8 for i in range(COUNT)],
        [i ^ 1 for i in range(COUNT)],
    ),
    "one zero": (
        [0 if i == 3 else START + i * 10**8 for i in range(COUNT)],
        [START + i * 10**8 for i in range(COUNT)],
        list(range(COUNT)),
    ),
}


@pytest.mark.parametrize("kind", STAMPS)
def test_no_stamp_of_a_driver_loses_a_frame(tmp_path, kind):
    stamps, expected, order = STAMPS[kind]
    source = open_source(write_bag(tmp_path / "bag", stamps))
    frames = list(source)
    assert [frame.stamp_ns for frame in frames] == expected
    assert shades(frames) == order
    assert shades(source.frames([2, 5])) == [order[2], order[5]]


ZERO = info(focal=0.0)


@pytest.mark.parametrize(
    ("infos", "focal"),
    [
        ([b"\0\1\0\0garbage", info()], 50),
        ([ZERO, ZERO, info()], 50),
        ([info(model="")], 50),
        ([info(128, 96, 100.0, binning=2)], 50),
        ([info(128, 96, 100.0)], 50),
        ([info(100, 96, 100.0, roi=TYPES["sensor_msgs/msg/RegionOfInterest"](8, 16, 48, 64, False))], 100),
        ([ZERO], None),
        ([info(64, 64)], None),
    ],
    ids=["garbage first", "zeros first", "no name", "binning", "resized", "region", "only zeros", "cropped"],
)
def test_calibrations_as_drivers_publish_them(tmp_path, infos, focal):
    source = open_source(write_bag(tmp_path / "bag", infos=infos))
    if focal is None and infos != [ZERO]:
        with pytest.raises(UserError, match="aspect"):
            list(source)
        return
    frames = list(source)
    assert len(frames) == COUNT
    if focal is None:
        assert frames[0].intrinsics is None
        assert "focal length is estimated" in source.skipped[0].reason
    else:
        assert frames[0].intrinsics[0, 0] == pytest.approx(focal)


def test_a_wrong_calibration_is_left_out_on_request(tmp_path, capsys):
    bag = write_bag(tmp_path / "bag", infos=[info(64, 64)])
    with pytest.raises(UserError, match="--no-camera-info"):
        list(open_source(bag))
    frames = list(open_source(bag, camera_info=False))
    assert shades(frames) == list(range(COUNT))
    assert frames[0].intrinsics is None
    assert main(["reconstruct", str(bag), "--output", str(tmp_path / "o"), "--no-camera-info"]) in (0, 1)
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    assert (report["frames"], report["settings"]["camera_info"]) == (COUNT, False)


def test_a_region_and_binning_keep_the_ray_of_every_pixel():
    """The pixel (u, v) of the delivered image has the ray of the corresponding sensor pixel."""
    full = info(640, 480, 400.0)
    region = SimpleNamespace(x_offset=100, y_offset=60, width=320, height=240, do_rectify=False)
    part = SimpleNamespace(
        **{name: getattr(full, name) for name in ("k", "p", "d", "width", "height", "distortion_model")},
        roi=region,
        binning_x=2,
        binning_y=4,
    )
    whole, small = rectifier_of_info(full).intrinsics, rectifier_of_info(part).intrinsics
    sensor = np.array([100 + 2 * 30.0, 60 + 4 * 7.0, 1])  # corner coordinates, centres at + 0.5
    np.testing.assert_allclose(
        np.linalg.solve(whole, sensor), np.linalg.solve(small, [30.0, 7.0, 1]), atol=1e-12
    )


@pytest.mark.slow
def test_results_lead_back_to_the_photos(tmp_path):
    """A map point projects to the same pixel of the photo by its own intrinsics and by the network's."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, frame in enumerate(open_source("synthetic:2")):
        Image.fromarray(frame.image).resize((800, 600)).save(folder / f"DSC{4000 + index}.jpg")
    assert main(["reconstruct", str(folder), "--output", str(tmp_path / "out")]) == 0
    entries = json.loads((tmp_path / "out" / "cameras.json").read_text())["views"]
    records, _ = read_cameras(tmp_path / "out" / "cameras.json")
    assert len(entries) >= 2
    views = json.loads((tmp_path / "out" / "report.json").read_text())["views"]
    assert [view["source"] for view in views] == [entry["source"]["name"] for entry in entries]
    for entry, record in zip(entries, records, strict=True):
        source = entry["source"]
        assert Path(source["name"]).is_file()
        assert (source["width"], source["height"]) == (800, 600)
        point = np.array([0.3, -0.1, 2.0])
        on_photo = np.array(source["intrinsics"]) @ point
        on_network = record.intrinsics @ point
        expected = np.array(source["network_from_image"]) @ on_photo
        np.testing.assert_allclose(expected / expected[2], on_network / on_network[2], atol=1e-9)
        assert record.source is not None
        assert record.source.name == source["name"]


def test_a_topic_of_pictures_that_are_not_read_is_named(tmp_path):
    path = tmp_path / "bag"
    with Writer(path, version=9) as writer:
        connection = writer.add_connection("/cam/packets", "std_msgs/msg/String", typestore=STORE)
        writer.write(
            connection, START, STORE.serialize_cdr(TYPES["std_msgs/msg/String"]("x"), "std_msgs/msg/String")
        )
    with pytest.raises(UserError, match="/cam/packets"):
        RosBag(path)


def test_an_mcap_of_ros1_and_of_other_encodings(tmp_path):
    store = get_typestore(Stores.ROS1_NOETIC)
    types = store.types
    path = tmp_path / "walk.mcap"
    with path.open("wb") as file:
        writer = McapWriter(file)
        writer.start(profile="ros1")
        channel = writer.register_channel(
            "/front/image", "ros1", writer.register_schema("sensor_msgs/Image", "ros1msg", b"")
        )
        other = writer.register_channel(
            "/web", "protobuf", writer.register_schema("foxglove.CompressedImage", "protobuf", b"")
        )
        for index in range(COUNT):
            stamp = START + index * 10**8
            time = types["builtin_interfaces/msg/Time"](stamp // 10**9, stamp % 10**9)
            head = types["std_msgs/msg/Header"](index, time, "camera")
            message = types[IMAGE](head, 48, 64, "rgb8", 0, 192, picture(index).ravel())
            writer.add_message(channel, stamp, bytes(store.serialize_ros1(message, IMAGE)), stamp)
            writer.add_message(other, stamp, b"?", stamp)
        writer.finish()
    source = RosBag(path, "front/image")
    assert shades(source) == list(range(COUNT))
    assert source.stamps_ns[3] == START + 3 * 10**8
    assert any("/web" in line and "protobuf" in line for line in bag_topics(path))


@pytest.mark.slow
def test_a_recording_that_is_not_ours_is_not_replaced(tmp_path, capsys):
    pytest.importorskip("rerun")
    mine = tmp_path / "walk.rrd"
    mine.write_bytes(b"of the user")
    arguments = ["reconstruct", "synthetic:1", "--output", str(tmp_path / "o"), "--rerun", str(mine)]
    assert main(arguments) == 2
    assert "--rerun" in capsys.readouterr().err
    assert mine.read_bytes() == b"of the user"
    mine.unlink()
    assert [main(arguments), main(arguments)] == [0, 0]
    assert mine.stat().st_size > 1000

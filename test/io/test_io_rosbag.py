"""Bags written by rosbags' own writer are read back as the original images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.enums import CompressionFormat, CompressionMode
from rosbags.typesys import Stores, get_typestore

from fast3r_ros.errors import UserError
from fast3r_ros.io.pixels import ENCODINGS, decode_image
from fast3r_ros.io.sources import open_source

STORE = get_typestore(Stores.ROS2_JAZZY)
TYPES = STORE.types
HEIGHT, WIDTH = 48, 64
MATRIX = np.array([[60.0, 0, 31.5], [0, 60.0, 23.5], [0, 0, 1]])


def picture(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(40, 216, (4, 4, 3)).astype(np.uint8)
    return cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)


def header(index: int):
    time = TYPES["builtin_interfaces/msg/Time"](sec=100 + index, nanosec=500)
    return TYPES["std_msgs/msg/Header"](stamp=time, frame_id="front_optical")


def raw_message(index: int, image: np.ndarray, encoding: str = "rgb8", padding: int = 0):
    rows = np.pad(image.reshape(HEIGHT, -1), ((0, 0), (0, padding)))
    return TYPES["sensor_msgs/msg/Image"](
        header=header(index),
        height=HEIGHT,
        width=WIDTH,
        encoding=encoding,
        is_bigendian=0,
        step=rows.shape[1],
        data=rows.reshape(-1),
    )


def jpeg_message(index: int, image: np.ndarray):
    data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
    return TYPES["sensor_msgs/msg/CompressedImage"](
        header=header(index), format="jpeg", data=data.reshape(-1)
    )


def info_message(index: int, distortion=(0.0,) * 5):
    roi = TYPES["sensor_msgs/msg/RegionOfInterest"](
        x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
    )
    return TYPES["sensor_msgs/msg/CameraInfo"](
        header=header(index),
        height=HEIGHT,
        width=WIDTH,
        distortion_model="plumb_bob",
        d=np.array(distortion),
        k=MATRIX.ravel(),
        r=np.eye(3).ravel(),
        p=np.hstack([MATRIX, np.zeros((3, 1))]).ravel(),
        binning_x=0,
        binning_y=0,
        roi=roi,
    )


def write_bag(path: Path, topics: dict, plugin=StoragePlugin.SQLITE3, compression=None) -> Path:
    """A bag with `topics`: name -> list of messages, one a second from second 1."""
    with_compression = Writer(path, version=9, storage_plugin=plugin)
    if compression:
        with_compression.set_compression(compression, CompressionFormat.ZSTD)
    with with_compression as writer:
        for topic, messages in topics.items():
            msgtype = messages[0].__msgtype__
            connection = writer.add_connection(topic, msgtype, typestore=STORE)
            for index, message in enumerate(messages):
                data = STORE.serialize_cdr(message, msgtype)
                writer.write(connection, (index + 1) * 10**9, data)
    return path


STORAGES = [
    (StoragePlugin.SQLITE3, None),
    (StoragePlugin.SQLITE3, CompressionMode.MESSAGE),
    (StoragePlugin.SQLITE3, CompressionMode.FILE),
    (StoragePlugin.MCAP, None),
    (StoragePlugin.MCAP, CompressionMode.FILE),
    (StoragePlugin.MCAP, CompressionMode.STORAGE),
]


@pytest.mark.parametrize(("plugin", "compression"), STORAGES)
def test_raw_images_come_back_exactly(tmp_path, plugin, compression):
    messages = [raw_message(index, picture(index), padding=8) for index in range(4)]
    bag = write_bag(tmp_path / "bag", {"/front/image_raw": messages}, plugin, compression)
    source = open_source(bag)
    frames = list(source)
    assert len(source) == len(frames) == 4
    assert [frame.stamp_ns for frame in frames] == [(100 + index) * 10**9 + 500 for index in range(4)]
    assert {frame.camera for frame in frames} == {"front_optical"}
    for index, frame in enumerate(frames):
        np.testing.assert_array_equal(frame.image, picture(index))
        assert frame.intrinsics is None


def test_a_single_storage_file_is_enough(tmp_path):
    bag = write_bag(tmp_path / "bag", {"/image": [raw_message(0, picture(0))]}, StoragePlugin.MCAP)
    (file,) = bag.glob("*.mcap")
    assert len(list(open_source(file))) == 1
    (bag / "metadata.yaml").unlink()
    assert len(list(open_source(bag))) == 1


def test_compressed_images_and_chosen_indices(tmp_path):
    messages = [jpeg_message(index, picture(index)) for index in range(5)]
    bag = write_bag(tmp_path / "bag", {"/image/compressed": messages})
    frames = list(open_source(bag).frames([1, 4]))
    assert [frame.stamp_ns // 10**9 for frame in frames] == [101, 104]
    for frame, index in zip(frames, (1, 4), strict=True):
        assert np.abs(frame.image.astype(int) - picture(index)).mean() < 4


def test_camera_info_gives_intrinsics_with_our_pixel_centres(tmp_path):
    topics = {"/front/image_raw": [raw_message(0, picture(0))], "/front/camera_info": [info_message(0)]}
    (frame,) = open_source(write_bag(tmp_path / "bag", topics))
    expected = MATRIX.copy()
    expected[:2, 2] += 0.5
    np.testing.assert_allclose(frame.intrinsics, expected)
    np.testing.assert_array_equal(frame.image, picture(0))


def test_ros_1_bag(tmp_path):
    """The same in the older format, whose CameraInfo has its fields in capitals."""
    store = get_typestore(Stores.ROS1_NOETIC)
    types = store.types
    time = types["builtin_interfaces/msg/Time"](sec=100, nanosec=500)
    top = types["std_msgs/msg/Header"](seq=0, stamp=time, frame_id="front_optical")
    roi = types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    rotation, zero = np.eye(3).ravel(), np.zeros((3, 1))
    projection = np.hstack([MATRIX, zero]).ravel()
    info = types["sensor_msgs/msg/CameraInfo"](
        top, HEIGHT, WIDTH, "plumb_bob", np.zeros(5), MATRIX.ravel(), rotation, projection, 0, 0, roi
    )
    pixels = picture(0).reshape(-1)
    image = types["sensor_msgs/msg/Image"](top, HEIGHT, WIDTH, "rgb8", 0, 3 * WIDTH, pixels)
    with Ros1Writer(tmp_path / "old.bag") as writer:
        for topic, message in (("/front/image_raw", image), ("/front/camera_info", info)):
            connection = writer.add_connection(topic, message.__msgtype__, typestore=store)
            writer.write(connection, 10**9, store.serialize_ros1(message, message.__msgtype__))
    (frame,) = open_source(tmp_path / "old.bag")
    np.testing.assert_array_equal(frame.image, picture(0))
    assert frame.stamp_ns == 100 * 10**9 + 500
    np.testing.assert_allclose(frame.intrinsics[0, 2], MATRIX[0, 2] + 0.5)


def test_distortion_is_taken_out(tmp_path):
    """A grid of points, distorted by OpenCV's own model, lies at its pinhole projection when rectified."""
    distortion = (-0.25, 0.06, 0.0, 0.0, 0.0)
    rays = np.array([[x, y, 1.0] for x in (-0.3, 0.0, 0.3) for y in (-0.2, 0.0, 0.2)])
    pixels, _ = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), MATRIX, np.array(distortion))
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    grid = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), -1)
    for pixel in pixels[:, 0]:
        image += (255 * np.exp(-((grid - pixel) ** 2).sum(-1, keepdims=True) / 4.0)).astype(np.uint8)
    topics = {"/f/image_raw": [raw_message(0, image)], "/f/camera_info": [info_message(0, distortion)]}
    (frame,) = open_source(write_bag(tmp_path / "bag", topics))
    expected = rays @ frame.intrinsics.T - 0.5
    for u, v in expected[:, :2]:
        x, y = round(float(u)), round(float(v))
        patch = frame.image[y - 3 : y + 4, x - 3 : x + 4, 0].astype(float)
        rows, columns = np.mgrid[y - 3 : y + 4, x - 3 : x + 4]
        centre = np.array([(columns * patch).sum(), (rows * patch).sum()]) / patch.sum()
        np.testing.assert_allclose(centre, [u, v], atol=0.35)


def test_topic_is_chosen_or_asked_for(tmp_path):
    image = raw_message(0, picture(0))
    depth = raw_message(0, np.zeros((HEIGHT, WIDTH, 2), np.uint8), "16UC1")
    one = write_bag(
        tmp_path / "one",
        {"/a/image": [image], "/a/z": [depth], "/a/image/compressed": [jpeg_message(0, picture(0))]},
    )
    assert open_source(one).topic == "/a/image"
    two = write_bag(tmp_path / "two", {"/a/image": [image], "/b/image": [image]})
    with pytest.raises(UserError, match=r"--topic: /a/image, /b/image"):
        open_source(two)
    assert open_source(two, topic="/b/image").topic == "/b/image"
    with pytest.raises(UserError, match="no image topic /c"):
        open_source(two, topic="/c")


def test_bag_without_images_lists_its_topics(tmp_path):
    bag = write_bag(tmp_path / "bag", {"/front/camera_info": [info_message(0)]})
    with pytest.raises(UserError, match="has no images; its topics: /front/camera_info"):
        open_source(bag)


def test_broken_message_is_skipped_and_named(tmp_path):
    bad_jpeg = jpeg_message(1, picture(1))
    bad_jpeg.data = bad_jpeg.data[:20]
    messages = [jpeg_message(0, picture(0)), bad_jpeg, jpeg_message(2, picture(2))]
    source = open_source(write_bag(tmp_path / "bag", {"/image": messages}))
    assert [frame.stamp_ns // 10**9 for frame in source] == [100, 102]
    assert source.skipped[0].name == "message 1 of /image"
    wrong_step = raw_message(0, picture(0))
    wrong_step.step = 5
    with pytest.raises(UserError, match="step is 5 bytes"):
        list(open_source(write_bag(tmp_path / "bag2", {"/image": [wrong_step]})))


def encode(encoding: str, rgb: np.ndarray) -> np.ndarray:
    """A picture in a raw encoding, by the definition of the encoding; (rows, bytes per row) uint8."""
    sixteen = encoding.endswith("16")
    kind = encoding.removesuffix("16").removesuffix("8")
    order = {"rgb": [0, 1, 2], "bgr": [2, 1, 0], "8uc3": [2, 1, 0]}
    if kind in order:
        values = rgb[:, :, order[kind]]
    elif kind in ("rgba", "bgra", "8uc4"):
        values = np.dstack([rgb if kind == "rgba" else rgb[:, :, ::-1], np.full(rgb.shape[:2], 7, np.uint8)])
    elif kind in ("mono", "8uc1"):
        values = rgb[:, :, :1]
    elif kind.startswith("bayer_"):
        values = np.zeros(rgb.shape[:2], np.uint8)
        for place, letter in enumerate(kind.removeprefix("bayer_")):
            row, column = divmod(place, 2)
            values[row::2, column::2] = rgb[row::2, column::2, "rgb".index(letter)]
    else:
        luma, cr, cb = np.moveaxis(limited_range(rgb), -1, 0)
        if kind in ("nv12", "nv21"):
            pair = (cb, cr) if kind == "nv12" else (cr, cb)
            chroma = np.stack([plane[::2, ::2] for plane in pair], -1).reshape(HEIGHT // 2, WIDTH)
            return np.vstack([luma, chroma])
        chroma = np.where(np.arange(WIDTH) % 2 == 0, np.repeat(cb[:, ::2], 2, 1), np.repeat(cr[:, ::2], 2, 1))
        first, second = (chroma, luma) if kind in ("uyvy", "yuv422") else (luma, chroma)
        values = np.stack([first, second], -1)
    values = np.ascontiguousarray(values.reshape(HEIGHT, -1))
    return (values.astype(np.uint16) * 257).view(np.uint8) if sixteen else values


def limited_range(rgb: np.ndarray) -> np.ndarray:
    """(Y, Cr, Cb) of BT.601 with limited range, as cameras send it."""
    r, g, b = np.moveaxis(rgb.astype(float), -1, 0)
    luma = 16 + 0.257 * r + 0.504 * g + 0.098 * b
    cb = 128 - 0.148 * r - 0.291 * g + 0.439 * b
    cr = 128 + 0.439 * r - 0.368 * g - 0.071 * b
    return np.stack([luma, cr, cb], -1).round().astype(np.uint8)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_decodes_to_the_picture(encoding):
    # constant colour per 16x16 block: chroma subsampling and demosaicing are then exact inside the blocks
    blocks = np.random.default_rng(5).integers(40, 216, (3, 4, 3)).astype(np.uint8)
    rgb = np.kron(blocks, np.ones((16, 16, 1), np.uint8))
    if "mono" in encoding or encoding == "8uc1":
        rgb = np.repeat(rgb[:, :, :1], 3, 2)
    rows = encode(encoding, rgb)
    step = rows.shape[1] + 6
    padded = np.pad(rows, ((0, 0), (0, 6))).tobytes()
    decoded = decode_image(padded, height=HEIGHT, width=WIDTH, step=step, encoding=encoding)
    inside = np.zeros((HEIGHT, WIDTH), bool)
    for row in range(0, HEIGHT, 16):
        for column in range(0, WIDTH, 16):
            inside[row + 3 : row + 13, column + 3 : column + 13] = True
    assert np.abs(decoded.astype(int) - rgb)[inside].max() <= 2

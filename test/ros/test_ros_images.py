"""Images in every encoding, valid and damaged; the latter only raise BadImage."""

import array
import contextlib
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("rclpy", reason="ROS is not installed here")

from ros_encoders import encode, even_slopes, expected, known_picture
from sensor_msgs.msg import CompressedImage, Image

from fast3r_ros.io.pixels import ENCODINGS, BadImage
from fast3r_ros.ros.image_messages import (
    _is_plain,
    compressed_to_rgb,
    float_to_image,
    image_to_rgb,
    rgb_to_image,
    rgb_to_jpeg,
)
from fast3r_ros.ros.upstream import CV_BRIDGE_ENCODINGS

NAMES = [name for name in ENCODINGS if name != "16uc1"]


@pytest.mark.parametrize("encoding", NAMES)
def test_every_encoding_comes_back(encoding: str) -> None:
    rgb = even_slopes() if encoding.startswith("bayer") else known_picture()
    for padding, big_endian in ((0, False), (6, False), (0, True), (10, True)):
        decoded = image_to_rgb(encode(rgb, encoding, padding, big_endian))
        difference = np.abs(decoded.astype(int) - expected(rgb, encoding))
        assert decoded.shape == rgb.shape
        assert difference.max() <= 2, (encoding, padding, big_endian, difference.max())


@pytest.mark.parametrize("encoding", [name for name in NAMES if name.startswith("bayer")])
def test_bayer_patterns_keep_flat_colours(encoding: str) -> None:
    rgb = np.full((16, 24, 3), (200, 90, 30), np.uint8)
    assert np.abs(image_to_rgb(encode(rgb, encoding)).astype(int) - rgb).max() <= 2


@given(
    height=st.integers(1, 20), width=st.integers(1, 20), padding=st.integers(0, 9), seed=st.integers(0, 2**31)
)
@settings(max_examples=60, deadline=None)
def test_own_images_come_back_exactly(height: int, width: int, padding: int, seed: int) -> None:
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    rgb[0, 0] = 255  # a dark image of 16 bits is taken for one of 10, 12 or 14
    for encoding in ("rgb8", "bgr8", "rgba8", "bgra8", "rgb16"):
        assert np.array_equal(image_to_rgb(encode(rgb, encoding, padding)), rgb)
    message = rgb_to_image(rgb, 5, "a")
    assert (message.header.stamp.nanosec, message.header.frame_id, message.encoding) == (5, "a", "rgb8")
    assert np.array_equal(image_to_rgb(message), rgb)
    values = rgb[..., 0].astype(np.float32) * 0.1
    image = float_to_image(values, 5, "a")
    assert (image.encoding, image.step) == ("32FC1", 4 * width)
    assert np.array_equal(np.frombuffer(image.data, np.float32).reshape(height, width), values)


def broken(change: dict) -> Image:
    message = encode(known_picture(), change.pop("encoding", "rgb8"))
    cut = change.pop("cut", None)
    if cut is not None:
        message.data = message.data[:cut]
    for name, value in change.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cut": 100}, "truncated data"),
        ({"cut": 0}, "truncated data"),
        ({"step": 17}, "wrong step"),
        ({"width": 0}, "empty image"),
        ({"height": 0}, "empty image"),
        ({"height": 4_000_000_000, "width": 4_000_000_000, "step": 4_000_000_000}, "image too large"),
        ({"encoding": "rgb8", "height": 1000}, "truncated data"),
        ({"encoding": "yuyv", "width": 63}, "odd size"),
        ({"encoding": "nv12", "height": 47}, "odd size"),
    ],
)
def test_broken_images_say_why(change: dict, reason: str) -> None:
    with pytest.raises(BadImage) as caught:
        image_to_rgb(broken(dict(change)))
    assert caught.value.reason == reason


def test_cv_bridge_would_get_whole_images_only() -> None:
    assert all(_is_plain(encode(known_picture(), name)) for name in CV_BRIDGE_ENCODINGS)
    assert not _is_plain(encode(known_picture(), "rgb8", padding=6))
    assert not _is_plain(encode(known_picture(), "nv12"))
    for change in ({"cut": 100}, {"step": 17}, {"width": 0}, {"height": 0}, {"height": 1000}, {"width": 128}):
        assert not _is_plain(broken(change))


def test_unknown_encodings_are_named() -> None:
    message = encode(known_picture(), "rgb8")
    message.encoding = "rgb9"
    with pytest.raises(BadImage, match="rgb9"):
        image_to_rgb(message)


@given(
    height=st.integers(0, 2**32 - 1) | st.integers(0, 50),
    width=st.integers(0, 2**32 - 1) | st.integers(0, 50),
    step=st.integers(0, 2**32 - 1) | st.integers(0, 200),
    encoding=st.sampled_from([*ENCODINGS, "", "rgb9", "32FC1"]) | st.text(max_size=12),
    data=st.binary(max_size=3000),
    big=st.booleans(),
)
@settings(max_examples=800, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_images_never_do_more_than_raise(height, width, step, encoding, data, big) -> None:
    message = Image(height=height, width=width, step=step, encoding=encoding, is_bigendian=int(big))
    message.data = array.array("B", data)
    with contextlib.suppress(BadImage):
        rgb = image_to_rgb(message)
        assert rgb.shape == (height, width, 3)
        assert rgb.dtype == np.uint8


def compressed(data: bytes, name: str = "jpeg") -> CompressedImage:
    return CompressedImage(format=name, data=array.array("B", data))


def test_compressed_images_come_back() -> None:
    rgb = known_picture()
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    png = cv2.imencode(".png", bgr)[1].tobytes()
    assert np.array_equal(compressed_to_rgb(compressed(png, "bgr8; png compressed bgr8")), rgb)
    deep = cv2.imencode(".png", bgr.astype(np.uint16) * 257)[1].tobytes()
    assert np.abs(compressed_to_rgb(compressed(deep, "rgb16; png compressed")).astype(int) - rgb).max() <= 1
    jpeg = rgb_to_jpeg(rgb, 7, "a", quality=100)
    assert np.abs(compressed_to_rgb(jpeg).astype(int) - rgb).max() <= 8
    grey = cv2.imencode(".png", rgb[..., 0])[1].tobytes()
    assert np.array_equal(compressed_to_rgb(compressed(grey)), expected(rgb, "mono8"))


def test_orientation_tags_are_ignored() -> None:
    from io import BytesIO

    from PIL import Image as PillowImage

    exif = PillowImage.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees"
    buffer = BytesIO()
    PillowImage.fromarray(known_picture()).save(buffer, "jpeg", exif=exif)
    assert compressed_to_rgb(compressed(buffer.getvalue())).shape == known_picture().shape


def png_that_claims(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "undecodable image"),
        (b"\xff\xd8\xff\xe0garbage", "undecodable image"),
        (bytes(range(256)) * 10, "undecodable image"),
        (png_that_claims(40000, 40000), None),
    ],
)
def test_broken_compressed_images_say_why(data: bytes, reason: str | None) -> None:
    with pytest.raises(BadImage) as caught:
        compressed_to_rgb(compressed(data))
    assert reason in (None, caught.value.reason)


@given(position=st.integers(0, 2000), value=st.integers(0, 255), length=st.integers(0, 3000))
@settings(max_examples=150, deadline=None)
def test_damaged_jpegs_never_do_more_than_raise(position: int, value: int, length: int) -> None:
    data = bytearray(rgb_to_jpeg(known_picture(), 0, "a").data)
    data[position % len(data)] = value
    with contextlib.suppress(BadImage):
        assert compressed_to_rgb(compressed(bytes(data[:length]))).ndim == 3

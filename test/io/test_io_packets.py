"""Topics of video packets, and unusual encodings of images."""

from __future__ import annotations

import base64
from pathlib import Path

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from fast3r_ros.errors import UserError
from fast3r_ros.io.pixels import decode_image
from fast3r_ros.io.sources import open_source
from fast3r_ros.io.sources.video import PACKETS

# Twelve grey pictures of 64 x 48 pixels, 5, 25 … 225, in two groups with B frames, by x264 and x265.
H264 = """
AAAAAWdkAAqs0QR6EAAAAwAQAAADAUDxIlEgAAAAAWjr4OyyLAAAAAFliIQAZ//+99S3zLLteH62C6j3opyMge4MGVGifIJ5
AAAAAUGaJsfA/AaCGf/+2qoW
AAAAAQGeQvIZ/wCegQ==
AAAAAQGeRPIZ//qF/wwn0sKwyl+FS0KxF+WCQXYas/tE+Xp4wA==
AAAAAUGaSpPCEIZD4H4CMgfgIgEM//7aqhc=
AAAAAQGeaNSGfwCegQ==
AAAAAWdkAAqs0QR6EAAAAwAQAAADAUDxIlEgAAAAAWjr4OyyLAAAAAFliIIAGf/+99S3zLFRQtguo96KcjIHuDBlRonyCeE=
AAAAAUGaJsfA/AbCGf/+2qoX
AAAAAQGeQvIZ//qF/wwn0sKwyl+FS0KxF+WCQXYas/tE+Xp4wA==
AAAAAQGeRPIZ//qF/wwn0sKwyl+FS0KxF+WCQXYas/tE+Xp4wA==
AAAAAUGaSpPCEIZD4H4CUgfgJAEM//7aqhc=
AAAAAQGeaNSGfwCegA==
"""
H265 = """
AAAAAUABDAH//wFgAAADAJAAAAMAAAMAHpEQCQAAAAFCAQEBYAAAAwCQAAADAAADAB6gIIMWWREuTK5oCAAAAwAIAAADAFBAAAAAAUQBwXPQiQAAAAEoAa8M4EoTGn//sS3neO+uplatYA==
AAAAAQIB0BlfikmBqYZQqWiWUA==
AAAAAQAB4CS14YVwAIX/+ueHHRAjjt3g
AAAAAQAB4ESX4YVQAIXs+ueHHRAjjt3g
AAAAAQIB0CnV/UpIYExhlKlollA=
AAAAAQAB4Ia3/UYVwIoCpg==
AAAAAUABDAH//wFgAAADAJAAAAMAAAMAHpEQCQAAAAFCAQEBYAAAAwCQAAADAAADAB6gIIMWWREuTK5oCAAAAwAIAAADAFBAAAAAAUQBwXPQiQAAAAEoAa8N4FMeLP/4AzAY9S+Gerdg
AAAAAQIB0BlfikmB4YZwqWiWUA==
AAAAAQAB4CS14YVQAIX/+cqHHRAjjt3g
AAAAAQAB4ESX4YVQAIXs+ueHHRAjjt3g
AAAAAQIB0CnV/UpIYFphnKlollA=
AAAAAQAB4Ia3/UYVQIoCpg==
"""
SHOWN = [0, 3, 1, 2, 5, 4, 6, 9, 7, 8, 11, 10]  # which picture a packet holds
START = 1_700_000_000 * 10**9
FFMPEG, FOXGLOVE, H264_MSGS = PACKETS
IMAGE, INFO, COMPRESSED = (f"sensor_msgs/msg/{name}" for name in ("Image", "CameraInfo", "CompressedImage"))


def make_store():
    store = get_typestore(Stores.ROS2_JAZZY)
    for kind, definition in PACKETS.items():
        store.register(get_types_from_msg(definition, kind))
    return store


STORE = make_store()
TYPES = STORE.types


def header(index: int):
    time = TYPES["builtin_interfaces/msg/Time"](START // 10**9, index * 10**8 % 10**9)
    return TYPES["std_msgs/msg/Header"](time, "front")


def message(kind: str, codec: str, picture: int, packet: bytes):
    data, head = np.frombuffer(packet, np.uint8), header(0)
    stamp = START + picture * 10**8
    head.stamp.sec, head.stamp.nanosec = stamp // 10**9, stamp % 10**9
    match kind:
        case "ffmpeg_image_transport_msgs/msg/FFMPEGPacket":
            return TYPES[kind](head, 64, 48, codec, picture, 0, False, data)
        case "foxglove_msgs/msg/CompressedVideo":
            return TYPES[kind](head.stamp, "front", data, codec)
        case "h264_msgs/msg/Packet":
            return TYPES[kind](head, picture, data)
    return TYPES[kind](head, codec, data)


def write_bag(path: Path, topics: dict[str, tuple[str, list]]) -> Path:
    """A bag of `topics`: name -> type and messages, in the order in which they come."""
    with Writer(path, version=9) as writer:
        for topic, (kind, messages) in topics.items():
            connection = writer.add_connection(topic, kind, typestore=STORE)
            for place, each in enumerate(messages):
                data = each if isinstance(each, bytes) else STORE.serialize_cdr(each, kind)
                writer.write(connection, START + place * 10**8, data)
    return path


def packets(text: str) -> list[bytes]:
    return [base64.b64decode(line) for line in text.split()]


def shades(frames) -> list[int]:
    return [round((frame.image.mean() - 5) / 20) for frame in frames]


CODED = [
    (FFMPEG, "libx264", H264),
    (FFMPEG, "hevc_nvenc", H265),
    (FFMPEG, "h264;yuv420p;bgr8", H264),
    (FOXGLOVE, "h264", H264),
    (FOXGLOVE, "h265", H265),
    (H264_MSGS, "", H264),
    (COMPRESSED, "h264", H264),
    (COMPRESSED, "H265", H265),
]


@pytest.mark.parametrize(("kind", "codec", "text"), CODED)
def test_packets_become_pictures_with_their_stamps(tmp_path, kind, codec, text):
    messages = [message(kind, codec, *each) for each in zip(SHOWN, packets(text), strict=True)]
    source = open_source(write_bag(tmp_path / "bag", {"/front/image_raw/ffmpeg": (kind, messages)}))
    frames = list(source)
    assert len(source) == len(frames) == 12
    assert shades(frames) == list(range(12))
    assert [(frame.stamp_ns - START) // 10**8 for frame in frames] == list(range(12))
    assert {frame.camera for frame in frames} == {"front"}
    assert shades(source.frames([3, 10])) == [3, 10]
    assert not source.skipped


def test_pictures_lost_with_a_key_frame_are_counted(tmp_path):
    messages = [message(FOXGLOVE, "h265", *each) for each in zip(SHOWN, packets(H265), strict=True)]
    messages[8] = b"\0\1\0\0garbage"
    source = open_source(write_bag(tmp_path / "bag", {"/front/video": (FOXGLOVE, messages[3:])}))
    frames = list(source)
    assert shades(frames) == [6, 8, 9, 10, 11]
    assert "4 of 9 messages" in source.skipped[-1].reason


def test_vp9_by_opencv_itself(tmp_path):
    """A real codec of which OpenCV has the encoder: packets from a file that it wrote, by FFmpeg's index."""
    path = tmp_path / "walk.webm"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"VP90"), 10.0, (64, 48))
    if not writer.isOpened():
        pytest.skip("this OpenCV has no encoder for VP9")
    for index in range(12):
        writer.write(np.full((48, 64, 3), 20 * index + 5, np.uint8))
    writer.release()
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
    coded = []
    while capture.grab():
        coded.append(capture.retrieve()[1].tobytes())
    messages = [message(FOXGLOVE, "vp9", index, packet) for index, packet in enumerate(coded)]
    source = open_source(write_bag(tmp_path / "bag", {"/front/video": (FOXGLOVE, messages)}))
    assert shades(source) == list(range(12))


def test_without_a_decoder_the_codec_is_named(tmp_path):
    messages = [message(FOXGLOVE, "av1", index, b"\x12\0\x0a\x0b" + bytes(40)) for index in range(3)]
    with pytest.raises(UserError, match="AV1"):
        list(open_source(write_bag(tmp_path / "bag", {"/front/video": (FOXGLOVE, messages)})))


def test_packets_of_single_pictures(tmp_path):
    picture = cv2.imencode(".jpg", np.full((48, 64, 3), 105, np.uint8))[1].tobytes()
    messages = [message(FFMPEG, "mjpeg", index, picture) for index in range(3)]
    assert shades(open_source(write_bag(tmp_path / "bag", {"/front/ffmpeg": (FFMPEG, messages)}))) == [5] * 3


def test_the_calibration_next_to_packets_is_used(tmp_path):
    matrix = np.array([50.0, 0, 31.5, 0, 50.0, 23.5, 0, 0, 1])
    region = TYPES["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    projection = np.hstack([matrix.reshape(3, 3), np.zeros((3, 1))]).ravel()
    info = TYPES[INFO](
        *(header(0), 48, 64, "plumb_bob", np.zeros(5), matrix, np.eye(3).ravel(), projection, 0, 0, region)
    )
    coded = [message(FFMPEG, "h264", *each) for each in zip(SHOWN, packets(H264), strict=True)]
    topics = {"/front/image_raw/ffmpeg": (FFMPEG, coded), "/front/camera_info": (INFO, [info])}
    frames = list(open_source(write_bag(tmp_path / "bag", topics)))
    assert frames[5].intrinsics[0, 0] == 50.0


def raw(values: np.ndarray, encoding: str, index: int = 0):
    height, width = values.shape[:2]
    return TYPES[IMAGE](
        *(header(index), height, width, encoding, 0, values.strides[0]),
        np.frombuffer(values.tobytes(), np.uint8),
    )


def test_a_thermal_camera_is_stretched_and_no_depth(tmp_path):
    kelvin = np.linspace(29_000, 31_000, 48 * 64).reshape(48, 64).astype(np.uint16)  # hundredths
    source = open_source(
        write_bag(
            tmp_path / "bag", {"/lepton/image_raw": (IMAGE, [raw(kelvin, "16UC1", i) for i in range(3)])}
        )
    )
    (first, *_) = frames = list(source)
    assert len(frames) == 3
    assert first.image.min() <= 1
    assert first.image.max() >= 254
    depth = write_bag(tmp_path / "depth", {"/front/depth/image": (IMAGE, [raw(kelvin, "16UC1")])})
    with pytest.raises(UserError, match="unsupported format"):
        open_source(depth)


@pytest.mark.parametrize("encoding", ["mono16", "bayer_rggb16", "rgb16"])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_the_bits_of_the_sensor_are_used(encoding, bits):
    """A ramp from black to white in the lower bits of 16 looks the same for every depth."""
    ramp = np.linspace(0, 1, 32 * 64).reshape(32, 64)
    channels = 3 if encoding == "rgb16" else 1
    values = np.repeat(np.round(ramp * (2**bits - 1)).astype("<u2")[..., None], channels, 2)
    decoded = decode_image(values.tobytes(), height=32, width=64, step=0, encoding=encoding)
    np.testing.assert_allclose(decoded[2:-2, 2:-2, 1], 255 * ramp[2:-2, 2:-2], atol=1.1)


@pytest.mark.parametrize(
    ("encoding", "kind", "scale"),
    [
        ("32FC1", "<f4", 0.01),
        ("32FC3", "<f4", 1.0),
        ("8SC1", "i1", 0.3),
        ("16SC3", "<i2", 40.0),
        ("64FC1", "<f8", 7),
    ],
)
def test_numbers_of_any_kind_are_stretched(encoding, kind, scale):
    channels = int(encoding[-1])
    ramp = np.linspace(-100, 155, 32 * 64).reshape(32, 64, 1).repeat(channels, 2)
    values = (ramp * scale).astype(kind)
    decoded = decode_image(values.tobytes(), height=32, width=64, step=0, encoding=encoding).astype(int)
    assert decoded.min() <= 1
    assert decoded.max() >= 254
    assert (np.diff(decoded[..., 0].ravel()) >= 0).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("encoding", ["32FC1", "64FC1"])
def test_numbers_that_are_no_light_are_shown_without_a_warning(encoding):
    kind, word = ("<f4", "<u4") if encoding == "32FC1" else ("<f8", "<u8")
    values = np.linspace(0, 1, 32 * 64).astype(kind)
    limits = np.finfo(kind)
    values[:60] = np.repeat([limits.max, limits.min, np.inf, -np.inf, np.nan, 0.0], 10)
    signalling = np.array(1 << limits.nmant - 2, word)  # a quiet NaN has the bit above it
    values[50:60].view(word)[:] = np.array(np.inf, kind).view(word) | signalling
    decoded = decode_image(values.tobytes(), height=32, width=64, step=0, encoding=encoding)
    shown = decoded[..., 0].ravel()
    assert set(shown[0:10]) == set(shown[20:30]) == {255}  # largest, infinite
    assert set(shown[10:20]) == set(shown[30:60]) == {0}  # and NaN is black


@pytest.mark.parametrize("padding", [0, 6])
def test_nv24_has_a_colour_for_every_pixel(padding):
    rgb = np.zeros((8, 6, 3), np.uint8)
    rgb[:, ::2], rgb[:, 1::2] = (200, 60, 90), (30, 160, 220)
    red, green, blue = np.moveaxis(rgb.astype(float), -1, 0)
    luma = 16 + 0.257 * red + 0.504 * green + 0.098 * blue
    chroma = np.stack(
        [128 - 0.148 * red - 0.291 * green + 0.439 * blue, 128 + 0.439 * red - 0.368 * green - 0.071 * blue],
        -1,
    ).reshape(8, 12)
    rows = [np.pad(luma, ((0, 0), (0, padding))), np.pad(chroma, ((0, 0), (0, 2 * padding)))]
    data = b"".join(plane.round().astype(np.uint8).tobytes() for plane in rows)
    decoded = decode_image(data, height=8, width=6, step=6 + padding, encoding="nv24")
    assert np.abs(decoded.astype(int) - rgb).max() <= 3
    with pytest.raises(UserError):
        decode_image(data[:100], height=8, width=6, step=6 + padding, encoding="nv24")

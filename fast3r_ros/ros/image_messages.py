"""sensor_msgs Image, CompressedImage and CameraInfo <-> numpy arrays."""

from __future__ import annotations

import array
import sys
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from fast3r_ros.io.pixels import BadImage, decode_compressed, decode_image
from fast3r_ros.mapping.data import Float32, Float64, UInt8
from fast3r_ros.ros.pose_messages import stamp_from_ns
from fast3r_ros.ros.upstream import CV_BRIDGE, CV_BRIDGE_ENCODINGS


def image_to_rgb(message: Image) -> UInt8:
    """A raw image as (H, W, 3) uint8 RGB, by cv_bridge if installed and the image is a plain one.

    Raises BadImage.
    """
    if CV_BRIDGE is not None and _is_plain(message):
        return np.ascontiguousarray(CV_BRIDGE.imgmsg_to_cv2(message, "rgb8"))
    return _decode(message)


def _is_plain(message: Image) -> bool:
    """Whether an image is regular: cv_bridge does not check, and converts garbage."""
    pixel = CV_BRIDGE_ENCODINGS.get(message.encoding, 0)
    row = message.width * pixel
    even = message.width % 2 == 0 and message.height % 2 == 0
    return 0 < row == message.step and 0 < message.height * row == len(message.data) and even


def _decode(message: Image) -> UInt8:
    return decode_image(
        message.data,
        height=message.height,
        width=message.width,
        step=message.step,
        encoding=message.encoding,
        is_bigendian=bool(message.is_bigendian),
    )


def depth_to_metres(message: Image) -> Float32:
    """A depth image (REP-118) as (H, W) float32 metres: 32FC1 in metres, 16UC1 in millimetres.

    NaN or 0 where nothing was measured.  Raises BadImage.
    """
    kind = {"32FC1": "f4", "16UC1": "u2"}.get(message.encoding)
    if kind is None:
        text = f"depth of encoding {message.encoding[:40]!r}; use 32FC1 or 16UC1"
        raise BadImage("unknown depth encoding", text)
    dtype = np.dtype(kind).newbyteorder(">" if message.is_bigendian else "<")
    pixels = _rows(message, dtype, "depth")
    return pixels.astype(np.float32) * np.float32(1.0 if kind == "f4" else 0.001)


def _rows(message: Image, dtype: np.dtype[Any], what: str) -> NDArray[Any]:
    """The pixels (H, W) of an image with one channel, without the padding of its rows.  Raises BadImage."""
    rows, row_bytes, step = int(message.height), int(message.width) * dtype.itemsize, int(message.step)
    data = np.frombuffer(message.data, np.uint8)
    if rows == 0 or row_bytes == 0 or step < row_bytes or len(data) < step * rows:
        text = f"{what}: {len(data)} bytes for {message.width}x{rows} pixels and a step of {step}"
        raise BadImage(f"broken {what} image", text)
    return np.ascontiguousarray(data[: step * rows].reshape(rows, step)[:, :row_bytes]).view(dtype)


def mask_to_bool(message: Image) -> NDArray[np.bool_]:
    """A mask (mono8 or 8UC1) as (H, W) bool: whether the value is not zero.  Raises BadImage."""
    if message.encoding not in ("mono8", "8UC1"):
        text = f"mask of encoding {message.encoding[:40]!r}; use mono8"
        raise BadImage("unknown mask encoding", text)
    return _rows(message, np.dtype("u1"), "mask") != 0


def compressed_to_rgb(message: CompressedImage) -> UInt8:
    """A JPEG, PNG or other compressed image as (H, W, 3) uint8 RGB.  Raises BadImage."""
    return decode_compressed(message.data, message.format)


def rgb_to_image(rgb: UInt8, stamp_ns: int, frame_id: str) -> Image:
    """(H, W, 3) uint8 RGB as an rgb8 image."""
    return _image(rgb, "rgb8", stamp_ns, frame_id)


def float_to_image(values: Float32, stamp_ns: int, frame_id: str) -> Image:
    """(H, W) float32 as a 32FC1 image."""
    return _image(values.astype(np.float32, copy=False), "32FC1", stamp_ns, frame_id)


def rgb_to_jpeg(rgb: UInt8, stamp_ns: int, frame_id: str, quality: int = 90) -> CompressedImage:
    """(H, W, 3) uint8 RGB as a JPEG, with image_transport's format string."""
    encoded = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[
        1
    ]
    message = CompressedImage(format="rgb8; jpeg compressed bgr8")
    message.header.stamp = stamp_from_ns(stamp_ns)
    message.header.frame_id = frame_id
    message.data = packed(encoded)
    return message


def _image(pixels: NDArray[Any], encoding: str, stamp_ns: int, frame_id: str) -> Image:
    pixels = np.ascontiguousarray(pixels)
    message = Image(height=pixels.shape[0], width=pixels.shape[1], encoding=encoding)
    message.header.stamp = stamp_from_ns(stamp_ns)
    message.header.frame_id = frame_id
    message.is_bigendian = int(sys.byteorder == "big")
    message.step = pixels.strides[0]
    message.data = packed(pixels)
    return message


def camera_info(intrinsics: Float64, width: int, height: int, stamp_ns: int, frame_id: str) -> CameraInfo:
    """CameraInfo of an undistorted image; pixel centres are at integers in ROS, here at integer + 0.5."""
    k = intrinsics.copy()
    k[:2, 2] -= 0.5
    info = CameraInfo(width=width, height=height, distortion_model="plumb_bob", d=[0.0] * 5)
    info.header.stamp = stamp_from_ns(stamp_ns)
    info.header.frame_id = frame_id
    info.k = k.reshape(9)
    info.r = np.eye(3).reshape(9)
    info.p = np.hstack([k, np.zeros((3, 1))]).reshape(12)
    return info


def packed(elements: NDArray[Any]) -> array.array:
    """The bytes of an array as array.array, which a uint8[] field accepts without checking each byte."""
    data = array.array("B")
    data.frombytes(np.frombuffer(np.ascontiguousarray(elements), np.uint8).data)
    return data


def at_input_size(
    values: NDArray[Any], network_from_image: Float64, size: tuple[int, int], outside: float
) -> NDArray[Any]:
    """Values (h, w) at network size, resampled to the camera image (height, width), nearest neighbour.

    network_from_image: (3, 3), an axis-aligned scale and shift.  size: (width, height).  outside: value for
    pixels outside of the network's image.
    """
    width, height = size
    columns, seen_columns = _source(
        width, network_from_image[0, 0], network_from_image[0, 2], values.shape[1]
    )
    rows, seen_rows = _source(height, network_from_image[1, 1], network_from_image[1, 2], values.shape[0])
    resampled = values[rows[:, None], columns[None, :]]
    resampled[~seen_rows, :] = outside
    resampled[:, ~seen_columns] = outside
    return resampled


def _source(count: int, scale: float, shift: float, limit: int) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """For each of `count` pixels its pixel among `limit`, and whether there is one."""
    places = np.floor((np.arange(count) + 0.5) * scale + shift).astype(np.intp)
    return np.clip(places, 0, limit - 1), (places >= 0) & (places < limit)


def confidence_color(confidence: Float32, warmest: float) -> UInt8:
    """Confidence (h, w) as RGB (h, w, 3): logarithmic, dark at 1, red from `warmest` on, black where 0."""
    share = np.log(np.maximum(confidence, 1.0)) / np.log(warmest)
    grey = (np.clip(share, 0.0, 1.0) * 255).astype(np.uint8)
    rgb = cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    rgb[confidence == 0.0] = 0
    return rgb

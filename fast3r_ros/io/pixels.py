"""Pixels of sensor_msgs/Image and CompressedImage to 8-bit RGB, for every encoding.

Takes plain numbers and bytes, so that it serves both bags without ROS and the node.  The encodings are those
of sensor_msgs/image_encodings.hpp.
"""

from __future__ import annotations

import io
import re
from typing import Any

import cv2
import numpy as np
from PIL import Image as PillowImage

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.data import UInt8
from fast3r_ros.pictures import eight_bits

MAX_PIXELS = 100_000_000  # larger sizes count as garbage: a JPEG header can claim 4 gigapixels in 20 bytes
# Maximum pixels per byte: a blank PNG has 1000 and a blank JPEG 50, an image with camera noise far fewer.  A
# larger ratio is not a picture, and decoding it would briefly take a thousand times its size in memory.
PIXELS_PER_BYTE, FREE_PIXELS = 400, 4_000_000


class BadImage(UserError):
    """A message without a usable picture.  reason: the short phrase under which the frame is counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


# encoding -> (channels, bytes per channel, OpenCV conversion to RGB, None if it is RGB)
_PACKED: dict[str, tuple[int, int, int | None]] = {
    "rgb8": (3, 1, None),
    "bgr8": (3, 1, cv2.COLOR_BGR2RGB),
    "8uc3": (3, 1, cv2.COLOR_BGR2RGB),
    "rgba8": (4, 1, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, 1, cv2.COLOR_BGRA2RGB),
    "8uc4": (4, 1, cv2.COLOR_BGRA2RGB),
    "mono8": (1, 1, cv2.COLOR_GRAY2RGB),
    "8uc1": (1, 1, cv2.COLOR_GRAY2RGB),
    "rgb16": (3, 2, None),
    "bgr16": (3, 2, cv2.COLOR_BGR2RGB),
    "rgba16": (4, 2, cv2.COLOR_RGBA2RGB),
    "bgra16": (4, 2, cv2.COLOR_BGRA2RGB),
    "mono16": (1, 2, cv2.COLOR_GRAY2RGB),
    "bayer_rggb8": (1, 1, cv2.COLOR_BayerRGGB2RGB),
    "bayer_bggr8": (1, 1, cv2.COLOR_BayerBGGR2RGB),
    "bayer_gbrg8": (1, 1, cv2.COLOR_BayerGBRG2RGB),
    "bayer_grbg8": (1, 1, cv2.COLOR_BayerGRBG2RGB),
    "bayer_rggb16": (1, 2, cv2.COLOR_BayerRGGB2RGB),
    "bayer_bggr16": (1, 2, cv2.COLOR_BayerBGGR2RGB),
    "bayer_gbrg16": (1, 2, cv2.COLOR_BayerGBRG2RGB),
    "bayer_grbg16": (1, 2, cv2.COLOR_BayerGRBG2RGB),
    "yuv422": (2, 1, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (2, 1, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (2, 1, cv2.COLOR_YUV2RGB_YUYV),
    "yuyv": (2, 1, cv2.COLOR_YUV2RGB_YUYV),
}
# a full plane of luma followed by a half-height plane of interleaved chroma
_PLANAR = {"nv12": cv2.COLOR_YUV2RGB_NV12, "nv21": cv2.COLOR_YUV2RGB_NV21}

ENCODINGS = (*_PACKED, *_PLANAR)  # nv24 and OpenCV's generic types are handled separately
DEPTH_ENCODINGS = ("16uc1", "32fc1")
# OpenCV's generic types: with the channels of grey, BGR and BGRA, of these number types
_ANYTHING = re.compile(r"(8|16|32|64)([usf])c([134])")
_SENSOR_BITS = (10, 12, 14)  # of cameras that use the low bits of 16-bit values


def decode_image(
    data: Any, *, height: int, width: int, step: int, encoding: str, is_bigendian: bool = False
) -> UInt8:
    """The pixels of a raw image message as (height, width, 3) uint8 RGB, a copy.

    data: any buffer of bytes (bytes, array.array, numpy array).  step: bytes per row, padding included.
    16-bit values are divided by 257, those of a 10-, 12- or 14-bit camera by less.  Images of OpenCV's
    generic types, such as a thermal camera's 16UC1, are stretched by their range.  Raises BadImage for an
    unknown encoding, a zero size, a step that is too short and data that is too short.
    """
    name = encoding.lower()
    if height <= 0 or width <= 0:
        raise BadImage("empty image", f"the image has no pixels: {width}x{height}")
    if height * width > MAX_PIXELS:
        raise BadImage("image too large", f"the image claims {width}x{height} pixels")
    if name in _PLANAR:
        if height % 2 or width % 2:
            raise BadImage("odd size", f"an {encoding} image needs even sides, this one has {width}x{height}")
        rows = _rows(data, height * 3 // 2, width, step)
        return cv2.cvtColor(np.ascontiguousarray(rows), _PLANAR[name])  # type: ignore[return-value]
    if name == "nv24":
        # treated as NV12 of twice the size, whose chroma has this resolution
        luma, step = _rows(data, height, width, step), step or width
        chroma = _rows(np.frombuffer(data, np.uint8)[step * height :], height, 2 * width, 2 * step)
        doubled = np.vstack([luma.repeat(2, 0).repeat(2, 1), chroma])
        return np.ascontiguousarray(cv2.cvtColor(doubled, _PLANAR["nv12"])[::2, ::2])
    anything = _ANYTHING.fullmatch(name) if name not in _PACKED else None
    if anything:
        return _stretched(data, (height, width), step, anything, is_bigendian)
    if name not in _PACKED:
        known = ", ".join((*ENCODINGS, "nv24", "16UC1"))
        raise BadImage("unknown encoding", f"unknown image encoding {encoding[:40]!r}; known are {known}")
    channels, size, conversion = _PACKED[name]
    if conversion is not None and channels == 2 and width % 2:
        raise BadImage("odd size", f"an {encoding} image needs an even width, this one has {width}")
    pixels: Any = np.ascontiguousarray(_rows(data, height, width * channels * size, step))
    if size == 2:
        wide = pixels.view(">u2" if is_bigendian else "<u2").astype(np.uint32)
        bits = next((bits for bits in _SENSOR_BITS if wide.max() < 1 << bits), 16)
        most = (1 << bits) - 1
        pixels = ((wide * 255 + most // 2) // most).astype(np.uint8)
    if channels > 1:
        pixels = pixels.reshape(height, width, channels)
    return pixels.copy() if conversion is None else cv2.cvtColor(pixels, conversion)


def _stretched(data: Any, size: tuple[int, int], step: int, kind: re.Match[str], is_bigendian: bool) -> UInt8:
    """An image of any number type, stretched from minimum to maximum, the same for all channels."""
    bits, letter, channels = int(kind[1]), kind[2], int(kind[3])
    if letter == "f" and bits < 32:
        raise BadImage("unknown encoding", f"unknown image encoding {kind[0]!r}")
    number = np.dtype(f"{'>' if is_bigendian else '<'}{letter.replace('s', 'i')}{bits // 8}")
    rows = np.ascontiguousarray(_rows(data, size[0], size[1] * channels * number.itemsize, step))
    values = rows.view(number).reshape(*size, channels)
    with np.errstate(invalid="ignore"):  # of signalling NaNs
        wide = values.astype(np.float64)
    pixels = eight_bits(wide)
    conversion = {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}[channels]
    return cv2.cvtColor(pixels, conversion)  # type: ignore[return-value]


def _rows(data: Any, rows: int, row_bytes: int, step: int) -> UInt8:
    """(rows, row_bytes) view of a buffer whose rows are `step` bytes apart (0 means: without padding)."""
    step = step or row_bytes
    if step < row_bytes:
        raise BadImage("wrong step", f"the image's step is {step} bytes, but a row needs {row_bytes}")
    buffer = np.frombuffer(data, np.uint8)
    needed = step * (rows - 1) + row_bytes
    if buffer.size < needed:
        text = f"the image has {buffer.size} bytes of data, but its size and step need {needed}"
        raise BadImage("truncated data", text)
    return np.lib.stride_tricks.as_strided(buffer, (rows, row_bytes), (step, 1), writeable=False)


def decode_compressed(data: Any, form: str = "") -> UInt8:
    """A JPEG, PNG or other compressed image as (H, W, 3) uint8 RGB.

    form: the message's `format`, such as "bayer_rggb8; png compressed": a mosaic is converted to colour.
    EXIF orientation is ignored, so that the pixels match the camera info.
    Raises BadImage when OpenCV cannot read the bytes.
    """
    buffer = np.frombuffer(data, np.uint8)
    compressed_size(data)
    encoding = form.partition(";")[0].strip().lower()
    if encoding.startswith("bayer_") and encoding in _PACKED:
        return _decode_mosaic(buffer, encoding)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        bgr = cv2.imdecode(buffer, flags) if buffer.size else None
    except cv2.error:
        bgr = None
    if bgr is None:
        raise BadImage("undecodable image", f"{buffer.size} bytes of compressed image data cannot be decoded")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB, bgr)  # type: ignore[return-value]


def _decode_mosaic(buffer: UInt8, encoding: str) -> UInt8:
    """A compressed Bayer mosaic as RGB; an image that is already in colour stays as it is."""
    try:
        mosaic = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        mosaic = None
    if mosaic is None:
        raise BadImage("undecodable image", f"{buffer.size} bytes of compressed image data cannot be decoded")
    if mosaic.ndim == 3:
        return decode_compressed(buffer)
    height, width = mosaic.shape
    plain = encoding.removesuffix("16").removesuffix("8") + ("16" if mosaic.dtype == np.uint16 else "8")
    step = width * mosaic.dtype.itemsize
    return decode_image(mosaic.tobytes(), height=height, width=width, step=step, encoding=plain)


def compressed_size(data: Any) -> tuple[int, int]:
    """(width, height) of a compressed image by its header, before anything of that size is allocated.

    Raises BadImage for bytes that are not an image, and for a size that is implausible for so few bytes.
    """
    buffer = np.frombuffer(data, np.uint8)
    try:
        width, height = PillowImage.open(io.BytesIO(buffer.data)).size
    except Exception as error:
        # Pillow raises many types on garbage: OSError, SyntaxError, struct.error, DecompressionBombError …
        text = f"{buffer.size} bytes of compressed image data cannot be decoded ({error})"
        raise BadImage("undecodable image", text) from error
    if width * height > MAX_PIXELS or width * height > FREE_PIXELS + PIXELS_PER_BYTE * buffer.size:
        text = f"the compressed image claims {width}x{height} pixels in {buffer.size} bytes"
        raise BadImage("image too large", text)
    return width, height

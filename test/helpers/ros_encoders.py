"""Images to the bytes of every encoding, written from the formats' definitions, without OpenCV."""

import array
import sys

import numpy as np
from sensor_msgs.msg import Image


def known_picture(height: int = 48, width: int = 64) -> np.ndarray:
    """(H, W, 3) uint8: smooth in both directions, all channels different, equal within 2x2 blocks."""
    y, x = np.mgrid[0 : height // 2, 0 : width // 2].astype(np.float64)
    y, x = y / (height // 2 - 1), x / (width // 2 - 1)
    blocks = np.stack([40 + 150 * x, 60 + 120 * y, 200 - 80 * x - 60 * y], axis=-1)
    return np.repeat(np.repeat(blocks.round().astype(np.uint8), 2, axis=0), 2, axis=1)


def even_slopes(height: int = 48, width: int = 64) -> np.ndarray:
    """(H, W, 3) uint8: every channel a plane that rises by at most one per pixel.

    A Bayer mosaic has one channel per pixel; what lies between is interpolated, and only planes are known
    exactly from their neighbours.
    """
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    return np.stack([50 + x, 60 + y + 0.5 * x, 200 - 0.5 * x - y], axis=-1).round().astype(np.uint8)


def yuv_of(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """BT.601 limited range: Y in 16 to 235, U and V in 16 to 240, each (H, W) uint8."""
    r, g, b = (rgb[..., i].astype(np.float64) for i in range(3))
    y = 16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255
    u = 128 + (-37.797 * r - 74.203 * g + 112.0 * b) / 255
    v = 128 + (112.0 * r - 93.786 * g - 18.214 * b) / 255
    return tuple(np.clip(plane.round(), 0, 255).astype(np.uint8) for plane in (y, u, v))


def bayer_of(rgb: np.ndarray, pattern: str) -> np.ndarray:
    """(H, W) mosaic; pattern names the upper left 2x2 pixels in reading order."""
    channel = {"r": 0, "g": 1, "b": 2}
    mosaic = np.empty(rgb.shape[:2], rgb.dtype)
    for index, letter in enumerate(pattern):
        row, column = divmod(index, 2)
        mosaic[row::2, column::2] = rgb[row::2, column::2, channel[letter]]
    return mosaic


def pixels_of(rgb: np.ndarray, encoding: str) -> np.ndarray:
    """The rows of an encoding: (rows, elements per row) uint8 or uint16."""
    name = encoding.lower()
    height, width = rgb.shape[:2]
    if name.endswith("16") and not name.startswith("mono"):
        return pixels_of(rgb, name[:-2] + "8").astype(np.uint16) * 257
    if name.startswith("bayer_"):
        return bayer_of(rgb, name[6:10])
    order = {"rgb8": "rgb", "bgr8": "bgr", "8uc3": "bgr", "rgba8": "rgba", "bgra8": "bgra", "8uc4": "bgra"}
    if name in order:
        full = np.dstack([rgb, np.full((height, width), 77, np.uint8)])
        return full[..., ["rgba".index(letter) for letter in order[name]]].reshape(height, -1)
    if name in ("mono8", "8uc1"):
        return rgb[..., 0]
    if name in ("mono16", "16uc1"):
        return rgb[..., 0].astype(np.uint16) * 257
    y, u, v = yuv_of(rgb)
    if name in ("uyvy", "yuv422"):
        return np.stack([u[:, ::2], y[:, ::2], v[:, ::2], y[:, 1::2]], axis=-1).reshape(height, -1)
    if name in ("yuyv", "yuv422_yuy2"):
        return np.stack([y[:, ::2], u[:, ::2], y[:, 1::2], v[:, ::2]], axis=-1).reshape(height, -1)
    first, second = (u, v) if name == "nv12" else (v, u)
    chroma = np.stack([first[::2, ::2], second[::2, ::2]], axis=-1).reshape(height // 2, -1)
    return np.vstack([y, chroma])


def encode(rgb: np.ndarray, encoding: str, padding: int = 0, big_endian: bool = False) -> Image:
    """A picture as an image message, with `padding` bytes of noise at the end of every row."""
    rows = pixels_of(rgb, encoding)
    if rows.dtype == np.uint16:
        rows = rows.astype(">u2" if big_endian else "<u2")
    raw = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
    noise = np.random.default_rng(0).integers(0, 256, (len(rows), padding), np.uint8)
    message = Image(height=rgb.shape[0], width=rgb.shape[1], encoding=encoding)
    message.step = raw.shape[1] + padding
    message.is_bigendian = int(big_endian)
    message.data = array.array("B", np.hstack([raw, noise]).tobytes())
    message.header.frame_id = "camera_optical_frame"
    return message


def expected(rgb: np.ndarray, encoding: str) -> np.ndarray:
    """The expected image after an encoding: grey ones keep only the red channel."""
    grey = encoding.lower() in ("mono8", "mono16", "8uc1", "16uc1")
    return np.repeat(rgb[..., :1], 3, axis=-1) if grey else rgb


assert sys.byteorder == "little", "these encoders are written for little-endian machines"

"""Images from files, PIL images and arrays, all as (H, W, 3) uint8 RGB."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fast3r_ros.errors import UserError

with suppress(ImportError):  # optional: HEIC photos
    from pillow_heif import register_heif_opener

    register_heif_opener()

Picture: TypeAlias = str | Path | Image.Image | NDArray[Any]

_NARROW = 0.25  # share of 65535 below which 16-bit greys are stretched by their own range


def as_rgb(picture: Picture) -> NDArray[np.uint8]:
    """One picture as (H, W, 3) uint8 RGB.

    picture: a file, turned upright by its EXIF orientation; a PIL image, likewise; or an array of shape
    (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), RGB, uint8 or floating-point numbers from 0 to 1.  Raises
    UserError for anything else.
    """
    if isinstance(picture, (str, Path)):
        return read_picture(Path(picture).expanduser())
    if isinstance(picture, Image.Image):
        return _rgb(picture)
    array = np.asarray(picture)
    if array.dtype == bool or not (array.dtype == np.uint8 or np.issubdtype(array.dtype, np.floating)):
        raise UserError(
            f"an image is {array.dtype} of shape {array.shape}; give a path, a PIL image, or an array of "
            "uint8 or of floats in 0..1"
        )
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        raise UserError(f"an image has the shape {array.shape}; give (height, width, 3) in the order RGB")
    if array.dtype != np.uint8:
        if not (array.min() >= 0 and array.max() <= 1):  # written so that NaN fails
            raise UserError(
                f"an image of {array.dtype} has values outside 0..1; give uint8, or divide by 255"
            )
        array = np.round(array * 255).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[..., :3])


def read_picture(path: Path) -> NDArray[np.uint8]:
    """One image file as (H, W, 3) uint8 RGB, turned upright by its EXIF orientation.

    Raises UserError when the file is missing, not an image, or truncated.
    """
    return read_pages(path)[0]


def read_pages(path: Path) -> tuple[NDArray[np.uint8], int]:
    """Like `read_picture`, with the number of pages or animation frames; only the first one is read."""
    try:
        with Image.open(path) as image:
            # thumbnails embedded by cameras
            pages = int(getattr(image, "n_frames", 1)) if image.format != "MPO" else 1
            return _rgb(image), pages
    except FileNotFoundError as error:
        raise UserError(f"no such image: {path}") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is not an image that can be read") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I") or upright.mode == "F":  # more than 8 bits: PIL would clip at 255
        return np.repeat(eight_bits(np.asarray(upright, np.float64))[:, :, None], 3, axis=2)
    return np.array(upright.convert("RGB"))


def eight_bits(gray: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Grey values of more than 8 bits as uint8: 16 bits are divided by 257, a smaller range is stretched.

    Cameras of 10, 12 and 14 bits and thermal cameras use only a part of the 65536 values.  NaN is black.
    """
    limit = np.finfo(np.float32).max  # no light is stronger, and differences stay finite
    known = np.clip(gray[np.isfinite(gray)], -limit, limit)
    low, high = np.percentile(known, (0.1, 99.9)) if known.size else (0.0, 1.0)
    if high - low > _NARROW * 65535 and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    levels = np.clip(np.nan_to_num(gray, nan=low), -limit, limit)
    scaled = 255.0 * (levels - low) / max(high - low, 1e-9)
    return np.clip(scaled, 0, 255).round().astype(np.uint8)

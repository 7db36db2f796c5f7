"""An image of any size to the network's input, on any device, and its effect on intrinsics."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fast3r_ros.errors import UserError

PATCH = 16


@dataclass(frozen=True)
class PreparedImage:
    """An image at network size.

    pixels: (h, w, 3) uint8 RGB.  pixel_transform: (3, 3) float64, source pixel coordinates to network pixel
    coordinates (pixel centres at integer + 0.5); new intrinsics are pixel_transform @ intrinsics.
    """

    pixels: NDArray[np.uint8]
    pixel_transform: NDArray[np.float64]


@dataclass(frozen=True)
class Resize:
    """scaled: (w, h) after scaling; left, top: the crop's corner in it; size: (w, h) of the result."""

    source: tuple[int, int]
    scaled: tuple[int, int]
    left: int
    top: int
    size: tuple[int, int]

    @property
    def pixel_transform(self) -> NDArray[np.float64]:
        """(3, 3): source pixel coordinates to result pixel coordinates, pixel centres at integer + 0.5."""
        scale_x, scale_y = self.scaled[0] / self.source[0], self.scaled[1] / self.source[1]
        return np.array([[scale_x, 0, -self.left], [0, scale_y, -self.top], [0, 0, 1]], dtype=np.float64)

    @property
    def shrinks(self) -> bool:
        """Whether the long side gets smaller, which determines the filter."""
        return max(self.scaled) < max(self.source)


def plan_resize(width: int, height: int, long_side: int, patch: int = PATCH, squares: bool = False) -> Resize:
    """The scaling and crop of an image of this size.  Raises UserError when no patch would remain.

    patch: both sides become multiples of it; must be even.  squares: square images stay square.
    """
    longest = max(width, height)
    scaled = (round(width * long_side / longest), round(height * long_side / longest)) if longest else (0, 0)
    centre_x, centre_y = scaled[0] // 2, scaled[1] // 2
    half_width, half_height = (2 * centre_x // patch) * (patch // 2), (2 * centre_y // patch) * (patch // 2)
    if scaled[0] == scaled[1] and not squares:
        half_height = 3 * half_width // 4 // (patch // 2) * (patch // 2)
    if half_width < patch // 2 or half_height < patch // 2:
        raise UserError(
            f"an image of {width}x{height} pixels cannot become {long_side} pixels long: "
            f"both sides must have at least {patch} pixels after resizing"
        )
    size = (2 * half_width, 2 * half_height)
    return Resize((width, height), scaled, centre_x - half_width, centre_y - half_height, size)


def prepare_image(
    image: NDArray[np.uint8], long_side: int, patch: int = PATCH, squares: bool = False
) -> PreparedImage:
    """Resize and crop one uint8 RGB image (H, W, 3) with Pillow, see `plan_resize`.

    Raises UserError for another type or shape.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(
            f"the image is {image.dtype} of shape {image.shape}, expected uint8 (height, width, 3)"
        )
    plan = plan_resize(image.shape[1], image.shape[0], long_side, patch, squares)
    kind = Image.Resampling.LANCZOS if plan.shrinks else Image.Resampling.BICUBIC
    scaled = Image.fromarray(image).resize(plan.scaled, kind)
    width, height = plan.size
    box = (plan.left, plan.top, plan.left + width, plan.top + height)
    return PreparedImage(np.array(scaled.crop(box)), plan.pixel_transform)


def normalize(pixels: NDArray[np.uint8] | Tensor, device: torch.device | str | None = None) -> Tensor:
    """uint8 RGB (..., h, w, 3) to the network's float32 input (..., 3, h, w) in [-1, 1]."""
    tensor = torch.as_tensor(pixels, device=device)
    return (tensor.movedim(-1, -3).float() / 255 - 0.5) / 0.5


def prepare_images(images: Tensor, long_side: int) -> tuple[Tensor, NDArray[np.float64]]:
    """Resize and crop uint8 RGB images (B, H, W, 3) of one size on their own device.

    Returns the pixels (B, h, w, 3) uint8 and the (3, 3) pixel transform, both as from `prepare_image`.
    Raises UserError for another type or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise UserError(
            f"the images are {images.dtype} of shape {tuple(images.shape)}, "
            "expected uint8 (batch, height, width, 3)"
        )
    plan = plan_resize(images.shape[2], images.shape[1], long_side)
    kind = "lanczos" if plan.shrinks else "bicubic"
    columns = _weights(plan.source[0], plan.scaled[0], plan.left, plan.size[0], kind, images.device)
    rows = _weights(plan.source[1], plan.scaled[1], plan.top, plan.size[1], kind, images.device)
    planes = images.movedim(3, 1).float()
    planes = (planes @ columns.T).round_().clamp_(0, 255)
    planes = (rows @ planes).round_().clamp_(0, 255)
    return planes.to(torch.uint8).movedim(1, 3), plan.pixel_transform


@functools.lru_cache(maxsize=16)
def _weights(source: int, scaled: int, start: int, count: int, kind: str, device: torch.device) -> Tensor:
    """Filter weights (count, source) float32 of scaled pixels start..start + count - 1; rows sum to one."""
    function, support = _FILTERS[kind]
    scale = source / scaled
    width = max(scale, 1.0)
    centres = (np.arange(start, start + count)[:, None] + 0.5) * scale
    positions = np.arange(source)[None, :]
    first = np.maximum(np.floor(centres - support * width + 0.5), 0)
    last = np.minimum(np.floor(centres + support * width + 0.5), source)
    values = function((positions + 0.5 - centres) / width)
    values = np.where((positions >= first) & (positions < last), values, 0.0)
    return torch.from_numpy((values / values.sum(axis=1, keepdims=True)).astype(np.float32)).to(device)


def _lanczos(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys's cubic with a = -0.5."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


_FILTERS: dict[str, tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], float]] = {
    "lanczos": (_lanczos, 3.0),
    "bicubic": (_bicubic, 2.0),
}

"""A bank of procedural textures with mipmaps: checks, bricks, planks, stripes, noise, tiles and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SIZE = 128
LEVELS = 8  # 128, 64, ..., 1
LEVEL_SIZES = tuple(SIZE >> level for level in range(LEVELS))
LEVEL_OFFSETS = tuple(int(sum(size * size for size in LEVEL_SIZES[:level])) for level in range(LEVELS))
TEXELS = sum(size * size for size in LEVEL_SIZES)
KINDS = ("checks", "bricks", "planks", "stripes", "noise", "tiles", "picture")
GREY = "grey "  # prefix of the kind's grey variant, which can be tinted
GREYS = 42
Image = NDArray[np.float32]


@dataclass(frozen=True)
class TextureBank:
    """texels: (T, TEXELS, 3) float32 in [0, 1], a texture's mipmap levels one after the other, row-major.

    kinds: the name of each texture's kind.  A texture repeats without a seam, except pictures, which are
    meant to be shown once.
    """

    texels: NDArray[np.float32]
    kinds: tuple[str, ...]


@lru_cache(maxsize=64)
def textures_of(*kinds: str) -> NDArray[np.int64]:
    """The indices of the bank's textures of these kinds."""
    return np.flatnonzero(np.isin(np.array(texture_bank().kinds), kinds))


@lru_cache(maxsize=4)
def texture_bank(count: int = 210, seed: int = 7) -> TextureBank:
    """The bank of `count` textures and 42 grey ones, with an equal share of each kind; seeded."""
    rng = np.random.default_rng(seed)
    kinds = [KINDS[index % len(KINDS)] for index in range(count)]
    images = [_MAKERS[kind](rng) for kind in kinds]
    for index in range(GREYS):
        kind = KINDS[index % len(KINDS)]
        kinds.append(GREY + kind)
        images.append(_grey(_MAKERS[kind](rng)))
    return TextureBank(np.stack([_mipmaps(image) for image in images]), tuple(kinds))


def _grey(image: Image) -> Image:
    """Brightness only, around 0.6 and of moderate contrast."""
    brightness = image.mean(-1, keepdims=True)
    relative = (brightness / brightness.mean()).clip(0.4, 1.6)
    return np.broadcast_to(0.6 * relative, image.shape).astype(np.float32)


def _mipmaps(image: Image) -> NDArray[np.float32]:
    """All levels of a (SIZE, SIZE, 3) image by 2x2 averages, flattened to (TEXELS, 3)."""
    levels: list[NDArray[np.float32]] = [image]
    while levels[-1].shape[0] > 1:
        top = levels[-1]
        levels.append(
            ((top[0::2, 0::2] + top[1::2, 0::2] + top[0::2, 1::2] + top[1::2, 1::2]) / 4).astype(np.float32)
        )
    return np.concatenate([level.reshape(-1, 3) for level in levels]).clip(0, 1).astype(np.float32)


def _grid() -> tuple[Image, Image]:
    axis = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE
    return np.meshgrid(axis, axis)  # x, y in (0, 1)


def _colors(rng: np.random.Generator, count: int) -> Image:
    """(count, 3) colours that differ in brightness so that the pattern stays visible in grey."""
    base = rng.uniform(0.4, 0.95, (1, 3))
    colors = 0.6 * base + 0.4 * rng.uniform(0.2, 0.95, (count, 3))
    brightness = rng.permutation(np.linspace(0.5, 1.2, count))[:, None]
    return (colors * brightness).clip(0.02, 0.98).astype(np.float32)


def _noise(rng: np.random.Generator, cells: tuple[int, ...] = (4, 8, 16, 32)) -> Image:
    """(SIZE, SIZE) smooth noise in [0, 1] that repeats, a sum of octaves."""
    total = np.zeros((SIZE, SIZE))
    for cell in cells:
        spectrum = np.fft.rfft2(rng.standard_normal((SIZE, SIZE)))
        octave = np.fft.irfft2(spectrum * _low_pass(cell), s=(SIZE, SIZE))
        total += octave / (octave.std() + 1e-9) / np.sqrt(cell)
    low, high = np.quantile(total, (0.02, 0.98))
    return ((total - low) / (high - low)).clip(0, 1).astype(np.float32)


@lru_cache(maxsize=16)
def _low_pass(cell: int) -> NDArray[np.float64]:
    """The factors of an image's spectrum that leave about `cell` waves along a side."""
    frequencies = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None, :]) * SIZE
    return np.exp(-((frequencies / cell) ** 2))


def _grain(rng: np.random.Generator, image: Image, strength: float = 0.15) -> Image:
    return image * (1 - strength + 2 * strength * _noise(rng, (8, 32))[..., None])


def _checks(rng: np.random.Generator) -> Image:
    x, y = _grid()
    cells = int(rng.choice([2, 4, 8]))
    pattern = (np.floor(x * cells) + np.floor(y * cells)).astype(int) % 2
    return _grain(rng, _colors(rng, 2)[pattern])


def _running_bond(rng: np.random.Generator, rows: int, columns: int, gap: float, spread: float) -> Image:
    """Rows of blocks with joints, every second row shifted by half a block, each block its own shade."""
    x, y = _grid()
    row = np.floor(y * rows).astype(int)
    shifted = (x * columns + 0.5 * (row % 2)) % columns
    column = np.floor(shifted).astype(int)
    shade = rng.uniform(1 - spread, 1 + spread, (rows, columns)).astype(np.float32)[row, column]
    joint = ((y * rows) % 1 < gap) | (shifted % 1 < gap * rows / max(columns, 1) / 2)
    block, mortar = _colors(rng, 2)
    return np.where(joint[..., None], mortar, block * shade[..., None]).astype(np.float32)


def _bricks(rng: np.random.Generator) -> Image:
    return _grain(rng, _running_bond(rng, int(rng.choice([6, 8])), int(rng.choice([2, 4])), 0.12, 0.35))


def _planks(rng: np.random.Generator) -> Image:
    return _grain(rng, _running_bond(rng, int(rng.choice([4, 6, 8])), 2, 0.06, 0.45), 0.25)


def _tiles(rng: np.random.Generator) -> Image:
    x, y = _grid()
    cells = int(rng.choice([3, 4, 6]))
    color = _colors(rng, 5)
    chosen = rng.integers(0, 4, (cells, cells))[
        np.floor(y * cells).astype(int), np.floor(x * cells).astype(int)
    ]
    joint = ((x * cells) % 1 < 0.06) | ((y * cells) % 1 < 0.06)
    return _grain(rng, np.where(joint[..., None], color[4], color[chosen]).astype(np.float32))


def _stripes(rng: np.random.Generator) -> Image:
    x, y = _grid()
    count = int(rng.choice([3, 4, 6]))
    along = x if rng.random() < 0.7 else y
    widths = np.sort(rng.uniform(0, 1, 5))
    index = np.searchsorted(widths, (along * count / 3) % 1 if count != 3 else along)
    return _grain(rng, _colors(rng, 6)[index])


def _blobs(rng: np.random.Generator) -> Image:
    color = _colors(rng, 3)
    first, second = _noise(rng, (3, 6, 12))[..., None], _noise(rng, (4, 16, 48))[..., None]
    mixed = color[0] + first * (color[1] - color[0])
    return np.where(second > 0.7, color[2], mixed).astype(np.float32)


def _picture(rng: np.random.Generator) -> Image:
    """A framed picture: a background and a dozen coloured discs and bars."""
    x, y = _grid()
    image = np.broadcast_to(rng.uniform(0.1, 0.95, 3), (SIZE, SIZE, 3)).copy()
    for _ in range(12):
        cx, cy, size = rng.uniform([0.1, 0.1, 0.05], [0.9, 0.9, 0.22])
        if rng.random() < 0.5:
            inside = (x - cx) ** 2 + (y - cy) ** 2 < size**2
        else:
            inside = (abs(x - cx) < size * rng.uniform(0.3, 2)) & (abs(y - cy) < size * rng.uniform(0.3, 2))
        image[inside] = rng.uniform(0.02, 0.98, 3)
    image[np.maximum(abs(x - 0.5), abs(y - 0.5)) > 0.46] = rng.uniform(0.05, 0.5, 3)
    return image.astype(np.float32)


_MAKERS = {
    "checks": _checks,
    "bricks": _bricks,
    "planks": _planks,
    "stripes": _stripes,
    "noise": _blobs,
    "tiles": _tiles,
    "picture": _picture,
}
Float64 = NDArray[np.float64]


def painted_by_role(
    look: NDArray[np.float32],
    center: Float64,
    axes: Float64,
    half: Float64,
    room: Float64,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """The look (Q, 11) with grey textures, tinted by the role of each rectangle; pictures stay.

    look, center, axes, half: of a `SyntheticScene`.  room: (4,) inner x_min, y_min, x_max, y_max, centred at
    0.
    """
    look = look.copy()
    pictures = np.isin(look[:, 0].astype(np.int64), textures_of("picture"))
    normal, along_wall = axes[:, 2], np.full(len(look), -1)
    on_border = np.abs(np.abs(center[:, :2]) - room[2:]) < 1e-6
    for side in range(4):  # the four walls
        axis, sign = divmod(side, 2)
        along_wall[on_border[:, axis] & (normal[:, axis] * (2 * sign - 1) > 0.99)] = side
    hue = rng.uniform() + np.arange(4) / 4
    for index in np.flatnonzero(~pictures):
        height, upward = center[index, 2], normal[index, 2]
        kinds: tuple[str, ...]
        if upward > 0.5 and height == 0:
            kinds, color, tile = ("planks", "tiles"), np.array([0.85, 0.55, 0.3]), 1.6
        elif upward < -0.5:
            kinds, color, tile = ("noise",), np.array([1.5, 1.5, 1.5]), 1.6
        elif along_wall[index] >= 0:
            kinds, tile = ("bricks", "checks", "tiles", "stripes"), 1.6
            color = 1.25 * _hue(hue[along_wall[index]], 0.55)
        else:
            kinds, color, tile = ("noise", "planks"), 0.75 * _hue(rng.uniform(), 0.9), 0.8
        choice = textures_of(*(GREY + kind for kind in kinds))
        look[index, 0] = choice[rng.integers(len(choice))]
        look[index, 1:3] = 2 * half[index] / tile
        light = 0.85 + 0.15 * abs(normal[index] @ [0.6, 0.3, 0.74])
        look[index, 5:8], look[index, 8:] = color * light * rng.uniform(0.92, 1.08), 0.0
    return look


def _hue(hue: float, saturation: float) -> Float64:
    """An RGB colour of full value."""
    wheel = np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    return 1 - saturation * (1 - wheel.clip(0, 1))

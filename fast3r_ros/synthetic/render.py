"""Exact renderer of textured rectangles, batched over scenes and views; the same code on CPU and GPU.

In the image of a pinhole camera, the inverse depth of a plane is a linear function of the pixel, and so are
the plane's two coordinates divided by the depth (Blinn, "Hyperbolic interpolation", 1992).  A rectangle is
therefore three linear functions of the pixel, and the nearest rectangle has the greatest inverse depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fast3r_ros.synthetic.rooms import SyntheticScene
from fast3r_ros.synthetic.textures import LEVEL_OFFSETS, LEVEL_SIZES, LEVELS, SIZE, TEXELS, texture_bank

NEAR = 0.02  # metres; nearer surfaces are not rendered
PIXELS_AT_ONCE = 40_000  # on the CPU, so that the working set stays in the cache


@dataclass(frozen=True)
class Render:
    """Images and depth of V cameras, with a leading B for a batch of scenes.

    images: (..., V, H, W, 3) uint8 RGB.  depth: (..., V, H, W) float32, z in the camera frame in metres, 0
    where nothing is hit.
    """

    images: Tensor
    depth: Tensor


def render(
    scene: SyntheticScene | Sequence[SyntheticScene],
    world_from_camera: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    device: torch.device | str = "cpu",
) -> Render:
    """Images and depth of V cameras in one scene, or of B x V cameras in B scenes.

    world_from_camera: (V, 4, 4), or (B, V, 4, 4) for a sequence of B scenes.  intrinsics: (3, 3) or any shape
    that broadcasts to (..., V, 3, 3); pixel centres at integer + 0.5.
    """
    scenes = [scene] if isinstance(scene, SyntheticScene) else list(scene)
    poses = torch.as_tensor(world_from_camera, dtype=torch.float64, device=device)
    poses = poses[None] if isinstance(scene, SyntheticScene) else poses
    batch, views = poses.shape[:2]
    matrices = torch.as_tensor(intrinsics, dtype=torch.float64, device=device).expand(batch, views, 3, 3)
    rectangles = _stack(scenes, device)
    planes, table = _project(rectangles, poses, matrices, width, height)
    focal = matrices[..., 0, 0].flatten().float()
    images = torch.empty((batch * views, height, width, 3), dtype=torch.uint8, device=device)
    depth = torch.empty((batch * views, height, width), device=device)
    at_once = PIXELS_AT_ONCE if images.device.type == "cpu" else 256 * PIXELS_AT_ONCE
    chunk = max(at_once // (width * height), 1)
    for first in range(0, batch * views, chunk):
        part = slice(first, first + chunk)
        own = _Planes(planes.column[part], planes.row[part], planes.box[part])
        inverse_depth, chosen = _nearest(own, width, height)
        hit = inverse_depth > 0
        band = max(at_once // (width * len(hit)), 1)
        for top in range(0, height, band):
            rows = slice(top, top + band)
            seen = _Planes(own.column, own.row[..., rows], own.box)
            colors = _shade(table[part], seen, inverse_depth[:, rows], chosen[:, rows], focal[part])
            images[part, rows] = (colors * 255 + 0.5).to(torch.uint8) * hit[:, rows, :, None]
        depth[part] = torch.where(hit, 1 / inverse_depth.clamp_min(1e-9), 0.0)
    shape = (views, height, width) if isinstance(scene, SyntheticScene) else (batch, views, height, width)
    return Render(images.reshape(*shape, 3), depth.reshape(shape))


def points_camera(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """(..., H, W, 3) points in the camera frame from z-depth (..., H, W) and intrinsics (..., 3, 3)."""
    height, width = depth.shape[-2:]
    matrices = torch.as_tensor(intrinsics, dtype=depth.dtype, device=depth.device)
    u = torch.arange(width, dtype=depth.dtype, device=depth.device) + 0.5
    v = torch.arange(height, dtype=depth.dtype, device=depth.device) + 0.5
    focal_x, focal_y, center_x, center_y = (
        matrices[..., row, column, None, None] for row, column in ((0, 0), (1, 1), (0, 2), (1, 2))
    )
    return torch.stack(
        [depth * (u - center_x) / focal_x, depth * (v[:, None] - center_y) / focal_y, depth], dim=-1
    )


@dataclass(frozen=True)
class _Rectangles:
    """B scenes padded to Q rectangles; geometry in float64.  `present` is False for padding."""

    center: Tensor  # (B, Q, 3)
    axes: Tensor  # (B, Q, 3, 3): unit u, unit v, normal
    half: Tensor  # (B, Q, 2)
    present: Tensor  # (B, Q)
    look: Tensor  # (B, Q, 11) float32: texture, repeats of the texture (2), offset (2), gain (3), lift (3)


@dataclass(frozen=True)
class _Planes:
    """The M rectangles that each of B*V cameras may see, as linear functions of the pixel.

    column, row: (N, M, 3, W) and (N, M, 3, H); their sum is (inverse depth, u / depth, v / depth), where u
    and v are in [-1, 1] inside the rectangle.  box: (N, M, 4) pixels, left, top, right and bottom; the
    rectangle is not seen outside of it.
    """

    column: Tensor
    row: Tensor
    box: Tensor


def _stack(scenes: Sequence[SyntheticScene], device: torch.device | str) -> _Rectangles:
    count = max(scene.center.shape[0] for scene in scenes)

    def padded(arrays: list[Tensor], dtype: torch.dtype) -> Tensor:
        stacked = torch.zeros((len(arrays), count, *arrays[0].shape[1:]), dtype=dtype)
        for row, array in zip(stacked, arrays, strict=True):
            row[: array.shape[0]] = array
        return stacked.to(device)

    look = [torch.from_numpy(scene.look) for scene in scenes]
    axes = [torch.from_numpy(scene.axes) for scene in scenes]
    present = [torch.ones(scene.center.shape[0], dtype=torch.bool) for scene in scenes]
    return _Rectangles(
        center=padded([torch.from_numpy(scene.center) for scene in scenes], torch.float64),
        axes=padded(axes, torch.float64),
        half=padded([torch.from_numpy(scene.half) for scene in scenes], torch.float64),
        present=padded(present, torch.bool),
        look=padded(look, torch.float32),
    )


def _project(
    rectangles: _Rectangles, poses: Tensor, matrices: Tensor, width: int, height: int
) -> tuple[_Planes, Tensor]:
    """The linear functions of the rectangles that each camera may see, and their (N, M, 12) shading table."""
    rotation, position = poses[..., :3, :3], poses[..., :3, 3]
    # (B, V, Q, 3): centres in the camera frame; (B, V, Q, 3 axes, 3)
    center = torch.einsum("bvkc,bvqk->bvqc", rotation, rectangles.center[:, None] - position[:, :, None])
    axes = torch.einsum("bvkc,bqak->bvqac", rotation, rectangles.axes)
    offset = (axes[..., 2, :] * center).sum(-1)  # signed distance along the normal; front faces are negative
    corners = _corners(center, axes, rectangles.half[:, None], matrices)
    visible = rectangles.present[:, None] & (offset < -1e-6) & _in_frustum(corners, width, height)
    # plane coordinates in half extents: a . (p - center) / half = (a . ray) z / half - (a . center) / half
    inverse = axes[..., 2, :] / offset[..., None].clamp_max(-1e-6)  # inverse depth per unit ray
    half = rectangles.half[:, None, :, :, None]
    along = axes[..., :2, :] / half
    shift = (along * center[..., None, :]).sum(-1, keepdim=True)
    linear = torch.cat([inverse[..., None, :], along - shift * inverse[..., None, :]], dim=-2)

    most = max(int(visible.sum(-1).max()), 1)
    order = visible.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[..., :most]
    pick = order[..., None, None].expand(*order.shape, 3, 3)
    linear = linear.gather(2, pick) * visible.gather(2, order)[..., None, None]
    linear = (linear @ torch.linalg.inv(matrices)[:, :, None]).flatten(0, 1)
    box = _box(corners, width, height) * visible[..., None]
    box = box.gather(2, order[..., None].expand(*order.shape, 4)).flatten(0, 1)
    u = torch.arange(width, dtype=torch.float64, device=linear.device) + 0.5
    v = torch.arange(height, dtype=torch.float64, device=linear.device) + 0.5
    column = linear[..., 0, None] * u
    row = linear[..., 1, None] * v + linear[..., 2, None]

    look = torch.cat([rectangles.look, rectangles.half.float()], dim=-1)[:, None].expand(
        -1, poses.shape[1], -1, -1
    )
    look = look.gather(2, order[..., None].expand(*order.shape, look.shape[-1]))
    slope = offset.gather(2, order).abs().float()  # |normal . point|; with the depth it gives the obliqueness
    table = torch.cat([look, slope[..., None]], dim=-1).flatten(0, 1)
    return _Planes(column.float(), row.float(), box), table


def _corners(center: Tensor, axes: Tensor, half: Tensor, matrices: Tensor) -> Tensor:
    """(B, V, Q, 4, 3): homogeneous pixels of the four corners; the last is z in metres."""
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=center.dtype, device=center.device)
    reach = signs * half[..., None, :]  # (B, 1, Q, 4, 2)
    corners = center[..., None, :] + torch.einsum(
        "bvqsa,bvqac->bvqsc", reach.expand(*center.shape[:3], 4, 2), axes[..., :2, :]
    )
    return torch.einsum("bvij,bvqsj->bvqsi", matrices, corners)


def _in_frustum(corners: Tensor, width: int, height: int) -> Tensor:
    """(B, V, Q): False only if all four corners lie outside one side of the viewing frustum."""
    x, y, z = corners.unbind(-1)
    outside = [x < 0, x > width * z, y < 0, y > height * z, z < NEAR]
    return ~torch.stack([side.all(-1) for side in outside]).any(0)


def _box(corners: Tensor, width: int, height: int) -> Tensor:
    """(B, V, Q, 4) pixels around the four corners, with a margin; the whole image if one is too near."""
    limit = torch.tensor([width, height], dtype=corners.dtype, device=corners.device)
    pixels = corners[..., :2] / corners[..., 2:].clamp_min(NEAR)
    near = (corners[..., 2] < NEAR).any(-1)[..., None]
    first = torch.where(near, 0, (pixels.amin(-2) - 2).floor())
    last = torch.where(near, limit, (pixels.amax(-2) + 2).ceil())
    return torch.cat([first, last], dim=-1).clamp_min(0).minimum(limit.repeat(2)).long()


def _nearest(planes: _Planes, width: int, height: int) -> tuple[Tensor, Tensor]:
    """(N, H, W) greatest inverse depth of the rectangles at each pixel (0 if none), and its index."""
    cameras, count = planes.column.shape[:2]
    device = planes.column.device
    best = torch.zeros((cameras, height, width), device=device)
    chosen = torch.zeros((cameras, height, width), dtype=torch.int32, device=device)
    first, last = planes.box[..., :2].amin(0).tolist(), planes.box[..., 2:].amax(0).tolist()
    for index in range(count):  # a loop over rectangles keeps the working set in the processor's cache
        columns, rows = map(slice, first[index], last[index])
        sums = planes.column[:, index, :, None, columns] + planes.row[:, index, :, rows, None]
        inverse_depth, u, v = sums.unbind(1)
        own = best[:, rows, columns]
        inside = inverse_depth >= torch.maximum(u.abs_(), v.abs_())
        nearer = inside & (inverse_depth > own) & (inverse_depth < 1 / NEAR)
        chosen[:, rows, columns].masked_fill_(nearer, index)
        torch.where(nearer, inverse_depth, own, out=own)
    return best, chosen


def _shade(table: Tensor, planes: _Planes, inverse_depth: Tensor, chosen: Tensor, focal: Tensor) -> Tensor:
    """(N, H, W, 3) float32 colours in [0, 1]: the mipmapped texture times the rectangle's gain."""
    cameras, height, width = inverse_depth.shape
    device = inverse_depth.device
    count = table.shape[1]
    texture, repeats, offset, gain, lift, half, distance = table.flatten(0, 1).split(
        [1, 2, 2, 3, 3, 2, 1], dim=-1
    )
    rectangle = torch.arange(0, cameras * count, count, device=device)[:, None, None] + chosen
    v = torch.arange(height, device=device)[:, None]
    u = torch.arange(width, device=device)
    column = planes.column[:, :, 1:].transpose(2, 3).reshape(-1, 2)  # (N * M * W, 2)
    row = planes.row[:, :, 1:].transpose(2, 3).reshape(-1, 2)
    plane = column.index_select(0, (rectangle * width + u).flatten())
    plane += row.index_select(0, (rectangle * height + v).flatten())
    flat = rectangle.flatten()
    depth = 1 / inverse_depth.flatten().clamp_min(1e-9)
    surface = plane * depth[:, None]  # in [-1, 1]

    # metres of surface under one pixel, for the mipmap level; obliqueness counts by its square root
    focal = focal[:, None, None].expand_as(inverse_depth).flatten()
    stretch = (depth / distance[:, 0].clamp_min(1e-3)[flat]).clamp(1, 16).sqrt()
    tiles_per_metre = (repeats / (2 * half)).amax(-1)[flat]
    level = (depth * stretch / focal * tiles_per_metre * SIZE).clamp(1, SIZE).log2().round().long()
    place = (surface + 1) / 2 * repeats.index_select(0, flat) + offset.index_select(0, flat)
    color = _sample(_texels(device), texture[:, 0].long()[flat], place, level)
    color = color * gain.index_select(0, flat) + lift.index_select(0, flat)
    return color.clamp(0, 1).reshape(cameras, height, width, 3)


@lru_cache(maxsize=4)
def _texels_on(device: str) -> Tensor:
    return torch.from_numpy(texture_bank().texels).reshape(-1, 3).to(device)


def _texels(device: torch.device) -> Tensor:
    return _texels_on(str(device))


def _sample(texels: Tensor, texture: Tensor, place: Tensor, level: Tensor) -> Tensor:
    """(P, 3) bilinear samples; texels: (T * TEXELS, 3); place: (P, 2) in tiles, repeating; level: (P,)."""
    device = place.device
    size = torch.tensor(LEVEL_SIZES, device=device)[level.clamp(0, LEVELS - 1)]
    start = texture * TEXELS + torch.tensor(LEVEL_OFFSETS, device=device)[level.clamp(0, LEVELS - 1)]
    scaled = (place - place.floor()) * size[:, None] - 0.5
    corner = scaled.floor()
    weight = scaled - corner
    x0, y0 = (corner.long() & (size[:, None] - 1)).unbind(-1)  # sizes are powers of two
    x1, y1 = (x0 + 1) & (size - 1), (y0 + 1) & (size - 1)
    top, bottom = start + y0 * size, start + y1 * size
    wx, wy = weight[:, :1], weight[:, 1:]
    upper = torch.lerp(texels.index_select(0, top + x0), texels.index_select(0, top + x1), wx)
    lower = torch.lerp(texels.index_select(0, bottom + x0), texels.index_select(0, bottom + x1), wx)
    return torch.lerp(upper, lower, wy)

"""The image encoder: a ViT on 16x16 patches with 2D rotary positions (CroCo)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fast3r_ros.model.config import EncoderConfig
from fast3r_ros.model.layers import Block, narrowed, run_block, widened
from fast3r_ros.model.rotation import rope_tables


class PatchEmbed(nn.Module):
    """A strided convolution that makes one token per patch."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to row-major tokens (B, h*w, C)."""
        return self.proj(images).flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """Images to tokens, each image on its natural grid."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.patch = config.patch_size
        self.width = config.embed_dim
        self.mlp_ratio = config.mlp_ratio
        self.head_dim = config.embed_dim // config.num_heads
        self.rope_base = float(config.pos_embed.removeprefix("RoPE"))
        self.absolute_positions = config.absolute_positions
        self.recompute = False
        self.patch_embed = PatchEmbed(config.embed_dim, config.patch_size)
        self.enc_blocks = nn.ModuleList(
            Block(config.embed_dim, config.num_heads, config.mlp_ratio, norm_eps=1e-6)
            for _ in range(config.depth)
        )
        self.enc_norm = nn.LayerNorm(config.embed_dim, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to tokens (B, h*w, C)."""
        grid = (images.shape[2] // self.patch, images.shape[3] // self.patch)
        tokens = self.patch_embed(images)
        if self.absolute_positions:
            table = position_table(grid, tokens.shape[-1], self.rope_base, tokens.device)
            tokens = tokens + table.to(tokens)
        tokens, inner = widened(tokens, self.enc_blocks)
        rotation = rope_tables(grid, self.head_dim, self.rope_base, tokens)
        for block in self.enc_blocks:
            tokens = run_block(block, tokens, rotation, None, self.recompute)
        return narrowed(inner, self.enc_norm(tokens))

    def bytes_per_image(self, size: tuple[int, int], element_size: int) -> int:
        """Approximate bytes of one image of (H, W) pixels at the widest point of a block."""
        tokens = (size[0] // self.patch) * (size[1] // self.patch)
        return tokens * element_size * int(self.width * (4 + 2 * self.mlp_ratio))


def position_table(
    grid: tuple[int, int], width: int, base: float, device: torch.device | None = None
) -> Tensor:
    """(h*w, C) fixed table: sines and cosines of the patch row in the first half, of the column in the rest.

    Within a half, frequency k is base^(-k / (C / 4)), as in ViTs with fixed positions.
    """
    quarter = width // 4
    frequencies = base ** (-torch.arange(quarter, dtype=torch.float32, device=device) / quarter)
    rows, columns = torch.meshgrid(*(torch.arange(side, device=device) for side in grid), indexing="ij")
    angles = torch.stack([rows, columns], dim=-1).reshape(-1, 2, 1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)

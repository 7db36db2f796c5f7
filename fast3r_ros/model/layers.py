"""The transformer block that the encoder and the fusion transformer share, and the encoder's 2D RoPE."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fast3r_ros.model.attention import attend

TOKENS_AT_ONCE = 16384


class Attention(nn.Module):
    """Multi-head self-attention; `kernel` is one of ATTENTION_NAMES, `scale` multiplies the logits."""

    def __init__(self, width: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.kernel = "auto"
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, scale: float) -> Tensor:
        """(B, N, C) to (B, N, C); rotation: the cos and sin of `rope_tables`, scale: of the logits."""
        batch, count, width = x.shape
        qkv = self.qkv(x).view(batch, count, 3, self.heads, width // self.heads)
        if rotation is not None:
            query, key = rotate(qkv[:, :, :2], *rotation).unbind(2)
        else:
            query, key = qkv[:, :, 0], qkv[:, :, 1]
        value = qkv[:, :, 2]
        mixed = attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale, self.kernel)
        return self.proj(mixed.transpose(1, 2).reshape(batch, count, width))


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block: x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, norm_eps: float, qkv_bias: bool = True
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, heads, qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor] | None = None, scale: float | None = None
    ) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        x = x + self.attn(self.norm1(x), rotation, self.attn.scale if scale is None else scale)
        if torch.is_grad_enabled():
            return x + self.mlp(self.norm2(x))
        for part in x.split(TOKENS_AT_ONCE, dim=1):  # the hidden layer of 1500 views would need tens of GB
            part.add_(self.mlp(self.norm2(part)))
        return x


def run_block(
    block: nn.Module, x: Tensor, rotation: tuple[Tensor, Tensor] | None, scale: float | None, recompute: bool
) -> Tensor:
    """Run one block; with `recompute` its activations are computed again in the backward pass."""
    if recompute and torch.is_grad_enabled():
        result: Tensor = checkpoint(block, x, rotation, scale, use_reentrant=False)
        return result
    result = block(x, rotation, scale)
    return result


def rope_tables(grid: tuple[int, int], head_dim: int, base: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the 2D rotary embedding for a row-major grid, each (h*w, 1, 1, 2, head_dim / 4).

    The first half of a head turns with the token's row, the second with its column; within a half of size m
    pair (i, i + m/2) turns by position * base^(-2i/m).  Angles are float32; the tables are at least float32.
    """
    quarter = head_dim // 4
    steps = torch.arange(0, 2 * quarter, 2, device=like.device).float()
    frequencies = 1.0 / base ** (steps / (2 * quarter))
    rows, columns = torch.meshgrid(
        torch.arange(grid[0], device=like.device), torch.arange(grid[1], device=like.device), indexing="ij"
    )
    positions = torch.stack([rows, columns], dim=-1).reshape(-1, 1, 1, 2, 1).float()
    angles = (positions * frequencies).to(torch.promote_types(like.dtype, torch.float32))
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Apply `rope_tables` to (B, N, ..., heads, D); computed in the tables' dtype, returned in x's."""
    quarter = cosines.shape[-1]
    halves = x.unflatten(-1, (2, 2, quarter)).to(cosines.dtype)
    first, second = halves.unbind(-2)
    turned = torch.stack([first * cosines - second * sines, second * cosines + first * sines], dim=-2)
    return turned.flatten(-3).to(x.dtype)

"""The two transformers: the encoder, a ViT on 16x16 patches of one image (CroCo), and the fusion, in which
the tokens of all views of a scene attend to each other.  An image index tells the fusion which view is which.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fast3r_ros.model.attention import attend
from fast3r_ros.model.layers import AttentionFunction, Block, narrowed, rope_tables, run_block, widened
from fast3r_ros.model.network_config import DecoderConfig, EncoderConfig
from fast3r_ros.model.types import FusedFeatures, ViewTokens

TRAINED_ROWS = 1000


def spread_indices(batch: int, views: int) -> Tensor:
    """Indices spread evenly over the trained range, (batch, views): reproducible, any number of views.

    Up to 1000 views they are distinct integers; beyond that they are fractions between 0 and 999, so that the
    table is interpolated and never exceeded.
    """
    if views <= 1:
        return torch.zeros(batch, views, dtype=torch.long)
    positions = torch.arange(views, dtype=torch.float64) * ((TRAINED_ROWS - 1) / (views - 1))
    row = positions.round().long() if views <= TRAINED_ROWS else positions
    return row.expand(batch, views)


def counted_indices(batch: int, views: int) -> Tensor:
    """View v gets row v, (batch, views); squeezed into the table beyond 1000 views."""
    if views > TRAINED_ROWS:
        return spread_indices(batch, views)
    return torch.arange(views).expand(batch, views)


def drawn_indices(batch: int, views: int, seed: int | None) -> Tensor:
    """The random draw of training, (batch, views): 0 for view 0, distinct rows of 1..999 for the others.

    With a seed, the draw equals that of the official release after `torch.manual_seed(seed)`; without one,
    the seed comes from torch's global generator.  Beyond 1000 views, evenly spread positions are drawn in
    random order.
    """
    source = None if seed is None else torch.Generator().manual_seed(seed)
    drawn_seed = int(torch.randint(0, 2**32, (1,), generator=source))
    generator = torch.Generator().manual_seed(drawn_seed)
    rows = spread_indices(1, views)[0]
    result = torch.zeros(batch, views, dtype=rows.dtype)
    for sample in range(batch):
        if views <= TRAINED_ROWS:
            result[sample, 1:] = (
                torch.randperm(TRAINED_ROWS - 1, generator=generator)[: max(views - 1, 0)] + 1
            )
        else:
            result[sample, 1:] = rows[1:][torch.randperm(views - 1, generator=generator)]
    return result


def free_indices(taken: Sequence[int], count: int, spread: bool = True) -> list[int]:
    """`count` whole indices not in `taken`, for views that join others; `taken` has at least one.

    spread: consecutive indices in the middle of the widest gap of the trained range; otherwise the smallest.
    """
    used = sorted(taken)
    found = []
    for _ in range(count):
        if spread:
            width, start = max((b - a, -a) for a, b in itertools.pairwise([*used, TRAINED_ROWS]))
            index = width // 2 - start
        else:
            index = next(number for number in itertools.count(1) if number not in used)
        found.append(index)
        bisect.insort(used, index)
    return found


def index_embedding(indices: Tensor, width: int) -> Tensor:
    """The table's rows at `indices` (any shape, whole or fractional): (..., width) float32, sines first.

    Row p is [sin(p w_0), ...; cos(p w_0), ...] with w_k = 10000^(-k / (width / 2)), computed in float64.
    """
    half = width // 2
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device="cpu") / half)
    angles = indices.detach().to("cpu", torch.float64)[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()


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


# Scale of the attention logits at inference, relative to training with 20 views (official constant).
INFERENCE_LOGIT_GAIN = math.sqrt(math.log(137) / math.log(20))


class FusionTransformer(nn.Module):
    """Concatenated tokens of all views to the features for the heads."""

    def __init__(self, config: DecoderConfig, hooks: tuple[int, ...]) -> None:
        super().__init__()
        self.hooks = hooks
        self.logit_scale = (config.embed_dim // config.num_heads) ** -0.5
        self.inference_gain = INFERENCE_LOGIT_GAIN if config.attn_bias_for_inference_enabled else 1.0
        self.recompute = False
        self.decoder_embed = nn.Linear(config.enc_embed_dim, config.embed_dim)
        self.dec_blocks = nn.ModuleList(
            Block(
                config.embed_dim, config.num_heads, config.mlp_ratio, norm_eps=1e-5, qkv_bias=config.qkv_bias
            )
            for _ in range(config.depth)
        )
        self.dec_norm = nn.LayerNorm(config.embed_dim, eps=1e-6)

    def forward(
        self, tokens: Tensor, rows: Tensor, counts: Sequence[int], function: AttentionFunction = attend
    ) -> tuple[Tensor, ...]:
        """tokens (B, T, C_e) of V views to the four hooked features, in the order of `hooks`.

        rows: (B, V, C_d) index embedding of each view; counts: the number of tokens of each view.
        The first is the input itself, the last is normalised; the others are plain block outputs.
        function: mixes the values in every block.
        """
        scale = self.logit_scale * (1.0 if self.training else self.inference_gain)
        x, inner = widened(self.decoder_embed(tokens), self.dec_blocks)
        x = add_per_view(x, rows, counts)
        kept = [tokens]
        for number, block in enumerate(self.dec_blocks, start=1):
            x = run_block(block, x, None, scale, self.recompute, function)
            if number in self.hooks[1:-1]:
                kept.append(narrowed(inner, x))
        return (*kept, narrowed(inner, self.dec_norm(x)))


def fuse_views(
    fusion: FusionTransformer, views: Sequence[ViewTokens], rows: Tensor, function: AttentionFunction = attend
) -> FusedFeatures:
    """Fuse the tokens of views with their rows (B, V, C_d) of the index embedding."""
    tokens = torch.cat([view.tokens for view in views], dim=1) if len(views) > 1 else views[0].tokens
    hooks = fusion(tokens, rows, [view.tokens.shape[1] for view in views], function)
    return FusedFeatures(hooks, tuple(view.grid for view in views))


def add_per_view(x: Tensor, rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Add a view's row (B, V, C) to each of its tokens (B, T, C)."""
    if len(set(counts)) == 1:  # avoids a second tensor of the size of x
        return (x.unflatten(1, (len(counts), counts[0])) + rows[:, :, None]).flatten(1, 2)
    repeats = torch.tensor(counts, dtype=torch.long, device=x.device)
    return x + rows.repeat_interleave(repeats, dim=1, output_size=x.shape[1])

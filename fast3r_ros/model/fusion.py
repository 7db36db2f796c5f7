"""The fusion transformer: all views' tokens of a scene attend to each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fast3r_ros.model.attention import attend
from fast3r_ros.model.config import DecoderConfig
from fast3r_ros.model.layers import AttentionFunction, Block, narrowed, run_block, widened
from fast3r_ros.model.outputs import FusedFeatures, ViewTokens

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

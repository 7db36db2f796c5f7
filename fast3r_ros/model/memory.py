"""The memory of one pass over many views on the network's device, by calculation.

With T tokens in total, U = T x width x element size is one tensor of all tokens.  Fusion holds the encoded
tokens of the views, the concatenated tokens (hook 0), two more hooks, and in a block either

    5 U   its input, queries, keys and values (3 U), and their mix, in attention, or
    2 U   its input and result, and the hidden layer of TOKENS_AT_ONCE tokens, in the MLP.

The peak is therefore 9 U for many views: 21 GB for 1500 views of 512x384 in bfloat16 with the released
fusion.  Only tensors are counted, neither the allocator's fragmentation nor the kernels' own buffers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fast3r_ros.model.fast3r import GPU_MEMORY_BUDGET, Fast3R
from fast3r_ros.model.heads import COARSE_PER_FINE
from fast3r_ros.model.layers import TOKENS_AT_ONCE
from fast3r_ros.model.network_config import Fast3RConfig

RESULT_BYTES = 16  # per pixel: a point and its confidence, float32
ACTIVATION_BYTES = 40  # per pixel while the head's channels are converted to points and confidence


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes for one scene of equal views, step by step.

    weights: the network's.  encode, fuse, heads: the peak of each step above the weights, including the
    results of earlier steps; the images are not counted.
    """

    weights: int
    encode: int
    fuse: int
    heads: int

    @property
    def peak(self) -> int:
        """The overall peak."""
        return self.weights + max(self.encode, self.fuse, self.heads)


def predict_memory(
    config: Fast3RConfig,
    views: int,
    size: tuple[int, int],
    dtype: torch.dtype,
    at_once: int | None = None,
    budget: int | None = None,
) -> MemoryPlan:
    """The memory of one pass in inference over `views` images of `size` (width, height) pixels.

    at_once: number of views per call of `encode` and of a head, default all; the results of one call of a
    head are counted.  budget: the model's `memory_budget`, default that of a GPU.
    """
    with torch.device("meta"):
        model = Fast3R(config)
    at_once = min(at_once or views, views)
    budget = GPU_MEMORY_BUDGET if budget is None else budget
    grid = (size[1] // config.encoder.patch_size, size[0] // config.encoder.patch_size)
    element = dtype.itemsize
    tokens = views * grid[0] * grid[1]
    encoded = tokens * config.encoder.embed_dim * element
    hook = tokens * config.decoder.embed_dim * element
    return MemoryPlan(
        weights=sum(weight.numel() for weight in model.parameters()) * element,
        encode=encoded + _encoder_chunk(model, size, at_once, budget, element),
        fuse=2 * encoded + 2 * hook + _fusion_block(config, tokens, element),
        heads=2 * encoded + 3 * hook + _head_call(model, grid, at_once, budget, element),
    )


def _encoder_chunk(model: Fast3R, size: tuple[int, int], at_once: int, budget: int, element: int) -> int:
    """The widest point of an encoder block: its MLP, or the rotation, which is computed in float32."""
    config = model.config.encoder
    images = min(at_once, max(1, budget // model.encoder.bytes_per_image(size, element)))
    values = size[0] * size[1] // config.patch_size**2 * config.embed_dim
    mlp = (3 + 2 * config.mlp_ratio) * element
    # x, qkv; q and k in float32, their two rotated halves, and these stacked
    rotation = 4 * element + (8 if element < 4 else 0) + 2 * 4 + 2 * 4
    check = 2 * 3 * 4 * size[0] * size[1] * at_once  # for NaN and Inf: an image's magnitude and flags
    return max(int(images * values * max(mlp, rotation)), check)


def _fusion_block(config: Fast3RConfig, tokens: int, element: int) -> int:
    """The widest point of a block; its linear layers process `part` bytes of tokens at a time."""
    width = config.decoder.embed_dim * element
    whole, part = tokens * width, min(tokens, TOKENS_AT_ONCE) * width
    logits = 4 * tokens * config.decoder.num_heads  # the attention kernel's float32 for each query
    projection = 4 * whole + (4 * part if part < whole else whole)
    hidden = int(2 * whole + (1 + 2 * config.decoder.mlp_ratio) * part)
    return max(5 * whole + logits, projection, hidden)


def _head_call(model: Fast3R, grid: tuple[int, int], at_once: int, budget: int, element: int) -> int:
    """The results of a call, and the chunk in computation."""
    config, head = model.config, model.downstream_head
    per_view = head.bytes_per_view(grid, element)
    fine = min(at_once, max(1, budget // per_view))
    chunk = min(at_once, fine * COARSE_PER_FINE)
    patches = grid[0] * grid[1]
    pixels = patches * head.patch**2
    maps = patches * (config.encoder.embed_dim + 3 * config.decoder.embed_dim) * element
    path = 4 * patches * config.head.dpt_feature_dim * element
    raw = 4 * pixels * element
    widest = max(chunk * raw + fine * per_view, chunk * pixels * ACTIVATION_BYTES)
    return (at_once - chunk) * pixels * RESULT_BYTES + chunk * (maps + path) + widest

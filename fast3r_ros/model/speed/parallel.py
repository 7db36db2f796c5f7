"""One network on several processes (one GPU each) through torch.distributed.

Every process (rank) loads the whole weights file, then makes the same calls with the same arguments and gets
the same results.  Views are independent in the encoder and in the heads, so there the views are split over
the ranks.  The fusion transformer is split in one of two ways (`MODES`):

tensor    every rank has all tokens, but only its part of the attention heads and of the MLP's hidden layer
          (Shoeybi et al., Megatron-LM, 2019); two all-reduces of the tokens per block.
sequence  every rank has all weights, but only the tokens of its views; the keys and values of all ranks are
          gathered in every block.  Memory for hooks and block results shrinks with the number of ranks.

The layers are split explicitly, not as DTensors, which plan every layer again for every number of tokens.
Only inference is split.  Training has its own data parallelism in `fast3r_ros/training/data_parallel.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fast3r_ros.errors import UserError
from fast3r_ros.model.attention import attend
from fast3r_ros.model.fast3r import Fast3R, Steps
from fast3r_ros.model.heads import PointmapHead
from fast3r_ros.model.layers import Block
from fast3r_ros.model.network_config import DecoderConfig
from fast3r_ros.model.precision import resolve_device
from fast3r_ros.model.transformer import FusionTransformer, fuse_views
from fast3r_ros.model.types import FusedFeatures, Pointmap, ViewTokens

MODES = ("none", "tensor", "sequence")


def parallelise(model: Fast3R, mode: str, group: dist.ProcessGroup | None = None) -> Fast3R:
    """Split a loaded model over the ranks of `group` (all ranks by default); changes it and returns it.

    mode: one of MODES.  The model is put in eval mode without gradients.  Raises UserError without a process
    group, for a model that is already split, and in tensor mode when heads or hidden layer cannot be split
    evenly.
    """
    if mode not in MODES:
        raise UserError(f"parallel mode is {mode!r}, expected one of {', '.join(MODES)}")
    if mode == "none":
        return model
    if not dist.is_initialized():
        raise UserError(
            f"parallel mode {mode} needs several processes; start them with torchrun --nproc_per_node N"
        )
    if isinstance(model.steps, Split):
        raise UserError("this model is already split over processes; load it again to split it differently")
    if type(model.steps) is not Steps:
        raise UserError(f"acceleration {model.steps} cannot be combined with several processes; choose one")
    group = group or cast(dist.ProcessGroup, dist.group.WORLD)
    model.eval().requires_grad_(False)
    if mode == "tensor":
        _split_fusion(model.decoder, model.config.decoder, group)
    model.steps = Split(group, mode)
    return model


def join_processes(device: str) -> str:
    """Join the processes that torchrun started; returns this process's device, such as cuda:1.

    device: auto, cpu or cuda.  Raises UserError outside torchrun, for the name of a single GPU, and with
    fewer GPUs than processes.
    """
    if not dist.is_torchelastic_launched():
        raise UserError("--parallel needs several processes; start with torchrun --nproc_per_node N")
    device = resolve_device(device) if device == "auto" else device
    if device not in ("cpu", "cuda"):
        raise UserError(
            f"--device {device} names one device, but there are several processes; give cuda or cpu"
        )
    if device == "cuda":
        number, found = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= found:
            raise UserError(
                f"process {number} has no GPU, this machine has {found}; give --nproc_per_node {found}"
            )
        device = f"cuda:{number}"
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device == "cpu" else "nccl")
    return device


class Split(Steps):
    """The division of work among the ranks of a group: view v belongs to rank v mod size."""

    def __init__(self, group: dist.ProcessGroup, mode: str) -> None:
        self.group = group
        self.mode = mode
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)

    @property
    def plain_fusion(self) -> bool:
        """See `Steps`; the ranks exchange tokens."""
        return False

    def __repr__(self) -> str:
        return f"Split({self.mode}, rank {self.rank} of {self.size})"

    def encode(self, encode: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Tokens (B, N, C) of images (B, 3, H, W): every rank encodes a part of the batch.

        A single image is encoded by every rank, which is as fast as waiting for another rank.
        """
        if len(images) == 1:
            return encode(images)
        shares = images.tensor_split(self.size)
        mine = shares[self.rank]
        sample = encode(mine if len(mine) else images[:1])
        tokens = sample.new_empty(len(images), *sample.shape[1:])
        parts = tokens.split([len(share) for share in shares])
        if len(mine):
            parts[self.rank].copy_(sample)
        self.exchange(parts, range(self.size))
        return tokens

    def fuse(self, fusion: FusionTransformer, views: Sequence[ViewTokens], rows: Tensor) -> FusedFeatures:
        """Fuse the tokens of all views with their rows (B, V, C_d) of the index embedding.

        In sequence mode the features hold this rank's views only.
        """
        if self.mode == "tensor":
            return fuse_views(fusion, views, rows)
        grids = tuple(view.grid for view in views)
        shares = [range(rank, len(views), self.size) for rank in range(self.size)]
        lengths = [sum(views[view].tokens.shape[1] for view in share) for share in shares]
        held = shares[self.rank]
        own = [views[view] for view in held] or [ViewTokens(views[0].tokens[:, :0], (0, 0))]
        own_rows = rows[:, held.start :: held.step] if held else rows[:, :1]
        hooks = fuse_views(fusion, own, own_rows, GatheredAttention(self, lengths)).hooks
        return FusedFeatures(hooks, grids, tuple(held))

    def predict(
        self, head: PointmapHead, features: FusedFeatures, views: Sequence[int], budget: int
    ) -> list[Pointmap]:
        """Pointmaps of the given views, in their order, each from the rank that its view belongs to."""
        owners = [view % self.size for view in views]
        mine = [view for view, owner in zip(views, owners, strict=True) if owner == self.rank]
        predicted = iter(head.predict(features, mine, budget))
        results = [
            next(predicted) if owner == self.rank else _blank(head, features, view)
            for view, owner in zip(views, owners, strict=True)
        ]
        self.exchange([result.points for result in results], owners)
        self.exchange([result.confidence for result in results], owners)
        return results

    def exchange(self, tensors: Sequence[Tensor], owners: Sequence[int]) -> None:
        """Give every rank the owner's values of each tensor; owners are ranks, sizes may differ."""
        works = [
            dist.broadcast(tensor, dist.get_global_rank(self.group, owner), self.group, async_op=True)
            for tensor, owner in zip(tensors, owners, strict=True)
            if tensor.numel()
        ]
        for work in works:
            cast(dist.Work, work).wait()


class GatheredAttention:
    """Attention of this rank's queries to the keys and values of all ranks, an `AttentionFunction`.

    lengths: the number of tokens of each rank.  The order of the tokens differs from that of one process,
    which changes attention only by rounding.
    """

    def __init__(self, split: Split, lengths: Sequence[int]) -> None:
        self._split = split
        self._lengths = list(lengths)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float, kernel: str) -> Tensor:
        """Queries (B, heads, N, D) of this rank to their mixed values, of the same shape."""
        batch, heads, _, dim = key.shape
        gathered = key.new_empty(sum(self._lengths), batch, 2, heads, dim)
        parts = gathered.split(self._lengths)
        own = parts[self._split.rank]
        own[:, :, 0].copy_(key.permute(2, 0, 1, 3))
        own[:, :, 1].copy_(value.permute(2, 0, 1, 3))
        self._split.exchange(parts, range(len(parts)))
        if not len(own):
            return torch.empty_like(query)
        key, value = gathered.permute(2, 1, 3, 0, 4).unbind()
        return attend(query, key, value, scale, kernel)


def _split_fusion(fusion: FusionTransformer, config: DecoderConfig, group: dist.ProcessGroup) -> None:
    """Reduce each block to this rank's heads and its part of the MLP."""
    size = dist.get_world_size(group)
    hidden = int(config.embed_dim * config.mlp_ratio)
    for name, count in (("attention heads", config.num_heads), ("MLP columns", hidden)):
        if count % size:
            raise UserError(
                f"the fusion transformer has {count} {name}, which {size} processes cannot share evenly; "
                "use another number of processes or sequence parallelism"
            )
    for block in fusion.dec_blocks:
        attention, mlp = cast(Block, block).attn, cast(Block, block).mlp
        _keep_outputs(attention.qkv, 3, group)  # queries, keys and values, each for all heads
        _keep_inputs(attention.proj, group)
        _keep_outputs(mlp.fc1, 1, group)
        _keep_inputs(mlp.fc2, group)
        attention.heads //= size


def _keep_outputs(linear: nn.Linear, runs: int, group: dist.ProcessGroup) -> None:
    """Reduce a layer to this rank's part of each of `runs` equal runs of its outputs."""
    shape = (runs, dist.get_world_size(group), -1)
    for name, rows in list(linear.named_parameters()):
        kept = rows.unflatten(0, shape)[:, dist.get_rank(group)].flatten(0, 1)
        setattr(linear, name, nn.Parameter(kept.clone(), requires_grad=False))
    linear.out_features = len(linear.weight)


def _keep_inputs(linear: nn.Linear, group: dist.ProcessGroup) -> None:
    """Reduce a layer to this rank's part of its inputs; its result becomes the sum over all ranks."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    kept = linear.weight.chunk(size, dim=1)[rank].clone()
    linear.weight = nn.Parameter(kept, requires_grad=False)
    linear.in_features = kept.shape[1]
    if rank and linear.bias is not None:
        linear.bias = nn.Parameter(torch.zeros_like(linear.bias), requires_grad=False)

    def add_up(layer: nn.Module, inputs: tuple[Tensor, ...], result: Tensor) -> Tensor:
        dist.all_reduce(result, group=group)
        return result

    linear.register_forward_hook(add_up)


def _blank(head: PointmapHead, features: FusedFeatures, view: int) -> Pointmap:
    """A pointmap of the right shape that another rank will fill."""
    hook = features.hooks[0]
    dtype = torch.promote_types(hook.dtype, torch.float32)
    height, width = (side * head.patch for side in features.grids[view])
    points = hook.new_empty(hook.shape[0], height, width, 3, dtype=dtype)
    return Pointmap(points, points.new_empty(points.shape[:-1]))

"""Fast3R (Yang et al., Fast3R: Towards 3D Reconstruction of 1000+ Images in One Forward Pass, CVPR 2025).

Images are encoded one by one, one transformer fuses the tokens of all views, and two heads turn each view's
features into pointmaps.  The steps are public and reusable: a view's tokens can be stored and fused again
with other views.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fast3r_ros.errors import UserError
from fast3r_ros.model import checkpoint, precision
from fast3r_ros.model.attention import check_attention
from fast3r_ros.model.heads import PointmapHead, layout_on
from fast3r_ros.model.layers import Attention, AttentionFunction
from fast3r_ros.model.network_config import Fast3RConfig
from fast3r_ros.model.preprocess import normalize, prepare_image
from fast3r_ros.model.transformer import (
    Encoder,
    FusionTransformer,
    counted_indices,
    drawn_indices,
    free_indices,
    fuse_views,
    index_embedding,
    spread_indices,
)
from fast3r_ros.model.types import FusedFeatures, Pointmap, ViewPrediction, ViewTokens

if TYPE_CHECKING:
    from fast3r_ros.pictures import Picture

__all__ = ["Fast3R", "FusedFeatures", "Pointmap", "ViewPrediction", "ViewTokens"]

_log = logging.getLogger(__name__)

CPU_MEMORY_BUDGET = 64 * 2**20
GPU_MEMORY_BUDGET = 2**30


class Steps:
    """Computes the network's steps, plainly; a speed-up derives from this class."""

    @property
    def plain_fusion(self) -> bool:
        """Whether `fuse` is plain attention in this process, which may be recorded as a whole."""
        return True

    def __repr__(self) -> str:
        return "exact"

    def encode(self, encode: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Tokens (B, N, C) of images (B, 3, H, W)."""
        return encode(images)

    def fuse(self, fusion: FusionTransformer, views: Sequence[ViewTokens], rows: Tensor) -> FusedFeatures:
        """Fuse the tokens of all views with their rows (B, V, C_d) of the index embedding."""
        return fuse_views(fusion, views, rows)

    def predict(
        self, head: PointmapHead, features: FusedFeatures, views: Sequence[int], budget: int
    ) -> list[Pointmap]:
        """Pointmaps of the given views, in their order; budget: bytes of intermediate results."""
        return head.predict(features, views, budget)


class Fast3R(nn.Module):
    """The network.

    memory_budget: maximum bytes for intermediate results of the encoder and the heads; None (the default)
    means 64 MiB on the CPU and 1 GiB on a GPU.  steps: how the steps are computed; what lies in `speed` puts
    others there.  repeated_passes: number of passes computed again, see `safer`.
    """

    def __init__(self, config: Fast3RConfig) -> None:
        super().__init__()
        self.config = config
        self.memory_budget: int | None = None
        self.steps = Steps()
        self.repeated_passes = 0
        self._safer: list[Fast3R] = []  # in a list, so that it is not part of the state
        self.encoder = Encoder(config.encoder)
        self.decoder = FusionTransformer(config.decoder, config.hooks)
        self.downstream_head = PointmapHead(config)
        self.downstream_head_local = PointmapHead(config) if config.head.with_local_head else None

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        attention: str = "auto",
        config: Fast3RConfig | None = None,
    ) -> Fast3R:
        """Load a model for inference.

        name: `demo`, a checkpoint directory, a weights file, or a hub name such as
        jedyang97/Fast3R_ViT_Large_512.
        config: needed only for a weights file without a config.json next to it.  attention: one of
        `attention.ATTENTION_NAMES`.  Raises UserError with the file and the problem; a model is never loaded
        partially.

        dtype: see `precision`; with float16 weights the transformers' norms and sums are float32.
        """
        check_attention(attention)
        files = checkpoint.locate(name)
        with torch.device("meta"):
            model = cls(config or checkpoint.read_config(files))
        tensors = checkpoint.read_weights(files, checkpoint.shapes_of(model))
        wide = precision.stream_names(model) if dtype == torch.float16 else set()
        weights = {
            key: tensor.to(device, torch.float32 if key in wide else dtype) for key, tensor in tensors.items()
        }
        checkpoint.check_finite(weights, str(name))
        model.load_state_dict(weights, assign=True)
        precision.set_inner_dtype(model, dtype)
        model.set_attention(attention)
        return model.lay_out_heads().eval()

    def lay_out_heads(self) -> Fast3R:
        """Give the heads' weights the memory layout of their maps on this device, to avoid conversions.

        For inference: FSDP cannot shard parameters in this layout.
        """
        layout = layout_on(next(self.parameters()).device)
        for head in (self.downstream_head, self.downstream_head_local):
            for parameter in () if head is None else head.parameters():
                if parameter.dim() == 4:
                    parameter.data = parameter.data.contiguous(memory_format=layout)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the layers' computations."""
        return self.encoder.patch_embed.proj.weight.dtype

    def safer(self) -> Fast3R | None:
        """The network that repeats a pass whose result is not finite, see `_safer_copy`.

        Counts the pass and logs the first one.  None if there is no safer network.
        """
        if not self._safer:
            other = _safer_copy(self)
            if other is None:
                return None
            self._safer.append(other)
            used, safe = precision.name_of(self.dtype), precision.name_of(other.dtype)
            _log.warning("a result is not finite in %s; such passes are repeated in %s", used, safe)
        self.repeated_passes += 1
        return self._safer[0]

    def extra_repr(self) -> str:
        """Name of the speed-up, for printing."""
        return f"steps={self.steps}"

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json and model.safetensors in the official layout.

        Raises UserError for a model that several processes share or that was accelerated.
        """
        if type(self.steps) is not Steps:
            raise UserError(f"a model with {self.steps} cannot be saved; save it before that")
        checkpoint.write(self, self.config, Path(directory))

    def set_attention(self, name: str) -> None:
        """Choose the attention kernel, one of `attention.ATTENTION_NAMES`; raises UserError for others."""
        check_attention(name)
        for module in self.modules():
            if isinstance(module, Attention):
                module.kernel = name

    def set_recompute(self, recompute: bool) -> None:
        """Gradient checkpointing: recompute blocks and heads in the backward pass instead of storing them."""
        for module in (self.encoder, self.decoder, self.downstream_head, self.downstream_head_local):
            if module is not None:
                module.recompute = recompute

    def encode(self, images: Tensor) -> ViewTokens:
        """(B, 3, H, W) in [-1, 1], H and W multiples of 16, to tokens.

        Raises UserError for another shape and for an image with NaN or Inf, with its index in the batch.
        That check synchronises with the device; `encode_pixels` does not.
        """
        self._check_size(images, "image 0")
        _require_finite(images.isfinite().flatten(1).all(dim=1), "image")
        return self._encode(images)

    def encode_pixels(self, pixels: Tensor) -> ViewTokens:
        """Like `encode`, for (B, H, W, 3) uint8 RGB pixels, which need no check for NaN."""
        images = normalize(pixels)
        self._check_size(images, "image 0")
        return self._encode(images)

    def fuse(
        self,
        views: Sequence[ViewTokens],
        image_indices: Tensor | None = None,
        seed: int | None = None,
        function: AttentionFunction | None = None,
    ) -> FusedFeatures:
        """Fuse the tokens of all views of B scenes; view 0 defines the frame of the global points.

        image_indices: (B, V) rows of the index table, whole or fractional; by default `default_indices`.
        function: mixes the values, default by `steps`; only for a network on one process.
        """
        if not views:
            raise UserError("no views were given; at least one is needed")
        batch = views[0].tokens.shape[0]
        if image_indices is None:
            image_indices = self.default_indices(batch, len(views), seed)
        if tuple(image_indices.shape) != (batch, len(views)):
            raise UserError(
                f"image_indices has shape {tuple(image_indices.shape)}, expected {(batch, len(views))}"
            )
        rows = index_embedding(image_indices, self.config.decoder.embed_dim).to(views[0].tokens)
        if function is not None:
            return fuse_views(self.decoder, views, rows, function)
        return self.steps.fuse(self.decoder, views, rows)

    def global_head(self, features: FusedFeatures, views: Sequence[int] | None = None) -> list[Pointmap]:
        """Pointmaps in view 0's camera for the chosen views (all by default), in the given order."""
        return self._predict(self.downstream_head, features, views)

    def local_head(self, features: FusedFeatures, views: Sequence[int] | None = None) -> list[Pointmap]:
        """Pointmaps in each view's own camera.  Raises UserError when the network has no local head."""
        if self.downstream_head_local is None:
            raise UserError("this network has no local head (head_args.with_local_head is false)")
        return self._predict(self.downstream_head_local, features, views)

    def forward(
        self,
        images: Sequence[Tensor | Picture],
        image_indices: Tensor | None = None,
        seed: int | None = None,
    ) -> list[ViewPrediction]:
        """All steps for V views, each (B, 3, H, W) in [-1, 1]; sizes may differ between views.

        A view may also be a path, a PIL image or an (H, W, 3) RGB array, which are resized to the network's
        size with B = 1.  image_indices, seed: see `fuse` and `default_indices`.  Raises UserError with the
        name of an unusable view.
        """
        tensors = [
            image if isinstance(image, Tensor) else self._prepared(image, f"view {number}")
            for number, image in enumerate(images)
        ]
        for number, image in enumerate(tensors):
            self._check_size(image, f"view {number}")
        if tensors:
            _require_finite(torch.stack([image.isfinite().all() for image in tensors]), "view")
        result = self._pass(tensors, image_indices, seed)
        if self.training or self.dtype != torch.float16:
            return result
        maps = [part for view in result for part in (view.global_points, view.local_points) if part]
        if precision.all_finite([tensor for part in maps for tensor in (part.points, part.confidence)]):
            return result
        safer = self.safer()
        return result if safer is None else safer._pass(tensors, image_indices, seed)

    def _prepared(self, picture: Picture, name: str) -> Tensor:
        """(1, 3, h, w): a picture as the network's input."""
        from fast3r_ros.pictures import as_rgb

        try:
            pixels = prepare_image(as_rgb(picture), self.config.image_size).pixels
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        return normalize(pixels, next(self.parameters()).device)[None]

    def _pass(
        self, images: Sequence[Tensor], image_indices: Tensor | None, seed: int | None
    ) -> list[ViewPrediction]:
        features = self.fuse(self._encode_views(images), image_indices, seed)
        global_points = self.global_head(features)
        if self.downstream_head_local is None:
            return [ViewPrediction(points, None) for points in global_points]
        local_points = self.local_head(features)
        return [ViewPrediction(*pair) for pair in zip(global_points, local_points, strict=True)]

    def default_indices(self, batch: int, views: int, seed: int | None = None) -> Tensor:
        """Default image indices (batch, views).

        A network trained with random indices draws them in training, and at inference if a seed is given;
        otherwise they are evenly spread, so that results are reproducible.  Other networks count from 0.
        """
        if not self.config.decoder.random_image_idx_embedding:
            return counted_indices(batch, views)
        if self.training or seed is not None:
            return drawn_indices(batch, views, seed)
        return spread_indices(batch, views)

    def further_indices(self, taken: Sequence[int], count: int) -> list[int]:
        """Image indices for `count` views that join views with the indices `taken`."""
        return free_indices(taken, count, spread=self.config.decoder.random_image_idx_embedding)

    def _encode_views(self, images: Sequence[Tensor]) -> list[ViewTokens]:
        """Encode the views, grouped by size."""
        groups: dict[torch.Size, list[int]] = {}
        for number, image in enumerate(images):
            groups.setdefault(image.shape, []).append(number)
        results: dict[int, ViewTokens] = {}
        for members in groups.values():
            encoded = self._encode(torch.cat([images[number] for number in members]))
            for number, tokens in zip(members, encoded.tokens.chunk(len(members)), strict=True):
                results[number] = ViewTokens(tokens, encoded.grid)
        return [results[number] for number in range(len(images))]

    def _encode(self, images: Tensor) -> ViewTokens:
        patch = self.config.encoder.patch_size
        grid = (images.shape[2] // patch, images.shape[3] // patch)
        images = images.to(self.encoder.patch_embed.proj.weight)
        return ViewTokens(self.steps.encode(self._encode_in_chunks, images), grid)

    def _encode_in_chunks(self, images: Tensor) -> Tensor:
        needed = self.encoder.bytes_per_image((images.shape[2], images.shape[3]), images.element_size())
        chunk = max(1, self._budget(images.device) // needed)
        parts = [self.encoder(part) for part in images.split(chunk)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _predict(
        self, head: PointmapHead, features: FusedFeatures, views: Sequence[int] | None
    ) -> list[Pointmap]:
        count = len(features.grids)
        chosen = range(count) if views is None else views
        wrong = [view for view in chosen if not 0 <= view < count]
        if wrong:
            raise UserError(f"view {wrong[0]} does not exist; there are {count} views, numbered from 0")
        budget = self._budget(features.hooks[0].device)
        return self.steps.predict(head, features, chosen, budget)

    def _budget(self, device: torch.device) -> int:
        if self.memory_budget is not None:
            return self.memory_budget
        return CPU_MEMORY_BUDGET if device.type == "cpu" else GPU_MEMORY_BUDGET

    def _check_size(self, images: Tensor, name: str) -> None:
        patch = self.config.encoder.patch_size
        if images.ndim != 4 or images.shape[1] != 3:
            raise UserError(f"{name} has shape {tuple(images.shape)}, expected (batch, 3, height, width)")
        if images.shape[2] % patch or images.shape[3] % patch or not images.numel():
            size = f"{images.shape[3]}x{images.shape[2]}"
            raise UserError(f"{name} is {size}, expected multiples of {patch}; see prepare_image")


def _require_finite(finite: Tensor, what: str) -> None:
    """Raises UserError with the index of the first False in (N,) bool; synchronises with the device once."""
    if not finite.all():
        raise UserError(f"{what} {int(finite.int().argmin())} holds NaN or Inf; drop this image or repair it")


@torch.inference_mode(False)
def _safer_copy(model: Fast3R) -> Fast3R | None:
    """The same network in bfloat16, whose range is that of float32, or in float32 on a GPU without it; the
    residual stream is float32.  None for a network that is not in float16: there is nothing safer.
    """
    if model.dtype != torch.float16:
        return None
    device = next(model.parameters()).device
    other = copy.deepcopy(model, {id(model.steps): model.steps})  # processes are not copied
    return precision.in_dtype(other, precision.widest_range(device), stream=precision.stream_names(other))

"""The network for mapping: frames to tokens, windows of tokens to pointmaps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize as to_unit

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.config import WindowConfig
from fast3r_ros.mapping.cuda_graphs import Captured, CudaGraphs, Record
from fast3r_ros.mapping.data import EncodedView, Float64, Frame, Reconstruction, UInt8, WindowNetwork
from fast3r_ros.mapping.pointmaps import local_from_global, numbers_of, per_view
from fast3r_ros.mapping.streaming import SeenViews, continuation, maps_by_view
from fast3r_ros.mapping.view_maps import to_host, urgent_stream
from fast3r_ros.model import Fast3R, FusedFeatures, ViewTokens
from fast3r_ros.model.precision import all_finite
from fast3r_ros.model.preprocess import normalize, prepare_image, prepare_images
from fast3r_ros.model.speed.acceleration import acceleration_of
from fast3r_ros.model.speed.attention_choice import choose_attention
from fast3r_ros.model.speed.kv_cache import FusionMemory, KvCache
from fast3r_ros.model.transformer import index_embedding

Lap = Callable[[str], None]
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class PreparedFrame:
    """A frame at network size.

    pixels: (h, w, 3) uint8 on the network's device.  network_from_image: (3, 3) pixel transform.  intrinsics:
    (3, 3) at network size, or None.
    """

    pixels: Tensor
    network_from_image: Float64
    intrinsics: Float64 | None


def no_lap(stage: str) -> None:
    """The default `lap`: ignores the end of a stage."""


def computes(
    method: Callable[Concatenate[Fast3RNetwork, _Arguments], _Result],
) -> Callable[Concatenate[Fast3RNetwork, _Arguments], _Result]:
    """Run a method without gradients, with the model's GPU as the current device.

    Each thread has its own current device, by default the first.  Kernels outside of PyTorch (flash_attn,
    Triton) are launched on it, wherever their tensors are.
    """

    @wraps(method)
    def run(self: Fast3RNetwork, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with torch.inference_mode(), torch.cuda.device_of(next(self._model.parameters())):
            return method(self, *args, **kwargs)

    return run


class Fast3RNetwork(WindowNetwork):
    """A `WindowNetwork` based on `Fast3R`: each frame is encoded once, and fused in all of its windows.

    On a GPU images are resized there, and windows of the sizes given to `warm_up` run as CUDA graphs; other
    sizes give the same results, launched kernel by kernel.

    With the acceleration `stream`, only the new views of a window that continues the last one are processed;
    its `window` frame is then the last one's.
    """

    def __init__(self, model: Fast3R, image_size: int | None = None, record: Record | None = None) -> None:
        """image_size: longer side at the network in pixels, None for the model's own.

        record: recording of work of fixed shapes; by default as CUDA graphs on a GPU, and none on a CPU.
        """
        self._model = model
        self._image_size = image_size or model.config.image_size
        self._device = next(model.parameters()).device
        on_gpu = self._device.type == "cuda"
        self._attention_chosen = not on_gpu
        self._uploads = urgent_stream(self._device) if on_gpu and torch.cuda.is_available() else None
        if record is None and on_gpu and model.steps.plain_fusion:  # as in `_hooks_of`
            record = CudaGraphs()
        self._captured = Captured(record)
        self._kept_rows: dict[int, Tensor] = {}
        self._seen: SeenViews | None = None

    @property
    def model(self) -> Fast3R:
        """The model."""
        return self._model

    @property
    def captured(self) -> int:
        """Number of recorded functions."""
        return len(self._captured)

    @computes
    def warm_up(self, views: int, size: tuple[int, int], new: int = WindowConfig().stride) -> Reconstruction:
        """Run a window once and record it, so that the camera's first window is as fast as the others.

        On a GPU the fusion uses the fastest attention kernel for that number of tokens, unless one was
        chosen.

        size: width and height at the network, in pixels.  new: number of a window's views that are encoded
        together; single ones are recorded as well.  Returns the network's result for black images, with the
        right shapes but arbitrary values.
        """
        patch = self._model.config.encoder.patch_size
        self._take_fastest_attention(views * (size[0] // patch) * (size[1] // patch))
        pixels = torch.zeros((size[1], size[0], 3), dtype=torch.uint8, device=self._device)
        for count in sorted({1, new}):
            self._captured.capture("encode", self._tokens_of, pixels.expand(count, -1, -1, -1))
            view = self.encode_prepared([PreparedFrame(pixels, np.eye(3), None)] * count)[0]
        tokens, rows = view.tokens.tokens.repeat(1, views, 1), self._rows(views)
        if acceleration_of(self._model).stream > 1:
            self._captured.capture("remember", self._hooks_and_memory_of, tokens, rows)
        else:
            self._captured.capture("fuse", self._hooks_of, tokens, rows)
        features = self.fuse([view] * views)
        if self._model.downstream_head_local is not None:
            heads = self._heads_of(view.tokens.grid, views)
            self._captured.capture(_heads_name(view.tokens.grid), heads, *features.hooks)
        return self.pointmaps(features)

    def encode(self, frame: Frame, lap: Lap = no_lap) -> EncodedView:
        """Resize, crop and encode one frame.  Raises UserError for an unusable image.

        lap: called at the end of `preprocess`, `encode` and `describe`.
        """
        prepared = self.prepare(frame)
        lap("preprocess")
        return self.encode_prepared([prepared], lap)[0]

    def encode_all(self, frames: Sequence[Frame], lap: Lap = no_lap) -> list[EncodedView | UserError]:
        """Like `encode` for each frame, grouped by size; an unusable image gives its error instead."""
        results: dict[int, EncodedView | UserError] = {}
        groups: dict[torch.Size, dict[int, PreparedFrame]] = {}
        for number, frame in enumerate(frames):
            try:
                prepared = self.prepare(frame)
            except UserError as error:
                results[number] = error
            else:
                groups.setdefault(prepared.pixels.shape, {})[number] = prepared
        lap("preprocess")
        for members in groups.values():
            encoded = self.encode_prepared(list(members.values()), lap)
            results.update(zip(members, encoded, strict=True))
        return [results[number] for number in range(len(frames))]

    @computes
    def prepare(self, frame: Frame) -> PreparedFrame:
        """Resize and crop on the network's device.  Raises UserError for an unusable image."""
        if self._device.type == "cuda":
            pixels, transform = self._upload(frame.image)
        else:
            prepared = prepare_image(frame.image, self._image_size)
            pixels, transform = torch.from_numpy(prepared.pixels).to(self._device), prepared.pixel_transform
        intrinsics = None if frame.intrinsics is None else transform @ frame.intrinsics
        return PreparedFrame(pixels, transform, intrinsics)

    @computes
    def encode_prepared(self, frames: Sequence[PreparedFrame], lap: Lap = no_lap) -> list[EncodedView]:
        """Encode frames of one size together; repeated in a safer precision if tokens are not finite."""
        pixels = torch.stack([frame.pixels for frame in frames])
        replay = self._captured.find("encode", pixels)
        if replay is None:
            tokens = self._model.encode_pixels(pixels).tokens
            descriptors = _pooled(tokens)
        else:
            tokens, descriptors = replay(pixels)
        lap("encode")
        images, described = to_host(pixels, descriptors)
        if not np.isfinite(described).all() and (safer := self._model.safer()) is not None:
            tokens = safer.encode_pixels(pixels).tokens
            described = _pooled(tokens).cpu().numpy()
            tokens = tokens.to(self._model.dtype)
        lap("describe")
        patch = self._model.config.encoder.patch_size
        grid = (pixels.shape[1] // patch, pixels.shape[2] // patch)
        return [
            EncodedView(
                images[i],
                frame.network_from_image,
                frame.intrinsics,
                described[i],
                ViewTokens(tokens[i : i + 1], grid),
            )
            for i, frame in enumerate(frames)
        ]

    @computes
    def reconstruct(self, views: Sequence[EncodedView], lap: Lap = no_lap) -> Reconstruction:
        """One forward pass; the pointmaps stay on the model's device.  lap: see `encode`; fuse and heads."""
        result = self._pass(views, lap)
        if not self.overflows(result):
            return result
        self._seen = None  # a failed pass leaves no cache
        network, encoded = self.safer(views)
        return network._pass(encoded, no_lap)

    @computes
    def overflows(self, result: Reconstruction) -> bool:
        """Whether some maps are not finite and `safer` offers another precision.

        Synchronises with the device in that case.
        """
        return self._model.dtype == torch.float16 and not all_finite(numbers_of(result))

    @computes
    def safer(self, views: Sequence[EncodedView]) -> tuple[Fast3RNetwork, list[EncodedView]]:
        """For a pass that overflows: the network in a safer precision, and the views encoded by it.

        Counts the pass.
        """
        network = Fast3RNetwork(self._model.safer() or self._model, self._image_size)
        network._attention_chosen = True
        frames = [
            PreparedFrame(torch.from_numpy(view.image).to(self._device), np.eye(3), None) for view in views
        ]
        again = (network.encode_prepared([frame])[0] for frame in frames)
        return network, [
            replace(view, descriptor=found.descriptor, tokens=found.tokens)
            for view, found in zip(views, again, strict=True)
        ]

    def _pass(self, views: Sequence[EncodedView], lap: Lap) -> Reconstruction:
        every = acceleration_of(self._model).stream
        if every > 1:
            return self._streamed(views, every, lap)
        features = self.fuse(views)
        lap("fuse")
        result = self.pointmaps(features)
        lap("heads")
        return result

    @property
    def repeated_passes(self) -> int:
        """Number of passes repeated because their results were not finite."""
        return self._model.repeated_passes

    @torch.inference_mode()
    def _streamed(self, views: Sequence[EncodedView], every: int, lap: Lap) -> Reconstruction:
        """One pass over the new views since the last window, or over all views."""
        seen, self._seen = self._seen, None  # a failed pass leaves no cache
        step = continuation(seen, views, every)
        if seen is None or step is None:
            indices = self._model.default_indices(1, len(views))[0].tolist()
            del seen, step  # frees its memory before the new one
            features, memory = self._fuse_and_remember(views)
            lap("fuse")
            maps = maps_by_view(self.pointmaps(features))
            self._seen = SeenViews(tuple(views), tuple(indices), tuple(maps), memory, age=0)
        else:
            kept = [seen.indices[i] for i in step.kept]
            indices = self._model.further_indices(kept, len(step.fresh))
            tokens = [view.tokens for view in step.fresh]
            cache = KvCache(seen.memory, step.kept)
            features = self._model.fuse(tokens, torch.tensor([indices]), function=cache)
            lap("fuse")
            maps = maps_by_view(self.pointmaps(features))
            memory = cache.memory([view.tokens.shape[1] for view in tokens])
            self._seen = step.joined(seen, indices, maps, memory)
        lap("heads")
        return self._seen.maps_of(views)

    def _fuse_and_remember(self, views: Sequence[EncodedView]) -> tuple[FusedFeatures, FusionMemory]:
        """Like `fuse`, also returns the cache for a later pass."""
        tokens = [view.tokens for view in views]
        counts = tuple(view.tokens.shape[1] for view in tokens)
        self._take_fastest_attention(sum(counts))
        results = self._replayed("remember", tokens)
        if results is None:
            cache = KvCache()
            return self._model.fuse(tokens, function=cache), cache.memory(counts)
        blocks = len(self._model.decoder.dec_blocks)
        hooks, keys, values = results[: -2 * blocks], results[-2 * blocks : -blocks], results[-blocks:]
        features = FusedFeatures(tuple(hooks), tuple(view.grid for view in tokens))
        return features, FusionMemory(tuple(keys), tuple(values), counts)

    @computes
    def fuse(self, views: Sequence[EncodedView]) -> FusedFeatures:
        """The input of the heads for a window's views."""
        tokens = [view.tokens for view in views]
        self._take_fastest_attention(sum(view.tokens.shape[1] for view in tokens))
        hooks = self._replayed("fuse", tokens)
        if hooks is None:
            return self._model.fuse(tokens)
        return FusedFeatures(tuple(hooks), tuple(view.grid for view in tokens))

    @computes
    def pointmaps(self, features: FusedFeatures, views: Sequence[int] | None = None) -> Reconstruction:
        """Pointmaps of the chosen views (default all), in the given order."""
        if views is None and len(set(features.grids)) == 1:
            replay = self._captured.find(_heads_name(features.grids[0]), *features.hooks)
            if replay is not None:
                return Reconstruction(*(maps.unbind(0) for maps in replay(*features.hooks)))
        points_global, confidence_global = per_view(self._model.global_head(features, views))
        if self._model.downstream_head_local is None:
            first = self._model.global_head(features, [0])
            points_local = local_from_global(points_global, confidence_global, first[0])
            return Reconstruction(points_global, confidence_global, points_local, confidence_global)
        points_local, confidence_local = per_view(self._model.local_head(features, views))
        return Reconstruction(points_global, confidence_global, points_local, confidence_local)

    @computes
    def local_pointmaps(self, features: FusedFeatures, views: Sequence[int]) -> Reconstruction:
        """The local points of the chosen views, which are published, without running the global head.

        The global maps are omitted, unless the network has no local head.
        """
        if self._model.downstream_head_local is None:
            return self.pointmaps(features, views)
        return Reconstruction((), (), *per_view(self._model.local_head(features, views)))

    def _take_fastest_attention(self, tokens: int) -> None:
        """On a GPU, before the first pass: use the fastest kernel for the tokens, unless one was chosen."""
        if not self._attention_chosen:
            choose_attention(self._model, tokens)
            self._attention_chosen = True

    def _replayed(self, name: str, tokens: Sequence[ViewTokens]) -> Sequence[Tensor] | None:
        """The result of the function recorded for such a window; None if none was recorded."""
        if not self.captured or len({view.grid for view in tokens}) > 1:
            return None
        together, rows = torch.cat([view.tokens for view in tokens], dim=1), self._rows(len(tokens))
        replay = self._captured.find(name, together, rows)
        return None if replay is None else replay(together, rows)

    def _upload(self, image: UInt8) -> tuple[Tensor, Float64]:
        """Copy through pinned memory to the GPU and preprocess there, in parallel with its other work."""
        writable = np.require(image, requirements=["C", "W"])
        with torch.cuda.stream(self._uploads):
            pinned = torch.empty(image.shape, dtype=torch.uint8, pin_memory=True)
            source = pinned.copy_(torch.from_numpy(writable)).to(self._device, non_blocking=True)
            pixels, transform = prepare_images(source[None], self._image_size)
        if self._uploads is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._uploads)
            pixels.record_stream(current)
        return pixels[0], transform

    def _rows(self, views: int) -> Tensor:
        """The index embedding (1, V, C_d) of a window's views, cached on the device."""
        if views not in self._kept_rows:
            indices = self._model.default_indices(1, views)
            rows = index_embedding(indices, self._model.config.decoder.embed_dim)
            self._kept_rows[views] = rows.to(next(self._model.parameters()))
        return self._kept_rows[views]

    # Recorded functions: they use only tensors and do not synchronise with the device.

    def _tokens_of(self, pixels: Tensor) -> Sequence[Tensor]:
        """(B, h, w, 3) uint8 to tokens (B, T, C) and descriptors (B, C)."""
        tokens = self._model.encoder(normalize(pixels).to(next(self._model.parameters())))
        return tokens, _pooled(tokens)

    def _hooks_of(self, tokens: Tensor, rows: Tensor) -> Sequence[Tensor]:
        """Tokens (1, V * n, C) of V views of one size to the hooks."""
        views = rows.shape[1]
        hooks: tuple[Tensor, ...] = self._model.decoder(tokens, rows, [tokens.shape[1] // views] * views)
        return hooks

    def _hooks_and_memory_of(self, tokens: Tensor, rows: Tensor) -> Sequence[Tensor]:
        """Like `_hooks_of`, followed by the keys and the values of every block."""
        views, cache = rows.shape[1], KvCache()
        counts = [tokens.shape[1] // views] * views
        hooks: tuple[Tensor, ...] = self._model.decoder(tokens, rows, counts, cache)
        memory = cache.memory(counts)
        return [*hooks, *memory.keys, *memory.values]

    def _heads_of(self, grid: tuple[int, int], views: int) -> Callable[..., Sequence[Tensor]]:
        """Hooks to points and confidence of the global and of the local head, each (V, h, w, ...)."""

        def heads(*hooks: Tensor) -> Sequence[Tensor]:
            features = FusedFeatures(hooks, (grid,) * views)
            both = per_view(self._model.global_head(features)), per_view(self._model.local_head(features))
            return [torch.stack(maps) for pair in both for maps in pair]

        return heads


def _pooled(tokens: Tensor) -> Tensor:
    """Tokens (B, T, C) to descriptors (B, C) of unit norm, float32."""
    return to_unit(tokens.float().mean(dim=1), dim=-1)


def _heads_name(grid: tuple[int, int]) -> str:
    """Views of different shape can have the same number of tokens."""
    return f"heads of {grid[0]}x{grid[1]} patches"

"""The measured process of `against_release.py`: one implementation, controlled over stdin.

Both implementations run at the same time on one GPU.  PyTorch's allocator caches reserved memory, so each
frees a task's memory before it answers; otherwise there might be no room for the other.
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import sys
import time
import types
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fast3r_ros.evaluation import golden_recipes as recipes
from fast3r_ros.model import Fast3R, Fast3RConfig, FusedFeatures, ViewTokens
from fast3r_ros.model.checkpoint import aliases
from fast3r_ros.model.precision import DTYPES, in_dtype
from fast3r_ros.model.speed.attention_choice import choose_attention
from fast3r_ros.model.speed.kv_cache import KvCache
from fast3r_ros.model.transformer import index_embedding

CHUNK = 16  # number of views processed at a time
# width, depth, heads of encoder and fusion
SHAPES = {
    "base": ((768, 12, 12), (768, 12, 12)),
    "paper": ((1024, 24, 16), (768, 12, 12)),
    "large": ((1024, 24, 16), (1024, 24, 16)),
}

Results = dict[str, Tensor]
Saved = dict[str, np.ndarray]


def config(network: str, attention: str) -> dict[str, Any]:
    """The official layout's config.json of the compared network."""
    encoder, fusion = (
        dict(zip(("embed_dim", "depth", "num_heads"), shape, strict=True)) for shape in SHAPES[network]
    )
    return {
        "encoder_args": {
            **encoder,
            "attn_implementation": attention,
            "encoder_type": "croco",
            "img_size": 512,
            "patch_size": 16,
            "patch_embed_cls": "PatchEmbedDust3R",
            "mlp_ratio": 4,
            "pos_embed": "RoPE100",
        },
        "decoder_args": {
            **fusion,
            "attn_implementation": attention,
            "decoder_type": "fast3r",
            "random_image_idx_embedding": False,
            "attn_bias_for_inference_enabled": False,
            "enc_embed_dim": encoder["embed_dim"],
            "mlp_ratio": 4.0,
            "qkv_bias": True,
            "drop": 0.0,
            "attn_drop": 0.0,
        },
        "head_args": {
            "head_type": "dpt",
            "output_mode": "pts3d",
            "landscape_only": False,
            "depth_mode": ["exp", float("-inf"), float("inf")],
            "conf_mode": ["exp", 1, float("inf")],
            "patch_size": 16,
            "with_local_head": True,
        },
    }


def release_tasks(options: dict[str, Any], images: list[Tensor]) -> dict[str, Callable[[], Results]]:
    """The official network's tasks.

    On a GPU its weights stay float32 and it computes under autocast, as in its own inference function.
    """
    sys.path.insert(0, options["release"])
    # The model's file imports the data sets' code for a name in an error message, and training packages
    # (hydra, lightning, rich) for a logger.
    for module, name, stand_in in (
        ("fast3r.dust3r.datasets.base.base_stereo_view_dataset", "view_name", str),
        ("fast3r.utils", "pylogger", types.SimpleNamespace(RankedLogger=quiet_logger)),
    ):
        sys.modules[module] = types.ModuleType(module)
        setattr(sys.modules[module], name, stand_in)
    from fast3r.models.fast3r import Fast3R as Release

    model = Release(**config(options["network"], options["attention"]))
    load(model)
    model.to(options["device"])
    table = model.decoder.image_idx_emb
    if options["many"] > len(table):  # it ends at 1000 views; for more only the time is compared
        rows = index_embedding(torch.arange(options["many"]), table.shape[1])
        model.decoder.image_idx_emb = rows.to(table)
    names = {"pts3d_in_other_view": "global", "conf": "confidence", "pts3d_local": "local"}
    dtype = getattr(torch, options["dtype"])
    automatic = dtype != torch.float32

    def forward(images: list[Tensor]) -> list[dict[str, Tensor]]:
        views = [{"img": image, "true_shape": torch.tensor([image.shape[2:]])} for image in images]
        with torch.autocast(images[0].device.type, dtype if automatic else torch.bfloat16, automatic):
            results: list[dict[str, Tensor]] = model(views)
        return results

    def full() -> Results:
        return {
            f"{ours}_{number}": view[theirs]
            for number, view in enumerate(forward(images))
            for theirs, ours in names.items()
        }

    def many() -> Results:
        for view in forward(repeated(images, options["many"])):
            for name in names:
                view[name] = view[name].cpu()
        return {}

    small = [image[..., :64, :64] for image in images[:1]]
    return {
        "full": lambda: measured(full, options),
        "many": lambda: measured(many, options),
        "touch": lambda: {"none": forward(small)[0]["conf"]},
    }


class OurPasses:
    """The measured passes of our network, over images (1, 3, H, W) on the device."""

    def __init__(self, options: dict[str, Any], images: list[Tensor]) -> None:
        model = Fast3R(Fast3RConfig.from_dict(config(options["network"], "pytorch_naive")))
        load(model)
        self._model = in_dtype(model.to(options["device"]), DTYPES[options["dtype"]]).lay_out_heads()
        self._kernel_for = 0  # views
        self._options, self._images = options, images
        self._new = images[-options["slide"] :]
        self._tokens: list[ViewTokens] = []  # of all other images, computed on first use

    def full(self) -> Results:
        """All views, none of them encoded before."""
        self._take_fastest_attention(len(self._images))

        def run() -> Results:
            return {
                f"{name}_{number}": value
                for number, view in enumerate(self._model(self._images))
                for name, value in (
                    ("global", view.global_points.points),
                    ("confidence", view.global_points.confidence),
                    ("local", view.local_points.points if view.local_points else torch.empty(0)),
                )
            }

        return measured(run, self._options)

    def slide(self) -> Results:
        """The window with cached tokens of older views, all views decoded like in the mapper; exact."""
        known = self._known_tokens()

        def run() -> Results:
            features = self._model.fuse([*known, *self._encoded(self._new)])
            return self._points("slide", features, range(len(self._images)))

        return measured(run, self._options)

    def stream(self) -> Results:
        """Only the new views, with the cached keys and values of older ones; approximate.

        This is the pass of all but one of N windows with the acceleration `stream=N`.
        """
        known, model = self._known_tokens(), self._model
        first = KvCache()
        model.fuse(known, function=first)
        function = KvCache(first.memory([view.tokens.shape[1] for view in known]), range(len(known)))
        taken = model.default_indices(1, len(known))[0].tolist()
        indices = torch.tensor([model.further_indices(taken, len(self._new))])

        def run() -> Results:
            features = model.fuse(self._encoded(self._new), indices, function=function)
            return self._points("stream", features, range(len(self._new)), first=len(known))

        return measured(run, self._options)

    def many(self) -> Results:
        """Many views, encoded and predicted a few at a time."""
        self._take_fastest_attention(self._options["many"])
        return measured(self._many, self._options)

    def touch(self) -> Results:
        """A pass of minimal size."""
        small = [image[..., :64, :64] for image in self._images[:1]]
        return {"none": self._model(small)[0].global_points.confidence}

    def _many(self) -> Results:
        views = repeated(self._images, self._options["many"])
        starts = range(0, len(views), CHUNK)
        tokens = [view for start in starts for view in self._encoded(views[start : start + CHUNK])]
        features = self._model.fuse(tokens)
        del tokens
        for start in starts:
            chosen = range(start, min(start + CHUNK, len(views)))
            for head in (self._model.global_head, self._model.local_head):
                for pointmap in head(features, chosen):
                    pointmap.points.cpu(), pointmap.confidence.cpu()
        return {}

    def _take_fastest_attention(self, views: int) -> None:
        """On a GPU, like the node before its first window and `reconstruct` before one pass."""
        if self._options["device"] == "cuda" and self._kernel_for != views:
            height, width = self._options["size"]
            self._model.set_attention("auto")
            kernel = choose_attention(self._model, views * (height // 16) * (width // 16))
            self._kernel_for, self._options["kernel"] = views, kernel

    def _known_tokens(self) -> list[ViewTokens]:
        if not self._tokens:
            older = self._images[: -len(self._new)]
            self._tokens = [view for image in older for view in self._encoded([image])]
        return self._tokens

    def _encoded(self, images: list[Tensor]) -> list[ViewTokens]:
        tokens = self._model.encode(torch.cat(images))
        return [ViewTokens(part, tokens.grid) for part in tokens.tokens.chunk(len(images))]

    def _points(self, name: str, features: FusedFeatures, chosen: range, first: int = 0) -> Results:
        """Both heads' points of some views; the features start with image `first`."""
        maps = {
            "global": self._model.global_head(features, chosen),
            "local": self._model.local_head(features, chosen),
        }
        return {
            f"{name}_{head}_{first + number}": view.points
            for head, views in maps.items()
            for number, view in zip(chosen, views, strict=True)
        }


def our_tasks(options: dict[str, Any], images: list[Tensor]) -> dict[str, Callable[[], Results]]:
    """Our network's tasks; their cached inputs are prepared outside of the measured times."""
    passes = OurPasses(options, images)
    return {
        "full": passes.full,
        "slide": passes.slide,
        "stream": passes.stream,
        "many": passes.many,
        "touch": passes.touch,
    }


def quiet_logger(name: str, **_: Any) -> logging.Logger:
    """The release's own logger without its ranks."""
    return logging.getLogger(name)


def repeated(images: list[Tensor], count: int) -> list[Tensor]:
    """The images repeated, `count` in total."""
    return [images[number % len(images)] for number in range(count)]


def load(model: torch.nn.Module) -> None:
    """Give both networks the same weights, which keep the numbers in range."""
    first_names = aliases(model.state_dict())
    for key, tensor in model.state_dict().items():
        source = torch.Generator().manual_seed(zlib.crc32(first_names.get(key, key).encode()))
        if key.endswith("bias"):
            tensor.normal_(0, 0.02, generator=source)
        elif tensor.ndim == 1:
            tensor.normal_(1, 0.05, generator=source)
        else:
            gain = 0.15 if key.endswith("dpt.head.4.weight") else 1.0
            tensor.normal_(0, gain * tensor[0].numel() ** -0.5, generator=source)
    model.eval()


def measured(task: Callable[[], Results], options: dict[str, Any]) -> Results:
    """Run a task; its wall time and the processor time of all threads are added to the result."""
    synchronize(options)
    wall, processor = time.perf_counter(), time.process_time()
    result = task()
    synchronize(options)
    result["seconds"] = torch.tensor(time.perf_counter() - wall, dtype=torch.float64)
    result["processor_seconds"] = torch.tensor(time.process_time() - processor, dtype=torch.float64)
    return result


def synchronize(options: dict[str, Any]) -> None:
    """Wait until the GPU has finished all queued work."""
    if options["device"] == "cuda":
        torch.cuda.synchronize()


def begin_peak(options: dict[str, Any]) -> None:
    """Reset the peak of the memory."""
    if options["device"] == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak(options: dict[str, Any]) -> int:
    """Peak memory since `begin_peak`, in bytes."""
    return torch.cuda.max_memory_allocated() if options["device"] == "cuda" else memory("VmHWM")


def in_use(options: dict[str, Any]) -> int:
    """The memory in use now, in bytes."""
    return torch.cuda.memory_allocated() if options["device"] == "cuda" else memory("VmRSS")


def memory(field: str) -> int:
    """A field of this process's memory status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def release_memory() -> None:
    """Return freed memory to the system, for the other process and for complete measurements."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def answer(task: Callable[[], Results], options: dict[str, Any], loaded: int) -> tuple[dict[str, Any], Saved]:
    """Run a task: its cost and our attention kernel, or why it failed, and its results on the host.

    loaded: bytes in use before any task.  The task's own memory is free when this returns.
    loaded: bytes in use before any task.  What the task itself needed is free when this returns.
    """
    begin_peak(options)
    try:
        with torch.inference_mode():
            result = task()
    except torch.OutOfMemoryError:
        return {"failed": "out of memory"}, {}
    times = {key: float(result.pop(key)) for key in ("seconds", "processor_seconds")}
    told = {**times, "peak_bytes": peak(options) - loaded, "kernel": options.get("kernel", "")}
    return told, {key: value.float().cpu().numpy() for key, value in result.items()}


def main() -> None:
    """Build the network, then run the tasks from stdin; `save` writes the results of all tasks so far."""
    options = json.loads(sys.argv[1])
    torch.set_num_threads(options["threads"])
    images = [
        image.to(options["device"])
        for image in recipes.views("against_release", 1, [options["size"]] * options["views"])
    ]
    build = release_tasks if options["implementation"] == "release" else our_tasks
    tasks = build(options, images)
    with torch.inference_mode():
        # a minimal pass, so that weights and libraries are in memory before measuring
        tasks["touch"]()
    release_memory()
    loaded = in_use(options)
    print(json.dumps({"ready": True}), flush=True)
    save: Callable[..., None] = np.savez
    saved: Saved = {}
    for line in sys.stdin:
        if line.strip() == "save":
            save(options["results"], **saved)
            told: dict[str, Any] = {"saved": len(saved)}
        else:
            told, results = answer(tasks[line.strip()], options, loaded)
            saved.update(results)
            release_memory()  # before the answer, after which the other process runs
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()

"""The measured process of `against_release.py`: one implementation, told over stdin what to run."""

from __future__ import annotations

import ctypes
import gc
import json
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
from fast3r_ros.model import Fast3R, Fast3RConfig
from fast3r_ros.model.checkpoint import aliases

SLIDE, OVERLAP = 2, 2
SMALL = [torch.zeros(1, 3, 64, 64)]


def config(attention: str) -> dict[str, Any]:
    """The official layout's config.json of the compared network."""
    shape = {"embed_dim": 768, "depth": 12, "num_heads": 12, "attn_implementation": attention}
    return {
        "encoder_args": {
            **shape,
            "encoder_type": "croco",
            "img_size": 512,
            "patch_size": 16,
            "patch_embed_cls": "PatchEmbedDust3R",
            "mlp_ratio": 4,
            "pos_embed": "RoPE100",
        },
        "decoder_args": {
            **shape,
            "decoder_type": "fast3r",
            "random_image_idx_embedding": False,
            "attn_bias_for_inference_enabled": False,
            "enc_embed_dim": 768,
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


def release_tasks(
    options: dict[str, Any], images: list[Tensor]
) -> dict[str, Callable[[], dict[str, Tensor]]]:
    """The official network's tasks."""
    sys.path.insert(0, options["release"])
    # the model's file imports the data sets' code for a name that it uses only in an error message
    unused = types.ModuleType("fast3r.dust3r.datasets.base.base_stereo_view_dataset")
    unused.view_name = str  # type: ignore[attr-defined]
    sys.modules[unused.__name__] = unused
    from fast3r.models.fast3r import Fast3R as Release

    model = Release(**config(options["attention"]))
    load(model)

    def views_of(images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [{"img": image, "true_shape": torch.tensor([image.shape[2:]])} for image in images]

    views = views_of(images)
    small = views_of(SMALL)

    def full() -> dict[str, Tensor]:
        names = {"pts3d_in_other_view": "global", "conf": "confidence", "pts3d_local": "local"}
        return {
            f"{ours}_{number}": view[theirs]
            for number, view in enumerate(model(views))
            for theirs, ours in names.items()
        }

    return {"full": lambda: measured(full), "touch": lambda: {"none": model(small)[0]["conf"]}}


def our_tasks(options: dict[str, Any], images: list[Tensor]) -> dict[str, Callable[[], dict[str, Tensor]]]:
    """Our network's full pass, and a window whose older views' tokens are kept."""
    model = Fast3R(Fast3RConfig.from_dict(config("pytorch_naive")))
    load(model)
    kept: list[Any] = []

    def full() -> dict[str, Tensor]:
        return {
            f"{name}_{number}": value
            for number, view in enumerate(model(images))
            for name, value in (
                ("global", view.global_points.points),
                ("confidence", view.global_points.confidence),
                ("local", view.local_points.points if view.local_points else torch.empty(0)),
            )
        }

    def slide() -> dict[str, Tensor]:
        newest = torch.cat(images[-SLIDE:])
        tokens = model.encode(newest)
        new = [type(tokens)(part, tokens.grid) for part in tokens.tokens.chunk(SLIDE)]
        features = model.fuse([*kept, *new])
        chosen = range(len(images) - SLIDE - OVERLAP, len(images))
        maps = {"global": model.global_head(features, chosen), "local": model.local_head(features, chosen)}
        return {
            f"slide_{name}_{number}": view.points
            for name, views in maps.items()
            for number, view in zip(chosen, views, strict=True)
        }

    def prepared_slide() -> dict[str, Tensor]:
        if not kept:
            kept.extend(model.encode(image) for image in images[:-SLIDE])
        return measured(slide)

    return {
        "full": lambda: measured(full),
        "slide": prepared_slide,
        "touch": lambda: {"none": model(SMALL)[0].global_points.confidence},
    }


def load(model: torch.nn.Module) -> None:
    """Give either network the same weights, which keep the numbers in range."""
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


def measured(task: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Run a task; its wall time and the processor time of all threads are added to the result."""
    wall, processor = time.perf_counter(), time.process_time()
    result = task()
    result["seconds"] = torch.tensor(time.perf_counter() - wall, dtype=torch.float64)
    result["processor_seconds"] = torch.tensor(time.process_time() - processor, dtype=torch.float64)
    return result


def memory(field: str) -> int:
    """A field of this process's memory status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def trim_memory() -> None:
    """Give freed memory back to the system, so that what follows is counted in full."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def main() -> None:
    """Build the network, then run what stdin asks for."""
    options = json.loads(sys.argv[1])
    torch.set_num_threads(options["threads"])
    images = recipes.views("against_release", 1, [options["size"]] * options["views"])
    build = release_tasks if options["implementation"] == "release" else our_tasks
    tasks = build(options, images)
    with torch.inference_mode():
        tasks[
            "touch"
        ]()  # a pass of no size, so that weights and libraries are in memory before anything counts
    trim_memory()
    loaded = memory("VmRSS")
    print(json.dumps({"ready": True}), flush=True)
    results: dict[str, np.ndarray] = {}
    for line in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
        with torch.inference_mode():
            result = tasks[line.strip()]()
        times = {key: float(result.pop(key)) for key in ("seconds", "processor_seconds")}
        print(json.dumps({**times, "peak_bytes": memory("VmHWM") - loaded}), flush=True)
        results.update({key: value.numpy() for key, value in result.items()})
    save: Callable[..., None] = np.savez
    save(options["results"], **results)


if __name__ == "__main__":
    main()

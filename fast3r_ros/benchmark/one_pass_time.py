"""`fast3r benchmark scale`: one forward pass over hundreds of views, as in `reconstruct --mode all`.

Pictures arrive and are encoded a few at a time, only the hooks are stored, and the heads' results are copied
to the host a few views at a time and dropped, so that the measurement does not depend on a disk.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import numpy as np
import torch

from fast3r_ros.benchmark.measure import (
    PeakMemory,
    add_keep_argument,
    collected,
    machine,
    summary,
    synchronize,
)
from fast3r_ros.benchmark.models import (
    add_dtype_argument,
    add_model_arguments,
    attention_kernel,
    chosen_device,
    default_dtype,
    load,
    parse_network_size,
)
from fast3r_ros.benchmark.roofline import DevicePeaks, compared, measure_device_peaks, stages
from fast3r_ros.mapping.data import EncodedView, Frame
from fast3r_ros.mapping.network import Fast3RNetwork
from fast3r_ros.mapping.one_pass import CHUNK, streamed
from fast3r_ros.mapping.view_maps import to_host
from fast3r_ros.model import Fast3R
from fast3r_ros.model.precision import resolve_dtype

PICTURES = 8  # number of different ones, used repeatedly
FEW_RUNS = 3
LONG = 500  # views; longer passes run only once


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    add_model_arguments(parser)
    parser.add_argument(
        "--views",
        type=int,
        nargs="+",
        default=[320, 1000, 1500],
        help="numbers of views (default: 320 to 1500)",
    )
    parser.add_argument("--size", default="512x384", metavar="WxH", help="size of a view at the network")
    add_dtype_argument(parser)
    parser.add_argument(
        "--chunk",
        type=int,
        default=CHUNK,
        help="views encoded and predicted at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--runs",
        type=int,
        help=f"measured passes of each (default: {FEW_RUNS}, and 1 above {LONG} views, which take minutes)",
    )
    add_keep_argument(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Passes for each number of views, after a short warm-up pass; returns the JSON document."""
    device = chosen_device(arguments)
    size, dtype = parse_network_size(arguments.size), arguments.dtype or default_dtype(device)
    model = load(arguments.model, device, resolve_dtype(dtype, device), arguments.attention)
    peaks = measure_device_peaks(device, resolve_dtype(dtype, device))
    measure_passes(model, 2, size, arguments.chunk, peaks, 1)

    def results() -> Iterator[dict[str, Any]]:
        for views in sorted(arguments.views):
            runs = arguments.runs or (FEW_RUNS if views <= LONG else 1)
            kernel = attention_kernel(model, arguments.attention, views, size)
            setting = {"views": views, "size_wh": list(size), "dtype": dtype, "attention": kernel}
            yield {**setting, **measure_passes(model, views, size, arguments.chunk, peaks, runs)}

    document = {
        "benchmark": "scale",
        "machine": machine(device),
        "model": arguments.model,
        "attention": arguments.attention,
        "chunk": arguments.chunk,
        "ceilings": {dtype: asdict(peaks)},
    }
    return collected(document, results(), arguments.keep)


def measure_passes(
    model: Fast3R, views: int, size: tuple[int, int], chunk: int, peaks: DevicePeaks, runs: int
) -> dict[str, Any]:
    """Each stage with its roofline, and the peak memory of device and host above the initial usage.

    `failed` gives the reason for missing numbers: a pass that does not fit into memory is also a result.
    """
    network, device = Fast3RNetwork(model, max(size)), next(model.parameters()).device
    passes, memory_peaks, host_peaks = [], [], []
    for _ in range(max(runs, 1)):
        try:
            with PeakMemory(device) as peak, PeakMemory(torch.device("cpu")) as host:
                passes.append(_run_pass(network, device, views, size, chunk))
        except torch.OutOfMemoryError:
            if device.type == "cuda":
                torch.cuda.empty_cache()
            return {"failed": "out of memory"}
        memory_peaks.append(peak.bytes)
        host_peaks.append(host.bytes)
    work = stages(model.config, views, size, next(model.parameters()).element_size())
    return {
        "stages": {
            name: compared(summary([each[name] for each in passes]), operations, peaks, device)
            for name, operations in work.items()
        },
        "total_s": statistics.median(sum(each.values()) for each in passes),
        "peak_bytes": _most(memory_peaks),
        "host_peak_bytes": _most(host_peaks),
    }


def _most(counts: Sequence[int | None]) -> int | None:
    """The largest count, None if the system does not report it."""
    known = [count for count in counts if count is not None]
    return max(known) if known else None


def _run_pass(
    network: Fast3RNetwork, device: torch.device, views: int, size: tuple[int, int], chunk: int
) -> dict[str, float]:
    laps = [time.perf_counter()]

    def lap() -> None:
        synchronize(device)
        laps.append(time.perf_counter())

    encoded: list[EncodedView] = []
    frames = _frames(views, size)
    for _ in range(0, views, chunk):
        encoded += network.encode_prepared([network.prepare(frame) for frame in islice(frames, chunk)])
    lap()
    features = network.fuse(encoded)
    encoded.clear()
    lap()
    for _, maps in streamed(network.pointmaps, features, range(views), chunk):
        for view in zip(maps.points_global, maps.confidence_global, maps.points_local, strict=True):
            to_host(*view)
    lap()
    return dict(zip(("encode", "fuse", "heads"), np.diff(laps).tolist(), strict=True))


def _frames(views: int, size: tuple[int, int]) -> Iterator[Frame]:
    """Frames at the network's size, from prepared pictures."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (size[1], size[0], 3), np.uint8) for _ in range(PICTURES)]
    return (Frame(i, "camera", pictures[i % PICTURES]) for i in range(views))

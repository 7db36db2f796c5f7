"""`fast3r benchmark window`: from the newest frame's arrival to the packed message, stage by stage.

A window of a fixed number of views slides by 1, 2, 4, 8 frames.  The network processes the camera's images in
full.  With random weights its results are meaningless, so mapping continues with the synthetic ground truth
of the same views on the same device; the stand-in's time is not counted.  The node's messages of a window are
packed: the newest view's cloud, and confidence and depth of every new view.  For comparison a full pass runs
the same network in the same process: all views of a window are encoded, fused and decoded again.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch

from fast3r_ros.benchmark.measure import (
    Measurement,
    add_keep_argument,
    collected,
    machine,
    measure,
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
from fast3r_ros.errors import UserError
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import EncodedView, Frame, Reconstruction, ViewEstimate, WindowNetwork
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.mapping.network import Fast3RNetwork
from fast3r_ros.mapping.point_records import view_bytes
from fast3r_ros.model.precision import resolve_dtype
from fast3r_ros.model.speed.acceleration import Acceleration, accelerate
from fast3r_ros.synthetic.oracle_network import OracleNetwork
from fast3r_ros.synthetic.sequence import SyntheticSequence, loop_sequence

NETWORK_STAGES = ("encode", "fuse", "heads")
CAMERA_FACTOR = 2.5  # camera pixels per network pixel, along a side
OVERLAP = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    add_model_arguments(parser)
    parser.add_argument("--views", type=int, default=32, help="views of the window (default: %(default)s)")
    parser.add_argument("--slides", type=int, nargs="+", default=[1, 2, 4, 8], help="new views per window")
    parser.add_argument("--size", default="512x384", metavar="WxH", help="size of a view at the network")
    add_dtype_argument(parser)
    parser.add_argument("--runs", type=int, default=5, help="measured windows of each slide")
    parser.add_argument(
        "--accelerate", default="exact", metavar="WHAT", help="as for reconstruct (default: %(default)s)"
    )
    parser.add_argument("--no-capture", action="store_true", help="on a GPU: without CUDA graphs")
    add_keep_argument(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure every slide; returns the JSON document.  Raises UserError for a slide that is too long."""
    wrong = [slide for slide in arguments.slides if not 0 < slide < arguments.views]
    if wrong:
        raise UserError(
            f"--slides {wrong[0]}: a window of {arguments.views} views slides by 1 or more, but not by all"
        )
    device = chosen_device(arguments)
    size = parse_network_size(arguments.size)
    acceleration = Acceleration.parse(arguments.accelerate)
    dtype = arguments.dtype or default_dtype(device)
    model = load(arguments.model, device, resolve_dtype(dtype, device), arguments.attention)
    accelerate(model, acceleration)
    kernel = attention_kernel(model, arguments.attention, arguments.views, size)
    network = Fast3RNetwork(model, max(size))
    if device.type == "cuda" and not arguments.no_capture:
        for slide in arguments.slides:
            network.warm_up(arguments.views, size, slide)
    most = max(arguments.slides)
    sequence = loop_sequence(width=size[0], height=size[1])
    # a whole number of cycles of passes
    runs = -(-arguments.runs // acceleration.stream) * acceleration.stream
    frames = [sequence[i] for i in range(arguments.views + OVERLAP + most * (2 + runs))]
    full = full_pass(network, frames[: arguments.views], device, arguments.runs)
    results = (
        measure_slide(StandIn(network, sequence, frames, device), frames, arguments.views, slide, runs, full)
        for slide in arguments.slides
    )
    document = {
        "benchmark": "window",
        "machine": machine(device),
        "model": arguments.model,
        "attention": kernel,
        "dtype": dtype,
        "accelerate": str(acceleration),
        "size_wh": list(size),
        "camera_wh": [round(side * CAMERA_FACTOR) for side in size],
        "captured": network.captured,
        "full_pass": full.content(),
    }
    return collected(document, results, arguments.keep)


class StandIn(WindowNetwork):
    """A `WindowNetwork` that runs the real one on the camera's image and returns the ground truth.

    seconds, processor: stage -> wall and processor time since the last `clear`.  `stand_in` is the time of
    the ground truth, which is only needed for the benchmark.
    """

    def __init__(
        self,
        network: Fast3RNetwork,
        sequence: SyntheticSequence,
        frames: Sequence[Frame],
        device: torch.device,
    ) -> None:
        self._network, self._device = network, device
        self._truth = OracleNetwork(sequence)
        self._pictures = {frame.stamp_ns: _from_camera(frame) for frame in frames}
        self.seconds: dict[str, float] = defaultdict(float)
        self.processor: dict[str, float] = defaultdict(float)
        self._last = self._last_busy = 0.0

    def clear(self) -> None:
        """Start a window."""
        self.seconds.clear()
        self.processor.clear()

    def encode(self, frame: Frame) -> EncodedView:
        """See `WindowNetwork`; the tokens are a pair of the real network's and the ground truth's."""
        self._begin()
        real = self._network.encode(self._pictures[frame.stamp_ns], self._lap)
        true = self._truth.encode(frame)
        self._lap("stand_in")
        return replace(true, tokens=(real, true))

    def encode_all(self, frames: Sequence[Frame]) -> list[EncodedView | UserError]:
        """See `EncodesTogether`."""
        self._begin()
        real = self._network.encode_all([self._pictures[frame.stamp_ns] for frame in frames], self._lap)
        true = [self._truth.encode(frame) for frame in frames]
        self._lap("stand_in")
        return [replace(view, tokens=tokens) for view, *tokens in zip(true, real, true, strict=True)]

    def reconstruct(self, views: Sequence[EncodedView]) -> Reconstruction:
        """See `WindowNetwork`."""
        self._begin()
        self._network.reconstruct([view.tokens[0] for view in views], self._lap)
        truth = self._truth.reconstruct([view.tokens[1] for view in views])
        answer = Reconstruction(
            *(
                [view.to(self._device) for view in maps]
                for maps in (
                    truth.points_global,
                    truth.confidence_global,
                    truth.points_local,
                    truth.confidence_local,
                )
            )
        )
        self._lap("stand_in")
        return answer

    def _begin(self) -> None:
        synchronize(self._device)
        self._last, self._last_busy = time.perf_counter(), time.process_time()

    def _lap(self, stage: str) -> None:
        synchronize(self._device)
        now, busy = time.perf_counter(), time.process_time()
        self.seconds[stage] += now - self._last
        self.processor[stage] += busy - self._last_busy
        self._last, self._last_busy = now, busy


def full_pass(
    network: Fast3RNetwork, frames: Sequence[Frame], device: torch.device, runs: int
) -> Measurement:
    """A completely new window: every view encoded, all fused exactly and decoded."""
    prepared = [network.prepare(_from_camera(frame)) for frame in frames]

    def run_all() -> None:
        network.pointmaps(network.fuse([network.encode_prepared([frame])[0] for frame in prepared]))

    return measure(run_all, device, runs, memory=False)[1]


def measure_slide(
    network: StandIn, frames: Sequence[Frame], views: int, slide: int, runs: int, full: Measurement
) -> dict[str, Any]:
    """Fill a window, let it slide twice unmeasured, then measure `runs` windows.

    mean_s: mean time of the windows, from the newest frame to the messages.  share_of_full_pass: its ratio to
    the full pass of the network, `full`.
    """
    mapper = Mapper(network, window_config(views, slide))
    waiting = iter(frames)
    first = views - mapper.config.window.overlap
    for count in [first] + [slide] * -(-(mapper.config.window.overlap + slide) // slide):
        _window(mapper, network, waiting, count)
    samples, busy = zip(*(_window(mapper, network, waiting, slide) for _ in range(runs)), strict=True)
    stages = {name: summary([sample[name] for sample in samples]) for name in samples[0]}
    network_s = sum(stages[name].median_s for name in NETWORK_STAGES)
    mean_s, busy_mean_s = (
        statistics.mean(values)
        for values in ([sample["total"] for sample in samples], [total for _, total in busy])
    )
    assert full.processor_s is not None
    return {
        "views": views,
        "slide": slide,
        "stages": {name: stage.content() for name, stage in stages.items()},
        "windows_accepted": mapper.status().windows,
        "windows_rejected": mapper.status().windows_rejected,
        "mean_s": mean_s,
        "share_of_full_pass": mean_s / full.median_s,
        **outside(network_s, stages["total"].median_s),
        # of all threads of the host, nearly independent of other work
        "processor": {
            "mean_s": busy_mean_s,
            "share_of_full_pass": busy_mean_s / full.processor_s,
            **outside(*(statistics.median(times) for times in zip(*busy, strict=True))),
        },
    }


def outside(network_s: float, total_s: float) -> dict[str, float]:
    """The time of a window outside of its network, and its ratio to the network's time."""
    rest = total_s - network_s
    return {"network_s": network_s, "outside_network_s": rest, "outside_share": rest / network_s}


def window_config(views: int, slide: int) -> MapperConfig:
    """Every frame is a keyframe, windows hold `views`, and loop closure is off."""
    return MapperConfig.from_flat(
        {
            "keyframes.motion": 0.0,
            "keyframes.sharpness": 0.0,
            "keyframes.contrast": 0.0,
            "keyframes.max_similarity": 1.0,
            "window.size": views,
            "window.stride": slide,
            "window.overlap": min(OVERLAP, views - slide),
            "loop.enabled": False,
        }
    )


def _window(
    mapper: Mapper, network: StandIn, frames: Iterator[Frame], count: int
) -> tuple[dict[str, float], tuple[float, float]]:
    """One window with `count` new frames, of which all but the newest are already pending.

    Returns seconds per stage, and the processor time of the network and of everything.
    """
    *early, newest = (next(frames) for _ in range(count))
    for frame in early:
        mapper.add_frame(frame)
    network.clear()
    start, start_busy = time.perf_counter(), time.process_time()
    mapper.add_frame(newest)
    selected = time.perf_counter()
    result = mapper.process_window()
    assert result is not None
    processed = time.perf_counter()
    pack(result.views[-count:])
    packed, busy = time.perf_counter(), time.process_time() - start_busy - network.processor["stand_in"]
    spent, laps = network.seconds, result.timings
    stages = {
        "selection": selected - start,
        **{name: spent[name] for name in ("preprocess", "encode", "describe", "fuse", "heads")},
        "registration": laps.get("register", 0.0),
        "map": laps.get("fuse", 0.0),
        "loop_and_scale": laps.get("loop", 0.0) + laps.get("scale", 0.0),
        "packing": packed - processed,
        "total": packed - start - spent["stand_in"],
    }
    return stages, (sum(network.processor[name] for name in NETWORK_STAGES), busy)


def pack(views: Sequence[ViewEstimate]) -> list[bytes]:
    """The content of the messages of some new views: the newest's cloud, confidence and depth of all."""
    if not views:
        return []
    images = [image for view in views for image in (view.maps.confidence_image(), view.maps.depth_image())]
    return [view_bytes(views[-1]).tobytes(), *(image.tobytes() for image in images)]


def _from_camera(frame: Frame) -> Frame:
    """The frame as sent by a camera of higher resolution."""
    height, width = (round(side * CAMERA_FACTOR) for side in frame.image.shape[:2])
    picture = cv2.resize(frame.image, (width, height), interpolation=cv2.INTER_LINEAR)
    return Frame(frame.stamp_ns, frame.camera, np.asarray(picture, np.uint8))

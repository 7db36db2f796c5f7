"""The measured peak rates of the device: matrix products and memory bandwidth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fast3r_ros.benchmark.floor import DevicePeaks, Operation, roofline_seconds
from fast3r_ros.benchmark.measure import Measurement, measure

# large enough to fill the device, and the copy larger than any cache
MATRIX_SIDE = {"cpu": 768, "cuda": 8192}
COPIED_BYTES = {"cpu": 64 * 2**20, "cuda": 2 * 2**30}
RUNS = 9


def measure_device_peaks(device: torch.device, dtype: torch.dtype) -> DevicePeaks:
    """The rates of a large square matrix product in `dtype`, and of a large copy."""
    side = MATRIX_SIDE.get(device.type, MATRIX_SIDE["cuda"])
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    result = torch.empty_like(left)
    product = measure(lambda: torch.mm(left, right, out=result), device, RUNS, memory=False)[1]
    size = COPIED_BYTES.get(device.type, COPIED_BYTES["cuda"])
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = measure(lambda: target.copy_(source), device, RUNS, memory=False)[1]
    return DevicePeaks(
        2.0 * side**3 / comparable_seconds(product, device), 2.0 * size / comparable_seconds(copy, device)
    )


def comparable_seconds(stage: Measurement, device: torch.device) -> float:
    """The time to compare with the roofline: wall time, or processor time on one CPU thread.

    Processor time is nearly independent of other work on the machine.
    """
    if device.type == "cpu" and torch.get_num_threads() == 1 and stage.processor_s:
        return stage.processor_s
    return stage.median_s


def compared(
    stage: Measurement, work: Sequence[Operation] | None, peaks: DevicePeaks, device: torch.device
) -> dict[str, Any]:
    """The measurement as a JSON object, with the required work, and its time relative to the roofline.

    The latter two are omitted when the work is unknown.
    """
    if work is None:
        return stage.content()
    floor, seconds = roofline_seconds(work, peaks), comparable_seconds(stage, device)
    flops = sum(operation.flops for operation in work)
    return {
        **stage.content(),
        "flops": flops,
        "bytes": sum(operation.bytes for operation in work),
        "floor_s": floor,
        "times_floor": seconds / floor,
        "share_of_matrix_rate": flops / seconds / peaks.matrix_rate,
    }

"""The roofline of the network: the arithmetic and the memory traffic that no implementation can avoid, and
the matrix rate and the memory bandwidth that the device reaches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fast3r_ros.benchmark.measure import Measurement, measure
from fast3r_ros.model.network_config import Fast3RConfig

CHANNELS = 4  # in a head's result: a point and its confidence


@dataclass(frozen=True)
class Operation:
    """One product, convolution or attention: its FLOPs, and the bytes of its operands and result."""

    name: str
    flops: float
    bytes: float


@dataclass(frozen=True)
class DevicePeaks:
    """Peak rates of a device.

    matrix_rate: FLOP/s of one large matrix product.  bandwidth: byte/s of one large copy, counting bytes read
    and written.
    """

    matrix_rate: float
    bandwidth: float


def roofline_seconds(operations: Iterable[Operation], peaks: DevicePeaks) -> float:
    """The minimum time of these operations in sequence."""
    return sum(max(each.flops / peaks.matrix_rate, each.bytes / peaks.bandwidth) for each in operations)


def stages(
    config: Fast3RConfig,
    views: int,
    size_wh: tuple[int, int],
    element_size: int,
    encoded: int | None = None,
) -> dict[str, list[Operation]]:
    """The operations of `encode`, `fuse` and `heads` for one scene of equal views.

    size_wh: width and height in pixels, multiples of 16.  element_size: bytes of a number of the network's
    dtype.  encoded: number of encoded views, default all; the tokens of the others are cached.
    """
    patch = config.encoder.patch_size
    grid = (size_wh[1] // patch, size_wh[0] // patch)
    heads = 2 if config.head.with_local_head else 1
    fresh = views if encoded is None else encoded
    return {
        "encode": _encode(config, fresh, grid[0] * grid[1], element_size),
        "fuse": _fuse(config, views * grid[0] * grid[1], element_size),
        "heads": heads * _head(config, views, grid, element_size),
    }


def fusion_attention(config: Fast3RConfig, tokens: int, element_size: int) -> Operation:
    """One block's attention over all tokens of a scene, without its linear layers."""
    return _attention("fusion attention", 1, tokens, config.decoder.embed_dim, element_size)


def _encode(config: Fast3RConfig, views: int, tokens: int, size: int) -> list[Operation]:
    encoder = config.encoder
    embed = _product("patch embedding", views * tokens, 3 * encoder.patch_size**2, encoder.embed_dim, size)
    return [embed] + encoder.depth * _block(views, tokens, encoder.embed_dim, encoder.mlp_ratio, size)


def _fuse(config: Fast3RConfig, tokens: int, size: int) -> list[Operation]:
    decoder = config.decoder
    embed = _product("embedding", tokens, decoder.enc_embed_dim, decoder.embed_dim, size)
    return [embed] + decoder.depth * _block(1, tokens, decoder.embed_dim, decoder.mlp_ratio, size)


def _block(batch: int, tokens: int, width: int, mlp_ratio: float, size: int) -> list[Operation]:
    rows, hidden = batch * tokens, int(width * mlp_ratio)
    return [
        _product("qkv", rows, width, 3 * width, size),
        _attention("attention", batch, tokens, width, size),
        _product("projection", rows, width, width, size),
        _product("mlp in", rows, width, hidden, size),
        _product("mlp out", rows, hidden, width, size),
    ]


def _head(config: Fast3RConfig, views: int, grid: tuple[int, int], size: int) -> list[Operation]:
    """One DPT head; the maps of a view are h x w, and the finest of them 16 h x 16 w."""
    d1, d2, d3, d4 = config.head.dpt_reassemble_dims
    width, last = config.head.dpt_feature_dim, config.head.dpt_last_dim
    fused = config.decoder.embed_dim
    h, w = grid

    def conv(inputs: int, outputs: int, kernel: int, factor: int, stride: int = 1) -> Operation:
        """A convolution whose result is `factor` times the grid."""
        result = views * factor**2 * h * w
        return _convolution(result, result * stride**2, inputs, outputs, kernel**2, size)

    def transposed(channels: int, factor: int) -> Operation:
        """Taps do not overlap, so each result uses one position of the kernel."""
        result = views * h * w * factor**2
        flops = 2.0 * result * channels * channels
        moved = views * h * w * channels + result * channels + channels**2 * factor**2
        return Operation("convolution", flops, size * moved)

    half = views * -(-h // 2) * -(-w // 2)  # positions of the coarsest maps
    coarsest = [
        conv(fused, d4, 1, 1),
        _convolution(half, views * h * w, d4, d4, 9, size),
        _convolution(half, half, d4, width, 9, size),
        *2 * [_convolution(half, half, width, width, 9, size)],
        _convolution(half, half, width, width, 1, size),
    ]
    reassemble = [
        conv(fused, d3, 1, 1),
        conv(fused, d2, 1, 1),
        transposed(d2, 2),
        conv(config.encoder.embed_dim, d1, 1, 1),
        transposed(d1, 4),
    ]
    refine = [
        operation
        for dim, factor in ((d3, 1), (d2, 2), (d1, 4))
        for operation in (
            conv(dim, width, 3, factor),
            *4 * [conv(width, width, 3, factor)],
            conv(width, width, 1, factor),
        )
    ]
    predict = [
        conv(width, width // 2, 3, 8),
        conv(width // 2, last, 3, 16),
        conv(last, CHANNELS, 1, 16),
    ]
    return coarsest + reassemble + refine + predict


def _product(name: str, rows: int, inputs: int, outputs: int, size: int) -> Operation:
    """(rows, inputs) times (inputs, outputs)."""
    moved = rows * inputs + inputs * outputs + rows * outputs
    return Operation(name, 2.0 * rows * inputs * outputs, float(size * moved))


def _attention(name: str, batch: int, tokens: int, width: int, size: int) -> Operation:
    """Queries times keys and weights times values; modern kernels do not write the logits to memory."""
    flops = 4.0 * batch * tokens * tokens * width
    return Operation(name, flops, float(size * 4 * batch * tokens * width))


def _convolution(results: int, places: int, inputs: int, outputs: int, taps: int, size: int) -> Operation:
    """results, places: positions of the result and of the input."""
    moved = places * inputs + taps * inputs * outputs + results * outputs
    return Operation("convolution", 2.0 * results * inputs * outputs * taps, float(size * moved))


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

"""Loads the network of a node's parameters."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import WindowNetwork
from fast3r_ros.ros.config import NodeConfig

if TYPE_CHECKING:
    from fast3r_ros.mapping.network import Fast3RNetwork

_log = logging.getLogger(__name__)


def load_network(config: NodeConfig) -> WindowNetwork:
    """The network of `model` on `device` in `dtype`.

    Raises UserError for an unknown network, checkpoint, device or acceleration.
    """
    import torch

    from fast3r_ros import networks

    if config.torch_threads:
        torch.set_num_threads(config.torch_threads)
    expected_size(config.expected_image)  # checked before anything is loaded
    options = networks.NetworkOptions(config.device, config.dtype, accelerate=config.accelerate)
    return networks.load_network(config.model, options)


def prepare_network(network: WindowNetwork, config: NodeConfig) -> None:
    """On a GPU: warm up for the size of `expected_image`, so that the first window is as fast as the others.

    Call it on the thread that runs the windows: cuDNN caches its plans per thread and shape.
    """
    expected = expected_size(config.expected_image)
    if expected is None or not resolve_device(config.device).startswith("cuda"):
        return
    from fast3r_ros.mapping.network import Fast3RNetwork
    from fast3r_ros.model.preprocess import plan_resize

    if isinstance(network, Fast3RNetwork):
        warm_up(network, config.mapper, plan_resize(*expected, network.model.config.image_size).size)


def warm_up(network: Fast3RNetwork, config: MapperConfig, size: tuple[int, int]) -> None:
    """Warm up for windows of views of this size (width, height)."""
    import torch

    from fast3r_ros.mapping.rehearsal import rehearse

    window = config.window
    try:
        rehearse(network.warm_up(window.size, size, window.stride), config)
        return
    except torch.OutOfMemoryError:  # the first window reports it, too, and smaller ones follow
        _log.warning("no memory to warm up for windows of %d views", window.size)
    free_gpu_memory()  # after the error is gone with its frames and their tensors


def expected_size(text: str) -> tuple[int, int] | None:
    """The parameter `expected_image` as (width, height); None when it is empty.  Raises UserError."""
    if not text:
        return None
    width, mark, height = text.partition("x")
    if not (mark and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise UserError(f"expected_image is {text!r}; give WIDTHxHEIGHT such as 640x480, or leave it empty")
    return int(width), int(height)


def resolve_device(device: str) -> str:
    """Like `model.precision.resolve_device`, without loading PyTorch before it is needed."""
    from fast3r_ros.model import precision

    return precision.resolve_device(device)


def gpu_memory() -> tuple[int, int]:
    """(allocated, peak) bytes of GPU memory of this process, on all GPUs together; zeros without one."""
    import torch

    if not torch.cuda.is_available():
        return 0, 0
    # not of the current device, which is the first GPU even if the model is on another
    gpus = range(torch.cuda.device_count())
    return sum(map(torch.cuda.memory_allocated, gpus)), sum(map(torch.cuda.max_memory_allocated, gpus))


def free_gpu_memory() -> None:
    """Return cached GPU memory to the device."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()

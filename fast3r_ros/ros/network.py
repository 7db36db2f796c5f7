"""Loading the network that a node's parameters name."""

from __future__ import annotations

import logging

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.data import WindowNetwork
from fast3r_ros.ros.config import NodeConfig

_log = logging.getLogger(__name__)


def load_network(config: NodeConfig) -> WindowNetwork:
    """The network of `model` on `device` in `dtype`, warmed up where that is a GPU.

    Raises UserError when there is no such model, device or acceleration.
    """
    import torch

    from fast3r_ros.mapping.network import Fast3RNetwork
    from fast3r_ros.model import Fast3R
    from fast3r_ros.model.acceleration import Acceleration, accelerate
    from fast3r_ros.model.preprocess import plan_resize

    if config.torch_threads:
        torch.set_num_threads(config.torch_threads)
    expected = expected_size(config.expected_image)
    acceleration = Acceleration.parse(config.accelerate)
    device = resolve_device(config.device)
    dtype = getattr(torch, resolve_dtype(config.dtype, device))
    model = Fast3R.from_pretrained(config.model, device=device, dtype=dtype)
    accelerate(model, acceleration)
    network = Fast3RNetwork(model, model.config.image_size)
    if device.startswith("cuda") and expected is not None:
        size = plan_resize(*expected, model.config.image_size).size
        try:
            network.warm_up(config.mapper.window.size, size)
        except torch.OutOfMemoryError:  # the first window tells so too, and smaller ones follow
            views = config.mapper.window.size
            _log.warning("no memory on %s to warm up for windows of %d views", device, views)
            free_gpu_memory()
    return network


def expected_size(text: str) -> tuple[int, int] | None:
    """The parameter `expected_image` as (width, height); None when it is empty.  Raises UserError."""
    if not text:
        return None
    width, mark, height = text.partition("x")
    if not (mark and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise UserError(f"expected_image is {text!r}; give WIDTHxHEIGHT as 640x480, or leave it empty")
    return int(width), int(height)


def resolve_dtype(dtype: str, device: str) -> str:
    """A PyTorch dtype name for the parameter `dtype` on a device of `resolve_device`."""
    import torch

    if dtype != "auto":
        return dtype
    if device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16"
    return "float32"


def resolve_device(device: str) -> str:
    """A PyTorch device name for the parameter `device`.  Raises UserError when there is no such device."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {device!r} cannot be used ({reason}); use auto, cpu or cuda") from error
    return device


def gpu_memory() -> tuple[int, int]:
    """(allocated, peak) bytes of GPU memory of this process; zeros without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return 0, 0
    return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()


def free_gpu_memory() -> None:
    """Give cached GPU memory back to the device."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()

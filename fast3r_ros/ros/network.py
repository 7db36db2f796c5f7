"""Loading the network that a node's parameters name."""

from __future__ import annotations

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.data import WindowNetwork
from fast3r_ros.ros.config import NodeConfig


def load_network(config: NodeConfig) -> WindowNetwork:
    """The network of `model` on `device`.  Raises UserError when there is no such model or device."""
    import torch

    from fast3r_ros.mapping.network import Fast3RNetwork
    from fast3r_ros.model import Fast3R

    if config.torch_threads:
        torch.set_num_threads(config.torch_threads)
    model = Fast3R.from_pretrained(config.model, device=resolve_device(config.device))
    return Fast3RNetwork(model, model.config.image_size)


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

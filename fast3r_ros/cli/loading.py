"""Loading the model that `--model`, `--device` and `--dtype` name."""

from __future__ import annotations

import torch

from fast3r_ros.errors import UserError
from fast3r_ros.model import Fast3R
from fast3r_ros.model.precision import resolve_device, resolve_dtype


def load_model(name: str, device: str = "auto", dtype: str | None = None) -> Fast3R:
    """The model on its device, ready for inference.

    device: auto, cpu, cuda, cuda:1.  dtype: see `precision.resolve_dtype`.  Raises UserError when the
    model or the device cannot be used.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {device}: this machine has no usable CUDA GPU; use --device cpu")
    device = resolve_device(device)
    try:
        return Fast3R.from_pretrained(name, device=device, dtype=resolve_dtype(dtype, device))
    except RuntimeError as error:
        raise UserError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error

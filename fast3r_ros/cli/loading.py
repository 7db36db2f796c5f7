"""Loading the model that `--model`, `--device` and `--dtype` name."""

from __future__ import annotations

import torch

from fast3r_ros.errors import UserError
from fast3r_ros.model import Fast3R


def load_model(name: str, device: str = "auto", dtype: str | None = None) -> Fast3R:
    """The model on its device, ready for inference.

    device: auto, cpu, cuda, cuda:1.  dtype: by default bfloat16 on a GPU and float32 on a CPU.  Raises
    UserError when the model or the device cannot be used.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {device}: this machine has no usable CUDA GPU; use --device cpu")
    dtype = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    try:
        return Fast3R.from_pretrained(name, device=device, dtype=getattr(torch, dtype))
    except RuntimeError as error:
        raise UserError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error

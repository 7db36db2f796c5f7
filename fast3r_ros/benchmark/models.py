"""The networks for benchmarks: trained ones by name, or full-size ones with random weights."""

from __future__ import annotations

import argparse

import torch

from fast3r_ros.errors import UserError
from fast3r_ros.model import Fast3R, Fast3RConfig
from fast3r_ros.model.attention import ATTENTION_NAMES
from fast3r_ros.model.network_config import DecoderConfig, EncoderConfig, HeadConfig
from fast3r_ros.model.precision import DTYPES, in_dtype, name_of, resolve_dtype
from fast3r_ros.model.preprocess import plan_resize
from fast3r_ros.model.speed.attention_choice import choose_attention

# (width, depth, heads) of encoder and fusion: as released, as in the paper, and small
RANDOM_MODELS = {
    "large": ((1024, 24, 16), (1024, 24, 16)),
    "paper": ((1024, 24, 16), (768, 12, 12)),
    "base": ((768, 12, 12), (768, 12, 12)),
}


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """--model, --attention, --device and --threads."""
    parser.add_argument(
        "--model",
        default="large",
        help="random weights: large (as released), paper (fusion of 12 blocks x 768) or base (768 "
        "everywhere); or demo, a directory, a hub name (default: %(default)s)",
    )
    parser.add_argument("--attention", default="auto", choices=ATTENTION_NAMES, help="attention kernel")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, help="CPU threads (PyTorch's choice by default)")


def add_dtype_argument(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """--dtype: one, or a list of them; None (not given) means `default_dtype`."""
    parser.add_argument(
        "--dtype",
        nargs="+" if several else None,
        choices=DTYPES,
        help="dtype of the weights (default: float16 on cuda, float32 on cpu)",
    )


def default_dtype(device: torch.device) -> str:
    """The dtype of networks on this device, the same as for the node and `fast3r reconstruct`."""
    return name_of(resolve_dtype("auto", device))


def chosen_device(arguments: argparse.Namespace) -> torch.device:
    """The device of `add_model_arguments`, with its threads set.  Raises UserError when there is none."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        device = torch.device(arguments.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {arguments.device} cannot be used ({reason}); give cpu or cuda") from error
    return device


def parse_size(text: str) -> tuple[int, int]:
    """`512x384` as (width, height) in pixels.  Raises UserError."""
    width, mark, height = text.partition("x")
    if not (mark and width.isdigit() and height.isdigit()):
        raise UserError(f"size is {text!r}, expected WIDTHxHEIGHT such as 512x384")
    return int(width), int(height)


def parse_network_size(text: str) -> tuple[int, int]:
    """Like `parse_size`, for a size that preprocessing does not change.  Raises UserError for others."""
    size = parse_size(text)
    kept = plan_resize(*size, max(size)).size
    if kept != size:
        raise UserError(
            f"pictures of {text} are cropped to {kept[0]}x{kept[1]} for the network; give that size"
        )
    return size


def load(name: str, device: torch.device, dtype: torch.dtype, attention: str) -> Fast3R:
    """A model by name, or one of RANDOM_MODELS with random weights; these need no download."""
    if name not in RANDOM_MODELS:
        return Fast3R.from_pretrained(name, device, dtype, attention)
    (width, depth, heads), (fused, fused_depth, fused_heads) = RANDOM_MODELS[name]
    config = Fast3RConfig(
        EncoderConfig(embed_dim=width, depth=depth, num_heads=heads),
        DecoderConfig(embed_dim=fused, enc_embed_dim=width, depth=fused_depth, num_heads=fused_heads),
        HeadConfig(with_local_head=True),
    )
    torch.manual_seed(0)
    with device:
        model = Fast3R(config).eval()
    in_dtype(model, dtype).set_attention(attention)
    return model.lay_out_heads()


def attention_kernel(model: Fast3R, asked: str, views: int, size: tuple[int, int]) -> str:
    """Set the kernel `asked`; returns its name.

    On a GPU, `auto` is the fastest kernel for the number of tokens, as in the node.
    """
    model.set_attention(asked)
    if next(model.parameters()).device.type != "cuda":
        return asked
    patch = model.config.encoder.patch_size
    return choose_attention(model, views * (size[0] // patch) * (size[1] // patch))

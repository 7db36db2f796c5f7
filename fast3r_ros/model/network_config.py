"""The network's typed configuration, read from and written to the `config.json` of a checkpoint.

Field names are those of the file.  A file holds the groups `encoder_args`, `decoder_args`, `head_args`; keys
without effect on the numbers (dropout at 0, the attention kernel used in training) are accepted and dropped.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fast3r_ros.errors import UserError
from fast3r_ros.files import one_line, read_json, whole_file
from fast3r_ros.settings import build, parameter, shown

_log = logging.getLogger(__name__)
_WIDTH, _DEEPEST, _HEADS, _RATIO = (1, 16384), 256, (1, 256), (0.01, 64.0)
_MOST_WEIGHTS = 20e9  # thirty times the released model
_FILE_BYTES = 1 << 20
PATCH_EMBEDDINGS = ("PatchEmbedDust3R", "ManyAR_PatchEmbed")


@dataclass(frozen=True)
class EncoderConfig:
    """The image encoder.

    img_size: default long side of an image in pixels; it has no effect on the weights.
    absolute_positions is our addition, written only if true: a fixed table of row and column is added to the
    patch tokens.  Rotary positions are relative.  A pretrained encoder has learnt where a patch is in the
    image; a small encoder trained from scratch does not learn it.
    """

    embed_dim: int = parameter(1024, range=_WIDTH)
    depth: int = parameter(24, range=(1, _DEEPEST))
    num_heads: int = parameter(16, range=_HEADS)
    mlp_ratio: float = parameter(4.0, range=_RATIO)
    patch_size: int = parameter(16, range=(16, 16))
    img_size: int = parameter(512, range=(16, 65536))
    pos_embed: str = "RoPE100"
    patch_embed_cls: str = parameter("PatchEmbedDust3R", choices=PATCH_EMBEDDINGS)
    encoder_type: str = parameter("croco", choices=("croco",))
    absolute_positions: bool = False


@dataclass(frozen=True)
class DecoderConfig:
    """The fusion transformer.

    random_image_idx_embedding: views get image indices drawn from the table instead of 0..V-1.
    attn_bias_for_inference_enabled: attention logits are scaled up in eval mode; true if the key is missing.
    """

    embed_dim: int = parameter(1024, range=_WIDTH)
    enc_embed_dim: int = parameter(1024, range=_WIDTH)
    depth: int = parameter(24, range=(10, _DEEPEST))  # the heads read four of its blocks' outputs
    num_heads: int = parameter(16, range=_HEADS)
    mlp_ratio: float = parameter(4.0, range=_RATIO)
    qkv_bias: bool = True
    random_image_idx_embedding: bool = True
    attn_bias_for_inference_enabled: bool = True
    decoder_type: str = parameter("fast3r", choices=("fast3r",))


@dataclass(frozen=True)
class HeadConfig:
    """The DPT heads.  depth_mode and conf_mode are (name, lower bound, upper bound) of the activations.

    dpt_reassemble_dims, dpt_feature_dim and dpt_last_dim are our addition, so that small models use the same
    code; they are written only if they differ from the official widths.
    """

    head_type: str = parameter("dpt", choices=("dpt",))
    output_mode: str = parameter("pts3d", choices=("pts3d",))
    depth_mode: tuple[str, float, float] = parameter(
        ("exp", -math.inf, math.inf), choices=("exp", "linear", "square"), range=(-math.inf, math.inf)
    )
    conf_mode: tuple[str, float, float] = parameter(
        ("exp", 1.0, math.inf), choices=("exp", "sigmoid"), range=(0.0, math.inf)
    )
    with_local_head: bool = False
    landscape_only: bool = False
    patch_size: int = parameter(16, range=(16, 16))
    dpt_reassemble_dims: tuple[int, int, int, int] = parameter((96, 192, 384, 768), range=_WIDTH)
    dpt_feature_dim: int = parameter(256, range=(2, _WIDTH[1]))
    dpt_last_dim: int = parameter(128, range=_WIDTH)


# keys of official files without effect on a forward pass
_WITHOUT_EFFECT = {
    EncoderConfig: {"attn_implementation", "attn_bias_for_inference_enabled"},
    DecoderConfig: {"attn_implementation", "drop", "attn_drop"},
    HeadConfig: {"skip_load_pretrained_head"},
}
_WRITTEN_IF_CHANGED = {"absolute_positions", "dpt_reassemble_dims", "dpt_feature_dim", "dpt_last_dim"}


@dataclass(frozen=True)
class Fast3RConfig:
    """The complete shape of a network.  The defaults are the released model's, with only its global head."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    head: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        """Raises UserError for a configuration that this implementation cannot build."""
        _check(self)

    @property
    def image_size(self) -> int:
        """The default long side of an image, in pixels."""
        return self.encoder.img_size

    @property
    def weights(self) -> float:
        """Approximate number of weights of the transformers and the heads' widest layers."""
        parts = (self.encoder, self.decoder)
        blocks = sum((4 + 2 * part.mlp_ratio) * part.embed_dim**2 * part.depth for part in parts)
        head, width = self.head, self.decoder.embed_dim
        widest = max(head.dpt_reassemble_dims)
        heads = 9 * (widest**2 + widest * head.dpt_feature_dim + 14 * head.dpt_feature_dim**2)
        return blocks + (2 if head.with_local_head else 1) * (heads + 4 * widest * width)

    @property
    def hooks(self) -> tuple[int, int, int, int]:
        """The outputs that the heads read: 0 for the encoder's tokens, k for fusion block k's output."""
        depth = self.decoder.depth
        return (0, depth // 2, depth * 3 // 4, depth)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: str = "the configuration") -> Fast3RConfig:
        """Read the content of a `config.json`; `source` names it in errors.  Raises UserError."""
        groups = {"encoder": EncoderConfig, "decoder": DecoderConfig, "head": HeadConfig}
        if not isinstance(content, Mapping):
            raise UserError(f"{source} is {shown(content)}, expected an object with encoder_args")
        missing = [f"{name}_args" for name in groups if f"{name}_args" not in content]
        if missing:
            raise UserError(
                f"{source} has no {', '.join(missing)}; expected the config.json of a Fast3R checkpoint"
            )
        values = {
            name: _read_group(group, content[f"{name}_args"], f"{source}: {name}_args")
            for name, group in groups.items()
        }
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{source}: {error}") from error

    @classmethod
    def read(cls, path: Path | str) -> Fast3RConfig:
        """Read a `config.json`.  Raises UserError when it is missing or invalid."""
        return cls.from_dict(read_json(path, _FILE_BYTES), str(path))

    def to_dict(self) -> dict[str, Any]:
        """The content of a `config.json` in the official layout."""
        return {
            "encoder_args": _write_group(self.encoder),
            "decoder_args": _write_group(self.decoder),
            "head_args": _write_group(self.head),
        }

    def write(self, path: Path | str) -> None:
        """Write a `config.json` like the official hub mixin: sorted keys, bare Infinity."""
        with whole_file(path, durable=True) as partial:
            text = json.dumps(self.to_dict(), sort_keys=True, indent=2)
            partial.write_text(text + "\n", encoding="utf-8")


def _read_group(group: type, content: Any, source: str) -> Any:
    if not isinstance(content, Mapping):
        raise UserError(f"{source} is {shown(content)}, expected an object")
    known = {item.name for item in fields(group)}
    unknown = [str(key) for key in content if key not in known and key not in _WITHOUT_EFFECT[group]]
    if unknown:
        _log.warning("%s: the keys %s are unknown and ignored", source, one_line(", ".join(unknown)))
    return build(group, {key: value for key, value in content.items() if key in known}, f"{source}.")


def _write_group(group: Any) -> dict[str, Any]:
    written = {}
    for item in fields(group):
        value = getattr(group, item.name)
        if item.name in _WRITTEN_IF_CHANGED and value == item.default:
            continue
        written[item.name] = list(value) if isinstance(value, tuple) else value
    return written


def _check(config: Fast3RConfig) -> None:
    """The rules between several settings."""
    encoder, decoder, head = config.encoder, config.decoder, config.head
    depth_bounds, least_confidence, most_confidence = head.depth_mode[1:], *head.conf_mode[1:]
    rules = [
        (
            bool(re.fullmatch("RoPE[1-9][0-9]{0,6}", encoder.pos_embed)),
            "pos_embed",
            encoder.pos_embed,
            "RoPE and its base, such as RoPE100",
        ),
        (
            encoder.embed_dim % (4 * encoder.num_heads) == 0,
            "encoder embed_dim",
            encoder.embed_dim,
            f"4 x num_heads x n, with num_heads {encoder.num_heads}",
        ),
        (
            decoder.embed_dim % (2 * decoder.num_heads) == 0,
            "decoder embed_dim",
            decoder.embed_dim,
            f"2 x num_heads x n, with num_heads {decoder.num_heads}",
        ),
        (
            decoder.enc_embed_dim == encoder.embed_dim,
            "enc_embed_dim",
            decoder.enc_embed_dim,
            encoder.embed_dim,
        ),
        (depth_bounds == (-math.inf, math.inf), "depth_mode", head.depth_mode, "bounds -inf, inf"),
        (least_confidence < most_confidence, "conf_mode", head.conf_mode, "a lower and an upper bound"),
        *(
            (part.embed_dim * part.mlp_ratio >= 1, "mlp_ratio", part.mlp_ratio, "a wider hidden layer")
            for part in (encoder, decoder)
        ),
        (config.weights < _MOST_WEIGHTS, "the number of weights", f"{config.weights:.3g}", "fewer"),
    ]
    for good, name, value, expected in rules:
        if not good:
            raise UserError(f"{name} is {shown(value)}, expected {expected}")

"""The network's typed configuration, read from and written to the `config.json` of a checkpoint.

Field names are those of the file.  A file holds the groups `encoder_args`, `decoder_args`, `head_args`; keys
that have no effect on the numbers (dropout at 0, the attention kernel that was used in training) are accepted
and dropped.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from fast3r_ros.errors import UserError
from fast3r_ros.files import whole_file

_log = logging.getLogger(__name__)

PATCH_EMBEDDINGS = ("PatchEmbedDust3R", "ManyAR_PatchEmbed")


@dataclass(frozen=True)
class EncoderConfig:
    """The image encoder.

    img_size: default long side of an image in pixels; it has no effect on the weights.
    absolute_positions is our addition and written only where true: a fixed table of row and column is added
    to the patch tokens.  Rotary positions are relative; a pretrained encoder has learnt to tell where a patch
    is in the image, a small one trained from nothing does not.
    """

    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0
    patch_size: int = 16
    img_size: int = 512
    pos_embed: str = "RoPE100"
    patch_embed_cls: str = "PatchEmbedDust3R"
    encoder_type: str = "croco"
    absolute_positions: bool = False


@dataclass(frozen=True)
class DecoderConfig:
    """The fusion transformer.

    random_image_idx_embedding: views get image indices drawn from the table instead of 0..V-1.
    attn_bias_for_inference_enabled: attention logits are scaled up in eval mode; true when the key is
    missing.
    """

    embed_dim: int = 1024
    enc_embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    random_image_idx_embedding: bool = True
    attn_bias_for_inference_enabled: bool = True
    decoder_type: str = "fast3r"


@dataclass(frozen=True)
class HeadConfig:
    """The DPT heads.  depth_mode and conf_mode are (name, lower bound, upper bound) of the activations.

    dpt_reassemble_dims, dpt_feature_dim and dpt_last_dim are our addition, so that a small model is the same
    code; they are written only where they differ from the official widths.
    """

    head_type: str = "dpt"
    output_mode: str = "pts3d"
    depth_mode: tuple[str, float, float] = ("exp", -math.inf, math.inf)
    conf_mode: tuple[str, float, float] = ("exp", 1.0, math.inf)
    with_local_head: bool = False
    landscape_only: bool = False
    patch_size: int = 16
    dpt_reassemble_dims: tuple[int, int, int, int] = (96, 192, 384, 768)
    dpt_feature_dim: int = 256
    dpt_last_dim: int = 128


# keys of official files that say nothing about the numbers of a forward pass
_WITHOUT_EFFECT = {
    EncoderConfig: {"attn_implementation", "attn_bias_for_inference_enabled"},
    DecoderConfig: {"attn_implementation", "drop", "attn_drop"},
    HeadConfig: {"skip_load_pretrained_head"},
}
_WRITTEN_IF_CHANGED = {"absolute_positions", "dpt_reassemble_dims", "dpt_feature_dim", "dpt_last_dim"}


@dataclass(frozen=True)
class Fast3RConfig:
    """All of a network's shape.  The defaults are the released model's (with its global head only)."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    head: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        """Refuse a configuration that this implementation cannot build; raises UserError."""
        _check(self)

    @property
    def image_size(self) -> int:
        """The default long side of an image, in pixels."""
        return self.encoder.img_size

    @property
    def hooks(self) -> tuple[int, int, int, int]:
        """The outputs that the heads read: 0 is the encoder's tokens, k is fusion block k's output."""
        depth = self.decoder.depth
        return (0, depth // 2, depth * 3 // 4, depth)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: str = "the configuration") -> Fast3RConfig:
        """Read the content of a `config.json`; `source` names it in errors.  Raises UserError."""
        missing = [name for name in ("encoder_args", "decoder_args", "head_args") if name not in content]
        if missing:
            raise UserError(
                f"{source} has no {', '.join(missing)}; expected the config.json of a Fast3R checkpoint"
            )
        return cls(
            encoder=_read_group(EncoderConfig, content["encoder_args"], f"{source}: encoder_args"),
            decoder=_read_group(DecoderConfig, content["decoder_args"], f"{source}: decoder_args"),
            head=_read_group(HeadConfig, content["head_args"], f"{source}: head_args"),
        )

    @classmethod
    def read(cls, path: Path | str) -> Fast3RConfig:
        """Read a `config.json`.  Raises UserError when it is missing or not what is expected."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise UserError(f"{path} is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise UserError(f"{path} holds {type(content).__name__}, expected an object with encoder_args")
        return cls.from_dict(content, str(path))

    def to_dict(self) -> dict[str, Any]:
        """The content of a `config.json` in the official layout."""
        return {
            "encoder_args": _write_group(self.encoder),
            "decoder_args": _write_group(self.decoder),
            "head_args": _write_group(self.head),
        }

    def write(self, path: Path | str) -> None:
        """Write a `config.json` as the official hub mixin does: sorted keys, bare Infinity."""
        with whole_file(path, durable=True) as partial:
            text = json.dumps(self.to_dict(), sort_keys=True, indent=2)
            partial.write_text(text + "\n", encoding="utf-8")


def _read_group(group: type, content: Any, source: str) -> Any:
    if not isinstance(content, Mapping):
        raise UserError(f"{source} is {content!r}, expected an object")
    known = {item.name: item for item in fields(group)}
    unknown = sorted(set(content) - set(known) - _WITHOUT_EFFECT[group])
    if unknown:
        _log.warning("%s: the keys %s are not known and have no effect", source, ", ".join(unknown))
    values = {}
    for name, item in known.items():
        if name in content:
            default = item.default if item.default is not MISSING else None
            values[name] = _read_value(content[name], default, f"{source}.{name}")
    return group(**values)


def _read_value(value: Any, default: Any, source: str) -> Any:
    """A JSON value as the type of the field's default; "inf" strings stand for infinities."""
    if isinstance(default, tuple):
        if not isinstance(value, (list, tuple)) or len(value) != len(default):
            raise UserError(f"{source} is {value!r}, expected a list of {len(default)} values")
        return tuple(_read_value(item, kind, source) for item, kind in zip(value, default, strict=True))
    if isinstance(default, float) and isinstance(value, str):
        try:
            return float(value)
        except ValueError as error:
            raise UserError(f"{source} is {value!r}, expected a number") from error
    if isinstance(default, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise UserError(f"{source} is {value!r}, expected {type(default).__name__}")
    return value


def _write_group(group: Any) -> dict[str, Any]:
    written = {}
    for item in fields(group):
        value = getattr(group, item.name)
        if item.name in _WRITTEN_IF_CHANGED and value == item.default:
            continue
        written[item.name] = list(value) if isinstance(value, tuple) else value
    return written


def _check(config: Fast3RConfig) -> None:
    encoder, decoder, head = config.encoder, config.decoder, config.head
    rules = [
        (encoder.encoder_type == "croco", "encoder_type", encoder.encoder_type, "croco"),
        (
            encoder.patch_embed_cls in PATCH_EMBEDDINGS,
            "patch_embed_cls",
            encoder.patch_embed_cls,
            PATCH_EMBEDDINGS,
        ),
        (
            encoder.pos_embed.startswith("RoPE"),
            "pos_embed",
            encoder.pos_embed,
            "RoPE and its base, as RoPE100",
        ),
        (encoder.pos_embed[4:].isdigit(), "pos_embed", encoder.pos_embed, "RoPE and its base, as RoPE100"),
        (
            encoder.embed_dim % (4 * encoder.num_heads) == 0,
            "encoder embed_dim",
            encoder.embed_dim,
            "4 x num_heads x n",
        ),
        (
            decoder.embed_dim % (2 * decoder.num_heads) == 0,
            "decoder embed_dim",
            decoder.embed_dim,
            "2 x num_heads x n",
        ),
        (
            decoder.enc_embed_dim == encoder.embed_dim,
            "enc_embed_dim",
            decoder.enc_embed_dim,
            encoder.embed_dim,
        ),
        (decoder.decoder_type == "fast3r", "decoder_type", decoder.decoder_type, "fast3r"),
        (
            decoder.depth > 9,
            "decoder depth",
            decoder.depth,
            "10 or more, as the heads read four of its blocks",
        ),
        (head.head_type == "dpt", "head_type", head.head_type, "dpt"),
        (head.output_mode == "pts3d", "output_mode", head.output_mode, "pts3d"),
        (
            head.patch_size == encoder.patch_size == 16,
            "patch_size",
            (head.patch_size, encoder.patch_size),
            16,
        ),
        (
            head.depth_mode[0] in ("exp", "linear", "square"),
            "depth_mode",
            head.depth_mode,
            "exp, linear, square",
        ),
        (head.depth_mode[1:] == (-math.inf, math.inf), "depth_mode", head.depth_mode, "bounds -inf, inf"),
        (head.conf_mode[0] in ("exp", "sigmoid"), "conf_mode", head.conf_mode, "exp or sigmoid"),
    ]
    for good, name, value, expected in rules:
        if not good:
            raise UserError(f"{name} is {value!r}, expected {expected}")

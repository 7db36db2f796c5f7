"""Finding, reading and writing checkpoints.

Reads a directory in the official layout (config.json with model.safetensors, one file or sharded, or a
PyTorch pickle), a single weights file, or a hub name.  Keys may have the prefix of a training framework.
Every name and shape is checked before a tensor reaches a model, so that a model is loaded completely or not
at all.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

import torch
from torch import Tensor, nn

from fast3r_ros.demo_model import DEMO, DEMO_DIRECTORY, REAL_MODEL
from fast3r_ros.errors import UserError, optional
from fast3r_ros.files import one_line, open_regular, read_json, whole_file
from fast3r_ros.model.network_config import Fast3RConfig
from fast3r_ros.model.safetensors import read_safetensors, write_safetensors

OFFICIAL_NAME = REAL_MODEL
# the default revision of the name, so that a later upload changes no results
OFFICIAL_REVISION = "a2c770b768ceb3a53c36c4f7a3619db0413dc3a1"
LICENCE_NOTICE = (
    "The official Fast3R weights are under the FAIR Noncommercial Research License: "
    "research and other noncommercial use only (https://github.com/facebookresearch/fast3r)."
)
WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
PREFIXES = ("net.", "module.net.", "_forward_module.net.", "model.net.", "module.", "_forward_module.")

_INDEX_BYTES = 1 << 26
_OWNER_AND_NAME = r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)"
HUB_NAME = re.compile(_OWNER_AND_NAME + r"(?:@(?P<revision>[^\s@]+))?")
HUB_LINK = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/"
    + _OWNER_AND_NAME
    + r"(?:/(?:tree|blob|resolve)/(?P<revision>[^/?#\s]+)(?:/[^?#\s]*)?)?/?(?:[?#]\S*)?"
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointFiles:
    """config: the config.json, None when there is none; weights: one file, or several shards."""

    config: Path | None
    weights: tuple[Path, ...]


def locate(name: str | Path) -> CheckpointFiles:
    """Files of `demo`, a directory, a weights file or a hub name.  Raises UserError with what was tried."""
    try:
        return _locate(name)
    except (OSError, ValueError) as error:  # the name is too long, or the folder is not readable
        if isinstance(error, UserError):
            raise
        raise UserError(f"model {str(name)[:60]!r} cannot be read: {one_line(error)}") from error


def _locate(name: str | Path) -> CheckpointFiles:
    if name == DEMO:
        if not (DEMO_DIRECTORY / "config.json").is_file():
            raise UserError(
                f"the demo model is not installed ({DEMO_DIRECTORY} has no config.json); name a checkpoint"
            )
        return _in_directory(DEMO_DIRECTORY)
    path = Path(name).expanduser()
    if path.is_dir():
        return _in_directory(path)
    if path.is_file():
        config = path.parent / "config.json"
        return CheckpointFiles(config if config.is_file() else None, (path,))
    hub = hub_name(str(name))
    if hub is not None:
        return _downloaded(*hub)
    raise UserError(
        f"model {str(name)!r} is neither demo, nor a directory, a weights file or a hub name "
        "(owner/name, owner/name@revision or its https link)"
    )


def read_config(files: CheckpointFiles) -> Fast3RConfig:
    """The configuration next to the weights.  Raises UserError when there is none."""
    if files.config is None:
        raise UserError(
            f"{files.weights[0]} has no config.json next to it; put the model's config.json there"
        )
    return Fast3RConfig.read(files.config)


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    """Names and shapes of a model's state dict."""
    return {key: tensor.shape for key, tensor in model.state_dict().items()}


def aliases(keys: Mapping[str, Any]) -> dict[str, str]:
    """Second name -> first name of the tensors with two names in a state dict (the heads' layer_rn)."""
    found = {}
    for key in keys:
        stem, mark, rest = key.partition(".scratch.layer_rn.")
        if mark:
            number, _, leaf = rest.partition(".")
            found[key] = f"{stem}.scratch.layer{int(number) + 1}_rn.{leaf}"
    return found


def read_weights(files: CheckpointFiles, expected: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """All tensors of a checkpoint under the names of `expected`; raises UserError if they do not match."""
    source = str(files.weights[0] if len(files.weights) == 1 else files.weights[0].parent)
    tensors: dict[str, Tensor] = {}
    for path in files.weights:
        tensors.update(read_tensors(path))
    return fit(tensors, expected, source)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file: safetensors, or a PyTorch pickle read without running any code from it."""
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = read_pickle(path)
    for wrapper in ("state_dict", "model", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds {type(content).__name__}, expected a state dict")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    empty = [key for key, tensor in tensors.items() if tensor.is_meta]
    if empty:
        raise UserError(f"{path} cannot be used: {_first('without values', empty)}")
    return tensors


def fit(tensors: Mapping[str, Tensor], expected: Mapping[str, torch.Size], source: str) -> dict[str, Tensor]:
    """The tensors under the names of `expected`, without a framework's prefix and with aliases filled in."""
    prefix = _prefix(tensors, expected)
    named = {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    for alias, key in aliases(expected).items():
        if key not in named and alias in named:
            named[key] = named[alias]
        if alias not in named and key in named:
            named[alias] = named[key]
    missing = [key for key in expected if key not in named]
    unknown = [key for key in named if key not in expected]
    wrong = [
        f"{key} is {tuple(named[key].shape)}, expected {tuple(shape)}"
        for key, shape in expected.items()
        if key in named and named[key].shape != shape
    ]
    unfit = [
        f"{key} is {str(named[key].dtype).removeprefix('torch.')}"
        for key in expected
        if key in named and not (named[key].is_floating_point() and named[key].layout is torch.strided)
    ]
    problems = [
        _first("not of floating-point numbers", unfit),
        _first("missing", missing),
        _first("not expected", unknown),
        _first("of another shape", wrong),
    ]
    problems = [problem for problem in problems if problem]
    if problems:
        raise UserError(f"{source} does not fit the configuration: {one_line('; '.join(problems), 1000)}")
    return named


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raises UserError for weights with NaN or infinity: every result would be NaN."""
    # one pass without a copy: NaN and infinity show in the minimum or the maximum
    broken = [key for key, tensor in tensors.items() if not all(map(_is_finite, tensor.detach().aminmax()))]
    if broken:
        raise UserError(f"{source} cannot be used: {_first('with NaN or infinity', broken)}")


def initialise_from_dust3r(model: nn.Module, path: Path) -> list[str]:
    """Initial weights from a DUSt3R file: its encoder, and its first head for the global head if it fits.

    The head is used only if all of its shapes fit, as in the release (DUSt3R's decoder is 768 wide, the
    released Fast3R's 1024).  Returns the names that were set.  Raises UserError when the encoder does not
    fit.
    """
    tensors = read_tensors(path)
    expected = shapes_of(model)
    encoder = {
        f"encoder.{key}": tensor
        for key, tensor in tensors.items()
        if key.startswith(("patch_embed.", "enc_blocks.", "enc_norm."))
    }
    wanted = {key: shape for key, shape in expected.items() if key.startswith("encoder.")}
    chosen = fit(encoder, wanted, str(path))
    check_finite(chosen, str(path))
    head = {
        key.replace("downstream_head1.", "downstream_head.", 1): tensor
        for key, tensor in tensors.items()
        if key.startswith("downstream_head1.")
    }
    wanted = {key: shape for key, shape in expected.items() if key.startswith("downstream_head.")}
    try:
        fitting = fit(head, wanted, str(path))
        check_finite(fitting, str(path))
        chosen |= fitting
    except UserError as error:
        _log.warning("the global head keeps its random initial weights: %s", error)
    model.load_state_dict(chosen, strict=False)
    return sorted(chosen)


def write(model: nn.Module, config: Fast3RConfig, directory: Path) -> None:
    """Write config.json and model.safetensors; the heads' second names go to the metadata, as in the release.

    Each file is written atomically.  Raises UserError when the disk is full.
    """
    state = model.state_dict()
    twice = aliases(state)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items() if key not in twice}
    weights = directory / "model.safetensors"
    with whole_file(weights, durable=True) as partial:
        write_safetensors(partial, tensors, {"format": "pt", **twice})
        config.write(directory / "config.json")


def _in_directory(directory: Path) -> CheckpointFiles:
    config = directory / "config.json"
    for name in WEIGHT_FILES:
        path = directory / name
        if path.is_file():
            weights = _shards(path) if name.endswith(".index.json") else (path,)
            return CheckpointFiles(config if config.is_file() else None, weights)
    raise UserError(f"{directory} holds no weights; expected one of {', '.join(WEIGHT_FILES)}")


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(read_json(index, _INDEX_BYTES)["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is not an index of shards: {one_line(repr(error))}") from error
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{index} lists no shards; download the checkpoint again")
    for name in names:
        if Path(name).name != name or "\0" in name or not (index.parent / name).is_file():
            raise UserError(f"{index} lists the shard {name[:60]!r}, which is not in {index.parent}")
    return tuple(index.parent / name for name in names)


def hub_name(text: str) -> tuple[str, str | None] | None:
    """(owner/name, revision or None) of a hub name or of a link to a model's page or file; None otherwise.

    Hub names are owner/name and owner/name@revision.
    """
    link = HUB_LINK.fullmatch(text)
    if link is not None:
        revision = link["revision"]
        return link["name"], unquote(revision) if revision else None
    name = HUB_NAME.fullmatch(text)
    return None if name is None else (name["name"], name["revision"])


def _downloaded(name: str, revision: str | None) -> CheckpointFiles:
    """A model of the hub.  Raises UserError also for an incomplete earlier download."""
    directory = _download(name, revision)
    try:
        return _in_directory(directory)
    except UserError as error:
        raise UserError(
            f"the download of {name!r} in {directory} is incomplete ({error}); connect to the network and "
            "start again, or delete that folder"
        ) from error


def _download(name: str, revision: str | None) -> Path:
    """The folder of a model of the hub.

    Without a revision, the official model's known one is used if the hub or the cache has it.
    """
    with optional("huggingface_hub", f"the hub name {name!r}"):
        import huggingface_hub  # noqa: F401
    official = name.lower() == OFFICIAL_NAME.lower()
    if official:
        _log.warning(LICENCE_NOTICE)
    if official and revision is None:
        try:
            return _snapshot(name, OFFICIAL_REVISION)
        except UserError as error:
            _log.warning("%s; trying the newest revision", error)
    return _snapshot(name, revision)


def _snapshot(name: str, revision: str | None) -> Path:
    """One revision of a model, None for the newest.  Raises UserError when it cannot be downloaded."""
    from huggingface_hub import snapshot_download

    asked = f"{name}@{revision}" if revision else name
    try:
        for weights in ("model*.safetensors*", "pytorch_model*"):  # the second if the first is missing
            directory = Path(
                snapshot_download(name, revision=revision, allow_patterns=["config.json", weights])
            )
            if any(directory.glob(weights)):
                break
        return directory
    except Exception as error:  # the hub raises many types, with the same meaning for the user
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"cannot get {asked!r} from the hub (and no directory has this name): {reason}"
        ) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return read_safetensors(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file: {one_line(error)}") from error


def read_pickle(path: Path, advice: str = "", device: torch.device | str = "cpu") -> Any:
    """The content of a PyTorch file, read without running code from it.

    Raises UserError, ending in `advice`, for a damaged file and for one that holds more than tensors or
    claims more bytes than it has.
    """
    torch.serialization.add_safe_globals([argparse.Namespace])  # DUSt3R files hold their arguments
    try:
        with open_regular(path) as file:
            if zipfile.is_zipfile(file):
                _check_zip(file)
            file.seek(0)
            return torch.load(file, map_location=device, weights_only=True)
    except Exception as error:  # pickle and zip raise many types, with the same meaning for the user
        raise UserError(
            f"{path} is damaged, or holds more than tensors and is rejected because it could run code: "
            f"{one_line(error, 120)}{'; ' if advice else ''}{advice}"
        ) from error


def _check_zip(file: BinaryIO) -> None:
    """Rejects compressed entries, which PyTorch never writes: a small file could fill the memory."""
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("its entries are compressed")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError("its entries claim more bytes than it has")


def _prefix(tensors: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> str:
    """The training framework's prefix of the file's keys, empty when there is none."""
    return max(
        ("", *PREFIXES),
        key=lambda prefix: sum(
            key.removeprefix(prefix) in expected for key in tensors if key.startswith(prefix)
        ),
    )


def _is_finite(value: Tensor) -> bool:
    return bool(value.isfinite())


def _first(what: str, keys: list[str], count: int = 3) -> str:
    if not keys:
        return ""
    more = f", and {len(keys) - count} more" if len(keys) > count else ""
    return f"{len(keys)} {what}: {', '.join(keys[:count])}{more}"

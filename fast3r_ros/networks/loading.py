"""The network that `model` names, for the node and for every command: `checkpoint`, or `name:checkpoint`;
Fast3R is the reference and the default.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Protocol, cast

from fast3r_ros.errors import UserError
from fast3r_ros.files import one_line
from fast3r_ros.mapping.data import WindowNetwork
from fast3r_ros.mapping.network import Fast3RNetwork
from fast3r_ros.model import Fast3R
from fast3r_ros.model.precision import resolve_device, resolve_dtype
from fast3r_ros.model.speed.acceleration import Acceleration, accelerate


def load(checkpoint: str, options: NetworkOptions) -> Fast3RNetwork:
    """See `LoadNetwork`."""
    acceleration = Acceleration.parse(options.accelerate)
    dtype = resolve_dtype(options.dtype, options.device)
    model = Fast3R.from_pretrained(checkpoint or "demo", device=options.device, dtype=dtype)
    accelerate(model, acceleration)
    if options.parallel != "none":
        from fast3r_ros.model.speed.parallel import parallelise

        parallelise(model, options.parallel)
    return Fast3RNetwork(model, options.image_size)


GROUP = "fast3r_ros.networks"
DEFAULT = "fast3r"
# Listed here as well, because an uninstalled source tree has no metadata.
_BUILT_IN = {
    DEFAULT: "fast3r_ros.networks.loading:load",
    "da3": "fast3r_ros.networks.depth_anything:load",
    "mapanything": "fast3r_ros.networks.map_anything:load",
    "vggt": "fast3r_ros.networks.vggt:load",
}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class NetworkOptions:
    """The other options of a network.

    device: auto, cpu, cuda, cuda:1; a network gets it resolved.  dtype: auto, float32, bfloat16 or float16,
    see `model.precision.resolve_dtype`.  image_size: pixels of the longer side at the network, None for the
    network's own.  accelerate, parallel: for Fast3R only.
    """

    device: str = "auto"
    dtype: str = "auto"
    image_size: int | None = None
    accelerate: str = "exact"
    parallel: str = "none"


class LoadNetwork(Protocol):
    """The type of an entry point of the group `fast3r_ros.networks`."""

    def __call__(self, checkpoint: str, options: NetworkOptions) -> WindowNetwork:
        """The network, ready on `options.device`.  checkpoint: the text after the colon, may be empty.

        Raises UserError for a checkpoint or an option that it cannot use.
        """
        ...


def split_model(model: str) -> tuple[str, str]:
    """(network, checkpoint) of `name:checkpoint`; a name alone, a path and a link are Fast3R's checkpoint."""
    name, colon, checkpoint = model.partition(":")
    if not (colon and _NAME.fullmatch(name)) or checkpoint.startswith("//") or Path(model).exists():
        return DEFAULT, model
    return name, checkpoint


def known_networks() -> Mapping[str, EntryPoint]:
    """Name -> entry point of the networks here and in installed packages."""
    offered = {point.name: point for point in entry_points(group=GROUP)}
    return {**offered, **{name: EntryPoint(name, value, GROUP) for name, value in _BUILT_IN.items()}}


def load_network(model: str, options: NetworkOptions | None = None) -> WindowNetwork:
    """The network of a model's name on its device.

    Raises UserError for an unknown network, checkpoint or device, and for an option of another network.
    """
    options = options or NetworkOptions()
    name, checkpoint = split_model(model)
    known = known_networks()
    if name not in known:
        raise UserError(
            f"model {model!r} names the network {name!r}, which no installed package offers; "
            f"known are {', '.join(sorted(known))}"
        )
    if name != DEFAULT:
        for option, plain in (("accelerate", "exact"), ("parallel", "none")):
            value = getattr(options, option)
            if value != plain:
                raise UserError(f"{option} {value} is for Fast3R, not for {name}; leave it at {plain}")
    options = replace(options, device=resolve_device(options.device))
    load = _loader(known[name])
    try:
        return load(checkpoint, options)
    except RuntimeError as error:  # of the device, such as insufficient memory
        raise UserError(f"model {model!r} cannot run on {options.device}: {one_line(error)}") from error


def _loader(point: EntryPoint) -> LoadNetwork:
    try:
        return cast(LoadNetwork, point.load())
    except Exception as error:  # a partly installed package may raise anything
        package = point.dist.name if point.dist else "fast3r_ros"
        raise UserError(
            f"the network {point.name!r} of the package {package} cannot be loaded: {one_line(repr(error))}"
        ) from error

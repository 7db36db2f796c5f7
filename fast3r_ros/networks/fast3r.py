"""Fast3R, the reference and the default: `demo`, a checkpoint folder, a weights file or a hub name."""

from __future__ import annotations

from fast3r_ros.mapping.network import Fast3RNetwork
from fast3r_ros.model import Fast3R
from fast3r_ros.model.acceleration import Acceleration, accelerate
from fast3r_ros.model.precision import resolve_dtype
from fast3r_ros.networks.loading import NetworkOptions


def load(checkpoint: str, options: NetworkOptions) -> Fast3RNetwork:
    """See `LoadNetwork`."""
    acceleration = Acceleration.parse(options.accelerate)
    dtype = resolve_dtype(options.dtype, options.device)
    model = Fast3R.from_pretrained(checkpoint or "demo", device=options.device, dtype=dtype)
    accelerate(model, acceleration)
    if options.parallel != "none":
        from fast3r_ros.model.parallel import parallelise

        parallelise(model, options.parallel)
    return Fast3RNetwork(model, options.image_size)

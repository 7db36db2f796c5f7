"""The mapper's parameters for a run over a whole source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fast3r_ros.mapping.config import KeyframeConfig, MapperConfig

DENSE_POINTS = 40000  # per keyframe: all pixels of a small network's view


def run_config(values: Mapping[str, Any], mode: str, views: int) -> MapperConfig:
    """The parameters by their dotted names; missing ones get the defaults for a run over files.

    mode: `window`, or `all` for one pass over all frames.  views: number of frames.  Raises UserError for a
    parameter that does not exist or a value out of range.
    """
    # in the background, loop closure would finish at a different frame in every run
    defaults = {"map.points_per_keyframe": DENSE_POINTS, "loop.background": False}
    config = MapperConfig.from_flat({**defaults, **values})
    if mode == "window":
        return config
    # one window over all frames; every frame is a view
    everything = KeyframeConfig(motion=0.0, max_interval=0.0, sharpness=0.0, contrast=0.0, max_similarity=1.0)
    size = max(views, 2) + config.window.overlap
    window = replace(config.window, size=size, stride=size - config.window.overlap)
    return replace(config, keyframes=everything, window=window)

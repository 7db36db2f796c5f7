"""Every parameter of the mapper, once: default, meaning, range.

The ROS parameters, the YAML file and the command line carry the same dotted names (`window.size`).
Metadata of a field: `description`, `range` (inclusive), `choices`, `dynamic` (may change at run time).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def parameter(
    default: Any,
    description: str,
    *,
    range: tuple[float, float] | None = None,
    choices: tuple[str, ...] | None = None,
    dynamic: bool = False,
) -> Any:
    """A dataclass field that carries what a person must know of a parameter."""
    metadata = {"description": description, "range": range, "choices": choices, "dynamic": dynamic}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class WindowConfig:
    """The sliding multi-view window."""

    size: int = parameter(16, "views in a full window", range=(2, 128))
    stride: int = parameter(4, "new keyframes per window", range=(1, 64))
    overlap: int = parameter(4, "views shared with the map, at least", range=(1, 64))

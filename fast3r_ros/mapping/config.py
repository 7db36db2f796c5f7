"""Every parameter of the mapper, once: default, meaning, range.

The ROS parameters, the YAML file and the command line carry the same dotted names (`window.size`).
What a field's metadata mean says `settings.parameter`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.data import DescriptorLimits
from fast3r_ros.settings import from_flat, parameter, parameter_fields, unknown_parameter


@dataclass(frozen=True)
class KeyframeConfig:
    """Which frames become keyframes."""

    motion: float = parameter(
        0.06,
        "median image motion since the last keyframe, as a share of the image width, that makes a new"
        " keyframe",
        range=(0.0, 1.0),
        dynamic=True,
    )
    min_interval: float = parameter(
        0.0, "least time between keyframes of one camera, in seconds", range=(0.0, 60.0), dynamic=True
    )
    max_interval: float = parameter(
        10.0,
        "after this time, in seconds, a frame becomes a keyframe without motion (0: never)",
        range=(0.0, 3600.0),
        dynamic=True,
    )
    sharpness: float = parameter(
        0.5,
        "a frame is blurred when its sharpness is below this share of recent sharp frames' (0: accept all)",
        range=(0.0, 1.0),
        dynamic=True,
    )
    contrast: float = parameter(
        0.015,
        "least standard deviation of brightness (0 to 1); below it a frame is featureless (0: accept all)",
        range=(0.0, 0.5),
        dynamic=True,
    )
    max_similarity: float = parameter(
        0.0,
        "a frame whose descriptor is more alike to its camera's last keyframe's than this (cosine) is "
        "redundant, as a standing camera's are (1: accept all; 0: the network's own limit, 0.9999 of Fast3R)",
        range=(0.0, 1.0),
        dynamic=True,
    )


@dataclass(frozen=True)
class WindowConfig:
    """The sliding multi-view window."""

    size: int = parameter(
        16,
        "views in a full window; the node lowers it when a window runs out of memory",
        range=(2, 128),
        dynamic=True,
    )
    stride: int = parameter(4, "new keyframes per window", range=(1, 64))
    overlap: int = parameter(4, "views shared with the map, at least", range=(1, 64))


@dataclass(frozen=True)
class RegistrationConfig:
    """How a window is fitted to the map, and when the fit is believed."""

    inlier_distance: float = parameter(
        0.1,
        "a pixel agrees with the map when its points differ by less than this share of its distance",
        range=(0.001, 1.0),
        dynamic=True,
    )
    min_inlier_share: float = parameter(
        0.3, "least share of agreeing pixels for a window to be accepted", range=(0.0, 1.0), dynamic=True
    )
    min_view_share: float = parameter(
        0.3,
        "least share of a view's pixels that its camera pose must explain for the view to be accepted",
        range=(0.0, 1.0),
        dynamic=True,
    )
    min_view_confidence: float = parameter(
        0.2,
        "a new view is connected when its median confidence (above 1) is at least this share of the "
        "known views'",
        range=(0.0, 1.0),
        dynamic=True,
    )
    retries: int = parameter(
        1, "other reference views that are tried when a window fails", range=(0, 8), dynamic=True
    )
    lost_after: int = parameter(
        2, "windows failed in a row after which a new submap is started", range=(1, 100), dynamic=True
    )
    pixels: int = parameter(
        2000, "pixels per view that take part in a registration", range=(100, 100000), dynamic=True
    )
    planar: bool = parameter(
        False,
        "the base drives on one level floor: its height, roll and pitch are held to the map's ground plane "
        "(needs base -> camera, and a map in metres for the height)",
        dynamic=True,
    )


@dataclass(frozen=True)
class PointsConfig:
    """Which of a view's points are kept."""

    min_confidence: float = parameter(
        1.0,
        "least confidence of a point (the network's confidence starts at 1)",
        range=(1.0, 1e6),
        dynamic=True,
    )
    drop_share: float = parameter(
        0.1, "this share of a view's pixels, the least confident, is dropped", range=(0.0, 0.95), dynamic=True
    )
    edge_ratio: float = parameter(
        0.1,
        "a pixel is at a depth edge when its 3 x 3 neighbourhood spans more than this share of its depth",
        range=(0.001, 10.0),
        dynamic=True,
    )
    max_depth_ratio: float = parameter(
        6.0,
        "points farther than this many times the median depth of what their view is surer of are dropped",
        range=(1.0, 1e6),
        dynamic=True,
    )


@dataclass(frozen=True)
class ScaleConfig:
    """Where metres come from."""

    source: str = parameter(
        "none",
        "what gives the metric scale: none (map units), odometry, rig (known baseline between "
        "cameras), depth "
        "(metric depth images), camera_height (above the floor), network (where its points are in metres), "
        "or fixed",
        choices=("none", "odometry", "rig", "depth", "camera_height", "network", "fixed"),
    )
    accept_sigma: float = parameter(
        0.05,
        "relative standard deviation below which a scale is adopted; it is refined to one percent afterwards",
        range=(0.0001, 1.0),
        dynamic=True,
    )
    hysteresis: float = parameter(
        0.005,
        "what comes next is placed with another scale only when newer measurements differ from the adopted "
        "one by more than this share (and by three standard deviations)",
        range=(0.0, 10.0),
        dynamic=True,
    )
    min_baseline: float = parameter(
        0.3,
        "odometry gives a scale only after the camera has moved this far, in metres",
        range=(0.001, 100.0),
        dynamic=True,
    )
    camera_height: float = parameter(
        1.0, "height of the camera above the floor in metres, for camera_height", range=(0.01, 1000.0)
    )
    metres_per_unit: float = parameter(
        1.0,
        "for fixed: metres per map unit (one map unit is the median depth of the first window)",
        range=(1e-6, 1e6),
    )


@dataclass(frozen=True)
class LoopConfig:
    """Recognising places that were seen before."""

    enabled: bool = parameter(True, "look for places that were seen before", dynamic=True)
    candidates: int = parameter(
        3, "retrieved keyframes that are put into the window for verification", range=(1, 16), dynamic=True
    )
    min_similarity: float = parameter(
        -1.0,
        "least similarity of descriptors for a candidate (cosine of the differences from their mean; -1: the "
        "network's own limit, 0.5 of Fast3R)",
        range=(-1.0, 1.0),
        dynamic=True,
    )
    interval: int = parameter(
        2,
        "windows between two attempts to verify candidates, which have to be encoded again (1: every window)",
        range=(1, 1000),
        dynamic=True,
    )
    min_separation: int = parameter(
        24, "keyframes that must lie between a place and its revisit", range=(1, 100000), dynamic=True
    )
    min_inlier_share: float = parameter(
        0.3, "least share of agreeing pixels for a loop to be closed", range=(0.0, 1.0), dynamic=True
    )
    background: bool = parameter(True, "optimise the pose graph in a background thread")


@dataclass(frozen=True)
class MapConfig:
    """What the map keeps, and how much of it."""

    voxel_size: float = parameter(
        0.0,
        "edge of a voxel of the fused cloud, in metres (map units while no scale is known); 0: a "
        "hundredth of "
        "the median depth of the first window",
        range=(0.0, 10.0),
    )
    points_per_keyframe: int = parameter(
        10000, "points that a keyframe keeps, at most (a regular pixel grid)", range=(100, 1000000)
    )
    max_points: int = parameter(
        2000000, "points of the fused cloud, at most", range=(1000, 100000000), dynamic=True
    )
    memory_mb: float = parameter(
        2048.0, "memory of the map in MiB, at most; redundant keyframes are dropped first", range=(1.0, 1e6)
    )
    keyframes_refused: int = parameter(
        8,
        "keyframes per window that are fused again after they moved, at most",
        range=(1, 10000),
        dynamic=True,
    )


@dataclass(frozen=True)
class MapperConfig:
    """All parameters of the mapper, by section."""

    keyframes: KeyframeConfig = field(default_factory=KeyframeConfig)
    window: WindowConfig = field(default_factory=WindowConfig)
    registration: RegistrationConfig = field(default_factory=RegistrationConfig)
    points: PointsConfig = field(default_factory=PointsConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    map: MapConfig = field(default_factory=MapConfig)

    def __post_init__(self) -> None:
        window = self.window
        if window.stride + window.overlap > window.size:
            raise UserError(
                f"window.stride {window.stride} + window.overlap {window.overlap} exceed window.size "
                f"{window.size}; make the window larger or one of the others smaller"
            )

    def for_network(self, limits: DescriptorLimits) -> MapperConfig:
        """With a network's own limits where none were given."""
        redundant = self.keyframes.max_similarity or limits.redundant
        similar = self.loop.min_similarity if self.loop.min_similarity > -1.0 else limits.similar
        return replace(
            self,
            keyframes=replace(self.keyframes, max_similarity=redundant),
            loop=replace(self.loop, min_similarity=similar),
        )

    @staticmethod
    def from_flat(values: Mapping[str, Any]) -> MapperConfig:
        """A configuration from dotted names (`{"window.size": 8}`); what is not named keeps its default.

        Raises UserError for an unknown name, a wrong type, a value out of range or not among the choices.
        """
        known = dict(flat_parameters())
        for name in values:
            if name not in known:
                raise UserError(unknown_parameter(name, known))
        config = from_flat(MapperConfig, values)
        assert isinstance(config, MapperConfig)
        return config

    def to_flat(self) -> dict[str, Any]:
        """Every parameter by its dotted name, in the order of declaration."""
        return {name: value for name, _, value in parameter_fields(self)}


def flat_parameters() -> list[tuple[str, Any]]:
    """(dotted name, dataclass field) of every parameter; the field has `default` and `metadata`."""
    return [(name, item) for name, item, _ in parameter_fields(MapperConfig())]

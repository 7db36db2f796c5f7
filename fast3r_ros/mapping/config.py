"""Every setting of the mapper, once: default, meaning, range.

Python (`MapperConfig.from_flat`) and `fast3r reconstruct --set` know all of them by their dotted names
(`window.size`).  The ROS node and its YAML file carry those that a user has a reason to change; the others
are marked as `constant`.  `settings.parameter` explains a field's metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fast3r_ros.errors import UserError
from fast3r_ros.settings import from_flat, parameter, parameter_fields, unknown_parameter

RENAMED = {"map.keyframes_refused": "map.moved_per_window"}  # a former name and the present one


@dataclass(frozen=True)
class DescriptorLimits:
    """Limits for comparing a network's descriptors.

    redundant: a view whose cosine with its camera's last keyframe is above this is redundant; 1 accepts every
    view.  similar: minimum cosine, of the differences from the mean of all keyframes, for a place that may be
    the same.  The defaults are Fast3R's.
    """

    redundant: float = 0.9999
    similar: float = 0.5


@dataclass(frozen=True)
class KeyframeConfig:
    """Selection of keyframes."""

    motion: float = parameter(
        0.06,
        "Minimum median image motion since the last keyframe, as a share of the image width, that "
        "makes a new keyframe",
        range=(0.0, 1.0),
        dynamic=True,
    )
    min_interval: float = parameter(
        0.0,
        "Minimum time between keyframes of one camera, in seconds",
        range=(0.0, 60.0),
        dynamic=True,
        constant=True,
    )
    max_interval: float = parameter(
        10.0,
        "Maximum time between keyframes without motion, in seconds (0: no limit)",
        range=(0.0, 3600.0),
        dynamic=True,
        constant=True,
    )
    sharpness: float = parameter(
        0.5,
        "Minimum sharpness of a keyframe, as a share of recent sharp frames' (0: accept all)",
        range=(0.0, 1.0),
        dynamic=True,
    )
    contrast: float = parameter(
        0.015,
        "Minimum standard deviation of a frame's brightness, as a share of full brightness; below it "
        "a frame is featureless (0: accept all)",
        range=(0.0, 0.5),
        dynamic=True,
        constant=True,
    )
    max_similarity: float = parameter(
        0.0,
        "Maximum similarity (cosine) of a frame's descriptor to that of its camera's last keyframe; "
        "above it a frame is redundant, as those of a stationary camera are (1: accept all; 0: the "
        "network's own limit, 0.9999 for Fast3R)",
        range=(0.0, 1.0),
        dynamic=True,
        constant=True,
    )


@dataclass(frozen=True)
class WindowConfig:
    """The sliding multi-view window."""

    size: int = parameter(
        16,
        "Number of views in a full window; the node lowers it when a window runs out of memory",
        range=(2, 128),
        dynamic=True,
    )
    stride: int = parameter(4, "Number of new keyframes per window", range=(1, 64))
    overlap: int = parameter(4, "Minimum number of views that a window shares with the map", range=(1, 64))


@dataclass(frozen=True)
class RegistrationConfig:
    """Registration of a window to the map, and its acceptance."""

    inlier_distance: float = parameter(
        0.1,
        "Maximum distance between a pixel's point and the map's, as a share of its distance from the "
        "camera, at which the two agree",
        range=(0.001, 1.0),
        dynamic=True,
        constant=True,
    )
    min_inlier_share: float = parameter(
        0.3, "Minimum share of agreeing pixels for a window to be accepted", range=(0.0, 1.0), dynamic=True
    )
    min_view_share: float = parameter(
        0.3,
        "Minimum share of a view's pixels that its camera pose must explain for the view to be accepted",
        range=(0.0, 1.0),
        dynamic=True,
        constant=True,
    )
    min_view_confidence: float = parameter(
        0.2,
        "Minimum median confidence (above 1) of a new view, as a share of the known views', for it to "
        "be connected",
        range=(0.0, 1.0),
        dynamic=True,
        constant=True,
    )
    retries: int = parameter(
        1,
        "Maximum number of other reference views that are tried when a window is rejected",
        range=(0, 8),
        dynamic=True,
        constant=True,
    )
    lost_after: int = parameter(
        2,
        "Number of windows rejected in a row after which a new submap is started",
        range=(1, 100),
        dynamic=True,
        constant=True,
    )
    pixels: int = parameter(
        2000,
        "Number of pixels per view that take part in a registration",
        range=(100, 100000),
        dynamic=True,
        constant=True,
    )
    planar: bool = parameter(
        False,
        "Motion of the base on one level floor only: its height, roll and pitch are held to the map's "
        "ground plane (needs base -> camera, and a map in metres for the height)",
        dynamic=True,
    )


@dataclass(frozen=True)
class PointsConfig:
    """Filters of a view's points."""

    min_confidence: float = parameter(
        1.0,
        "Minimum confidence of a point (a number without unit; the network's confidence starts at 1)",
        range=(1.0, 1e6),
        dynamic=True,
        constant=True,
    )
    drop_share: float = parameter(
        0.1, "Share of a view's pixels, the least confident, that is dropped", range=(0.0, 0.95), dynamic=True
    )
    edge_ratio: float = parameter(
        0.1,
        "Maximum depth range in a pixel's 3 x 3 neighbourhood, as a share of its depth; above it the "
        "pixel is at a depth edge",
        range=(0.001, 10.0),
        dynamic=True,
        constant=True,
    )
    max_depth_ratio: float = parameter(
        6.0,
        "Maximum depth of a point, as a multiple of the median depth of the view's more confident half",
        range=(1.0, 1e6),
        dynamic=True,
        constant=True,
    )


@dataclass(frozen=True)
class ScaleConfig:
    """The source of the metric scale."""

    source: str = parameter(
        "none",
        "Source of the metric scale: none (map units), odometry, rig (known baseline between "
        "cameras), depth (metric depth images), camera_height (above the floor), network (where its "
        "points are in metres), or fixed",
        choices=("none", "odometry", "rig", "depth", "camera_height", "network", "fixed"),
    )
    accept_sigma: float = parameter(
        0.05,
        "Maximum standard deviation of a scale, as a share of it, for it to be adopted; it is refined "
        "to one percent afterwards",
        range=(0.0001, 1.0),
        dynamic=True,
        constant=True,
    )
    hysteresis: float = parameter(
        0.005,
        "Minimum difference of newer measurements from the adopted scale, as a share of it, for what "
        "comes next to be placed with another scale (it has to exceed three standard deviations, too)",
        range=(0.0, 10.0),
        dynamic=True,
        constant=True,
    )
    min_baseline: float = parameter(
        0.3,
        "Minimum distance that the camera has moved before odometry gives a scale, in metres",
        range=(0.001, 100.0),
        dynamic=True,
        constant=True,
    )
    camera_height: float = parameter(
        1.0,
        "Height of the camera above the floor, in metres, for scale.source camera_height",
        range=(0.01, 1000.0),
    )
    metres_per_unit: float = parameter(
        1.0,
        "Length of a map unit, in metres, for scale.source fixed (a map unit is the median depth of "
        "the first window)",
        range=(1e-6, 1e6),
    )


@dataclass(frozen=True)
class LoopConfig:
    """Loop closure: recognition of known places."""

    enabled: bool = parameter(True, "Search for known places, to close loops", dynamic=True)
    candidates: int = parameter(
        3,
        "Maximum number of retrieved keyframes that are put into the window for verification",
        range=(1, 16),
        dynamic=True,
        constant=True,
    )
    min_similarity: float = parameter(
        -1.0,
        "Minimum similarity of descriptors for a candidate (cosine of the differences from their "
        "mean; -1: the network's own limit, 0.5 for Fast3R)",
        range=(-1.0, 1.0),
        dynamic=True,
        constant=True,
    )
    interval: int = parameter(
        2,
        "Number of windows between two attempts to verify candidates, which have to be encoded again "
        "(1: every window)",
        range=(1, 1000),
        dynamic=True,
    )
    min_separation: int = parameter(
        24,
        "Minimum number of keyframes between a place and its revisit",
        range=(1, 100000),
        dynamic=True,
        constant=True,
    )
    min_inlier_share: float = parameter(
        0.3,
        "Minimum share of agreeing pixels for a loop to be closed",
        range=(0.0, 1.0),
        dynamic=True,
        constant=True,
    )
    background: bool = parameter(True, "Optimisation of the pose graph in a background thread", constant=True)


@dataclass(frozen=True)
class MapConfig:
    """The content and the limits of the map."""

    voxel_size: float = parameter(
        0.0,
        "Edge length of a voxel of the fused cloud, in metres (map units while no scale is known); 0: "
        "a hundredth of the median depth of the first window",
        range=(0.0, 10.0),
    )
    points_per_keyframe: int = parameter(
        10000,
        "Maximum number of points that a keyframe keeps (a regular pixel grid)",
        range=(100, 1000000),
        constant=True,
    )
    max_points: int = parameter(
        2000000, "Maximum number of points of the fused cloud", range=(1000, 100000000), dynamic=True
    )
    memory_mb: float = parameter(
        2048.0, "Maximum memory of the map, in MiB; redundant keyframes are dropped first", range=(1.0, 1e6)
    )
    moved_per_window: int = parameter(
        8,
        "Maximum number of moved keyframes that are fused again per window",
        range=(1, 10000),
        dynamic=True,
        constant=True,
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
        """A copy with the network's own limits where none are set."""
        redundant = self.keyframes.max_similarity or limits.redundant
        similar = self.loop.min_similarity if self.loop.min_similarity > -1.0 else limits.similar
        return replace(
            self,
            keyframes=replace(self.keyframes, max_similarity=redundant),
            loop=replace(self.loop, min_similarity=similar),
        )

    @staticmethod
    def from_flat(values: Mapping[str, Any]) -> MapperConfig:
        """A configuration from dotted names (`{"window.size": 8}`); missing names keep their defaults.

        Raises UserError for an unknown or former name, a wrong type, a value out of range or not among the
        choices.
        """
        known = dict(flat_parameters())
        for name in values:
            if name in RENAMED:
                raise UserError(f"parameter {name} is called {RENAMED[name]} now; use that name")
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

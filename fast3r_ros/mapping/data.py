"""The data that flows through the mapper: frame -> window -> reconstruction -> estimates.

Frames of reference: `camera` is the optical frame (x right, y down, z forward); `window` is the camera frame
of the window's view 0 in the network's arbitrary scale; `map` is x forward, y left, z up (REP-103), in metres
once a scale is known and in "map units" before.  Pixel centres are at integer + 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.config import DescriptorLimits

if TYPE_CHECKING:
    from torch import Tensor

    from fast3r_ros.mapping.view_maps import ViewMaps

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
UInt8 = NDArray[np.uint8]

SIMULTANEOUS_NS = 5_000_000  # images of several cameras within this time count as simultaneous
BARE_KEYFRAME_BYTES = 2000  # size of a keyframe without points, image and descriptor


@dataclass(frozen=True)
class Frame:
    """One camera image as received.

    image: (H, W, 3) uint8 RGB.  intrinsics: (3, 3) pinhole matrix for this image's pixels, None if unknown.
    camera: the name of the camera, which is its optical frame id.  stamp_ns: the image's stamp.
    depth: (H, W) float32 metric depth in metres, NaN or 0 where unknown, None if there is none.
    base_from_camera: (4, 4) metres, the camera's pose on the robot at this stamp; None if unknown.
    ignored: (H, W) bool, pixels that are not mapped (people, the robot itself); None without any.
    """

    stamp_ns: int
    camera: str
    image: UInt8
    intrinsics: Float64 | None = None
    depth: Float32 | None = None
    base_from_camera: Float64 | None = None
    ignored: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class EncodedView:
    """A frame at network size with its encoder tokens, kept while its keyframe is in a window.

    image: (h, w, 3) uint8 RGB at network size.  network_from_image: (3, 3) pixel transform from the frame's
    pixels.  intrinsics: (3, 3) at network size, or None.  descriptor: (D,) float32 of unit norm, the pooled
    tokens, used for retrieval.  tokens: the network's own data for fusing the view, opaque to mapping.
    ignored: (h, w) bool, the frame's at network size, set by `encode_all`.  odom_from_camera: (4, 4) in
    metres, a new view's camera pose by odometry, None if unknown; set by the mapper.
    """

    image: UInt8
    network_from_image: Float64
    intrinsics: Float64 | None
    descriptor: Float32
    tokens: Any
    ignored: NDArray[np.bool_] | None = None
    odom_from_camera: Float64 | None = None


@dataclass(frozen=True)
class Reconstruction:
    """The network's result for one window of V views: one tensor per view, on the network's device.

    The views may differ in size (h, w).  points_global: (h, w, 3) float32 in `window`.  points_local: (h, w,
    3) float32, each in its own camera frame (each view may have its own scale).  confidence_*: (h, w)
    float32, at least 1.  The global maps are empty if only the local ones were requested.

    Optional results, None if the network lacks them.  window_from_camera: (V, 4, 4) maps points_local to
    points_global; without it each pose is fitted to the two.  intrinsics: (V, 3, 3) at network size, on whose
    rays points_local lie; without them the focal length is fitted to the points.  metric: whether the points
    are in metres.
    """

    points_global: Sequence[Tensor]
    confidence_global: Sequence[Tensor]
    points_local: Sequence[Tensor]
    confidence_local: Sequence[Tensor]
    _: KW_ONLY
    window_from_camera: Float64 | None = None
    intrinsics: Float64 | None = None
    metric: bool = False


class WindowNetwork(Protocol):
    """The interface of a network for mapping; derived classes inherit its defaults.

    `fast3r_ros.mapping.network.Fast3RNetwork` is the reference; `fast3r_ros.networks` also loads others;
    `fast3r_ros.synthetic.oracle_network.OracleNetwork` returns disturbed ground truth for tests.
    """

    descriptors: DescriptorLimits = DescriptorLimits()  # optional for classes that do not derive

    def encode(self, frame: Frame) -> EncodedView:
        """Resize and encode one frame; an image already resized by `encode` is not changed.

        The network's other inputs (`frame.intrinsics`, `frame.depth`) go into the tokens.
        Raises UserError for an unusable image.
        """
        ...

    def reconstruct(self, views: Sequence[EncodedView]) -> Reconstruction:
        """One forward pass over the window, of at least one view; the views may differ in size.

        View 0 defines the `window` frame; in a pass that continues the last one, that pass's view 0 does.
        The network converts its own measure of confidence to values of at least 1.
        """
        ...


def descriptor_limits(network: WindowNetwork) -> DescriptorLimits:
    """The limits of a network's descriptors; the defaults if it has none."""
    return getattr(network, "descriptors", None) or DescriptorLimits()


@dataclass(frozen=True)
class ViewEstimate:
    """One view of a window with its pose in the map.

    map_from_camera: (4, 4) float64.  covariance: (6, 6) float64 of (translation, rotation vector) in the map
    frame.  intrinsics: (3, 3) at network size (given or estimated).  image: (h, w, 3) uint8 RGB.  maps: the
    view's points, confidence and filter on the network's device; the properties are copies for the host.
    base_from_camera: see `Frame`.
    """

    keyframe_id: int
    stamp_ns: int
    camera: str
    map_from_camera: Float64
    covariance: Float64
    intrinsics: Float64
    network_from_image: Float64
    image: UInt8
    maps: ViewMaps
    base_from_camera: Float64 | None = None

    @property
    def map_from_base(self) -> Float64 | None:
        """(4, 4) pose of the robot's base, None if the camera's pose on it is unknown."""
        return _base_pose(self.map_from_camera, self.base_from_camera)

    @property
    def points_camera(self) -> Float32:
        """(h, w, 3) in the view's own camera frame, in map scale."""
        return self.maps.on_host.points

    @property
    def confidence(self) -> Float32:
        """(h, w), at least 1."""
        return self.maps.on_host.confidence

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(h, w), the points that pass the confidence and edge filters."""
        return self.maps.on_host.valid


@dataclass(frozen=True)
class WindowResult:
    """The result of one window.

    accepted: whether it was added to the map; reason: of a rejection, human-readable (empty if accepted).
    views are in time order, the newest last; empty when not accepted.  map_from_window: the registration.
    residual: robust RMS of the overlap in map units; inlier_share in [0, 1].  covariance: (7, 7) of the
    registration, see `SimilarityFit`; infinite without one.  timings: seconds per stage.
    """

    stamp_ns: int
    accepted: bool
    reason: str
    views: tuple[ViewEstimate, ...]
    map_from_window: Sim3
    residual: float
    inlier_share: float
    submap: int
    map_version: int
    loop_closed: bool
    timings: Mapping[str, float] = field(default_factory=dict)
    covariance: Float64 = field(default_factory=lambda: np.full((7, 7), np.inf))


@dataclass(frozen=True)
class PoseEstimate:
    """The pose of one frame in the map; extrapolated if no window contains the frame yet.

    covariance: (6, 6) of (position, rotation vector) in `map`.  base_from_camera: see `Frame`.
    """

    stamp_ns: int
    camera: str
    map_from_camera: Float64
    covariance: Float64
    extrapolated: bool
    base_from_camera: Float64 | None = None

    @property
    def map_from_base(self) -> Float64 | None:
        """(4, 4) pose of the robot's base, None if the camera's pose on it is unknown."""
        return _base_pose(self.map_from_camera, self.base_from_camera)


def _base_pose(map_from_camera: Float64, base_from_camera: Float64 | None) -> Float64 | None:
    return None if base_from_camera is None else map_from_camera @ inverse(base_from_camera)


@dataclass(frozen=True)
class Cloud:
    """points: (N, 3) float32 in `map`; colors: (N, 3) uint8 RGB; confidence: (N,) float32."""

    points: Float32
    colors: UInt8
    confidence: Float32


@dataclass(frozen=True)
class MapperStatus:
    """Counts since the start or the last reset.

    dropped: reason -> count.  windows: the accepted ones, without windows_rejected.  scale_source: one of the
    names of `ScaleConfig.source`; metres: whether the current submap is in metres.  scale_sigma: relative
    standard deviation of its scale.  focal_differences: camera with a calibration -> relative difference of
    the network's focal length from it.  calibration: implausible calibrations as a sentence; empty without
    any.  repeated_passes: passes of the network since loading that were computed again in a safer precision
    because their results were not finite.
    """

    received: int
    keyframes: int
    dropped: Mapping[str, int]
    windows: int
    windows_rejected: int
    submaps: int
    loops_closed: int
    map_points: int
    map_bytes: int
    scale_source: str
    metres: bool
    scale_sigma: float
    timings: Mapping[str, float]
    last_error: str
    focal_differences: Mapping[str, float] = field(default_factory=dict)
    calibration: str = ""
    repeated_passes: int = 0


@dataclass(frozen=True)
class KeyframePoints:
    """A regular grid of a keyframe's pixels; points dropped by the filters have confidence 0.

    points: (n, 3) float32 in the keyframe's local frame (its camera, in its own unit).  confidence: (n,)
    float32. colors: (n, 3) uint8.  pixels: (n,) flat pixel numbers at network size, shared by keyframes of
    one size.
    """

    points: Float32
    confidence: Float32
    colors: UInt8
    pixels: NDArray[np.int32]

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return self.points.nbytes + self.confidence.nbytes + self.colors.nbytes


@dataclass(frozen=True)
class Keyframe:
    """A view that is part of the map.

    map_from_local: the pose of its points; the rigid part is the camera's pose.  covariance: (6, 6) of
    (position, rotation vector) in `map`.  estimates: number of windows averaged in the pose.  image: (h, w,
    3) uint8 at network size, to encode it again for a loop; points and image are None for a culled keyframe.
    base_from_camera: (4, 4) metres, the camera's pose on the robot; None if unknown.
    """

    id: int
    stamp_ns: int
    camera: str
    submap: int
    map_from_local: Sim3
    covariance: Float64
    estimates: int
    intrinsics: Float64
    network_from_image: Float64
    descriptor: Float32
    image: UInt8 | None
    points: KeyframePoints | None
    depth: float
    metric_scale: float
    base_from_camera: Float64 | None = None

    @property
    def map_from_camera(self) -> Float64:
        """(4, 4) rigid pose."""
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = self.map_from_local.rotation, self.map_from_local.translation
        return pose

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        parts = (self.points, self.image, self.descriptor)
        return BARE_KEYFRAME_BYTES + sum(part.nbytes for part in parts if part is not None)

"""One window: its frames are encoded, reconstructed and registered to the map."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from fast3r_ros.errors import UserError
from fast3r_ros.geometry.camera_pose import CameraPoses
from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.calibration import FocalLengths, WindowCameras, network_focals
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import EncodedView, Float64, Frame, Keyframe, Reconstruction, WindowNetwork
from fast3r_ros.mapping.expectation import similarity_of_poses
from fast3r_ros.mapping.loops import verified
from fast3r_ros.mapping.placement import (
    RegisteredWindow,
    median_depth,
    overlaps_with_map,
)
from fast3r_ros.mapping.points import typical_confidence
from fast3r_ros.mapping.registration import Registration, place_views, register
from fast3r_ros.mapping.view_errors import ViewErrors
from fast3r_ros.mapping.window import WindowView, reference_order


@runtime_checkable
class EncodesTogether(Protocol):
    """An optional extension of `WindowNetwork`; `Fast3RNetwork` has it."""

    def encode_all(self, frames: Sequence[Frame]) -> list[EncodedView | UserError]:
        """Like `encode` for each frame; an unusable frame gives its error instead."""
        ...


def encode_all(network: WindowNetwork, frames: Sequence[Frame]) -> list[EncodedView | UserError]:
    """Each frame's encoded view, or the error of an unusable frame.

    On a GPU, encoding several images together takes little more time than one, which leaves most of it idle.
    """
    if isinstance(network, EncodesTogether):
        encoded = network.encode_all(frames)
    else:
        encoded = [_encode(network, frame) for frame in frames]
    return [_with_ignored(frame, view) for frame, view in zip(frames, encoded, strict=True)]


def without_ignored(views: Sequence[EncodedView], maps: Reconstruction) -> Reconstruction:
    """The maps with confidence 0 at ignored pixels.

    That is below any network's confidence, and excludes them from every fit and from the map.
    """
    if all(view.ignored is None for view in views):
        return maps

    def cleared(confidence: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [
            values
            if view.ignored is None
            else values.masked_fill(torch.from_numpy(view.ignored).to(values.device), 0.0)
            for view, values in zip(views, confidence, strict=True)
        ]

    return replace(
        maps,
        confidence_global=cleared(maps.confidence_global),
        confidence_local=cleared(maps.confidence_local),
    )


def _with_ignored(frame: Frame, view: EncodedView | UserError) -> EncodedView | UserError:
    if frame.ignored is None or isinstance(view, UserError):
        return view
    return replace(view, ignored=_resampled(frame.ignored, view.network_from_image, view.image.shape[:2]))


def _resampled(
    ignored: NDArray[np.bool_], network_from_image: Float64, size: tuple[int, ...]
) -> NDArray[np.bool_]:
    """A mask (H, W) at network size: a pixel is ignored if any image pixel that it covers is."""
    height, width = size
    corners = np.stack(np.meshgrid(np.arange(width + 1.0), np.arange(height + 1.0)), axis=-1)
    image_from_network = np.linalg.inv(network_from_image)
    places = corners @ image_from_network[:2, :2].T + image_from_network[:2, 2]
    ends = np.stack([places[:-1, :-1], places[1:, 1:]])
    low, high = np.floor(ends.min(axis=0)).astype(int), np.ceil(ends.max(axis=0)).astype(int)
    sums = np.pad(ignored.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))  # summed-area table
    limit = np.array([ignored.shape[1], ignored.shape[0]])
    (left, top), (right, bottom) = (np.moveaxis(each.clip(0, limit), -1, 0) for each in (low, high))
    return np.asarray(sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left] > 0)


def _encode(network: WindowNetwork, frame: Frame) -> EncodedView | UserError:
    try:
        return network.encode(frame)
    except UserError as error:
        return error


_LARGEST = 1e9  # maximum coordinate in the network's unit; a room has a few units
Lap = Callable[[str], None]


@dataclass(frozen=True)
class SubmapStart:
    """The start of a submap: the pose (4, 4) of its oldest view and the median depth of its first window.

    expected: (camera, stamp_ns) -> `map_from_camera` of the new views by odometry.
    """

    map_from_camera: Float64
    depth: float
    expected: Mapping[tuple[str, int], Float64] = field(default_factory=dict)


def submap_start(keyframes: dict[int, Keyframe], origin: Float64) -> SubmapStart:
    """The pose and depth where the track was lost; for an empty map `origin` (4, 4) and depth 1."""
    recent = list(islice(reversed(keyframes.values()), 8))
    if not recent:
        return SubmapStart(origin, 1.0)
    depth = float(np.median([k.depth * k.map_from_local.scale for k in recent]))
    return SubmapStart(recent[0].map_from_camera, depth)


@dataclass(frozen=True)
class Knowledge:
    """The cameras and the network's errors, learnt from all windows so far."""

    focals: FocalLengths = field(default_factory=FocalLengths)
    errors: ViewErrors = field(default_factory=ViewErrors)


@dataclass(frozen=True)
class Track:
    """A window and its connection to the map.

    loop: the fit to the retrieved keyframes, if accepted.  loop_keyframe: the best of these, or None.
    relocalized: the window is registered to the retrieved keyframes only, not to the recent trajectory.
    connected: (V,) new views that may go into the map.  known: the knowledge after this window.  scales: view
    number -> window units per unit of its keyframe, for measured views: keyframes that agree with the fit,
    verified retrieved ones, and new ones.  bridged: the window shares nothing with the map and was placed by
    odometry.
    """

    window: RegisteredWindow
    loop: Registration | None
    loop_keyframe: int | None
    relocalized: bool
    connected: NDArray[np.bool_]
    known: Knowledge = field(default_factory=Knowledge)
    scales: Mapping[int, float] = field(default_factory=dict)
    bridged: bool = False

    @property
    def reason(self) -> str:
        """Why the window is rejected, empty if it is accepted."""
        return self.window.registration.reason


def track(
    network: WindowNetwork,
    views: Sequence[WindowView],
    retrieved: set[int],
    keyframes: dict[int, Keyframe],
    start: SubmapStart,
    known: Knowledge,
    config: MapperConfig,
    lap: Lap,
) -> Track:
    """Reconstruct with the best view 0, then with the next best ones while the fit is rejected.

    retrieved: ids of the views added to close a loop.  start: used when no view is in the map.
    """
    best: Track | None = None
    for reference in _references(views, retrieved)[: 1 + config.registration.retries]:
        ordered = [views[reference]] + [view for i, view in enumerate(views) if i != reference]
        reconstruction = network.reconstruct([view.encoded for view in ordered])
        lap("network")
        reason = unusable_result(ordered, reconstruction)
        if reason:
            best = best or _unplaced(ordered, reconstruction, reason)
            continue
        reconstruction = without_ignored([view.encoded for view in ordered], reconstruction)
        focal = network_focals(ordered, reconstruction)
        focals = known.focals.after(ordered, focal)
        cameras = focals.cameras(ordered, focal)
        poses = place_views(reconstruction, cameras, config.registration)
        window = RegisteredWindow(ordered, reconstruction, poses, cameras, _NOWHERE)
        result = _register(window, retrieved, keyframes, start, replace(known, focals=focals), config)
        lap("register")
        if best is None or (best.reason and not result.reason):
            best = result
        if not result.reason:
            break
    assert best is not None
    return best


def unusable_result(views: Sequence[WindowView], result: Reconstruction) -> str:
    """Why the network's result for some views is unusable; empty if it is usable."""
    maps = result.points_global, result.confidence_global, result.points_local, result.confidence_local
    sizes = [view.encoded.image.shape[:2] for view in views]
    for each, channels in zip(maps, ((3,), (), (3,), ()), strict=True):
        if [tuple(tensor.shape) for tensor in each] != [(*size, *channels) for size in sizes]:
            return "the network's pointmaps do not have the views' sizes"
    lowest, highest = (
        torch.stack(each).view(len(maps), -1)
        for each in zip(*(torch.aminmax(tensor) for each in maps for tensor in each), strict=True)
    )
    largest, least = torch.maximum(-lowest, highest).amax(1), lowest[1::2].amin(1)
    in_front = torch.stack([(points[..., 2] > 0.0).float().mean() for points in result.points_local]).mean()
    values = torch.cat([largest, least, in_front[None]]).tolist()  # synchronises with the device once
    if not np.isfinite(values).all():
        return "the network's pointmaps or confidences are not finite"
    if max(values[0], values[2]) > _LARGEST:
        return f"the network's points are up to {max(values[0], values[2]):.0e} units away"
    if min(values[4:6]) <= 0.0:
        return "the network's confidences are not positive"
    if values[6] < 0.5:
        return "most of the network's points are behind their cameras"
    return ""


def _unplaced(views: Sequence[WindowView], result: Reconstruction, reason: str) -> Track:
    """A window that is rejected before any of its views is placed."""
    count = len(views)
    nowhere = np.full((count, 4, 4), np.nan)
    none, unknown = np.zeros(count, bool), np.full(count, np.nan)
    poses = CameraPoses(
        nowhere, unknown, np.zeros(count), np.full((count, 6, 6), np.nan), unknown, none, (reason,) * count
    )
    cameras = WindowCameras(np.tile(np.eye(3), (count, 1, 1)), none, np.ones(count))
    window = RegisteredWindow(views, result, poses, cameras, replace(_NOWHERE, reason=reason))
    return Track(window, None, None, False, none)


def _references(views: Sequence[WindowView], retrieved: set[int]) -> list[int]:
    """View numbers to try as view 0: best of the recent trajectory, best retrieved one, then the others."""
    order = reference_order(views)
    own = [i for i in order if views[i].keyframe_id not in retrieved]
    other = [i for i in order if views[i].keyframe_id in retrieved]
    return own[:1] + other[:1] + own[1:] + other[1:]


def _register(
    window: RegisteredWindow,
    retrieved: set[int],
    keyframes: dict[int, Keyframe],
    start: SubmapStart,
    knowledge: Knowledge,
    config: MapperConfig,
) -> Track:
    """Fit the window to the recent trajectory, else to the retrieved keyframes, else start a submap."""
    overlaps = [o for o in overlaps_with_map(window.views, keyframes) if window.poses.ok[o.view]]
    confident = _confident(window, retrieved, config)
    wanted = [o.view for o in overlaps if window.views[o.view].keyframe_id in retrieved and confident[o.view]]
    others = [i for i, view in enumerate(window.views) if confident[i] and view.keyframe_id not in retrieved]
    accepted = set(verified(window, wanted, others)) if wanted else set()
    loops = [o for o in overlaps if o.view in accepted]
    own = [o for o in overlaps if window.views[o.view].keyframe_id not in retrieved]
    maps, usual = (window.reconstruction, window.poses, window.cameras), knowledge.errors
    loop, loop_keyframe = None, None
    if loops:
        least = config.loop.min_inlier_share
        loop = register(loops, *maps, config.registration, usual, least)
        loop = None if loop.reason else loop
        # the most confident of them gets the edge of the pose graph
        confidence = window.reconstruction.confidence_global
        best = max(loops, key=lambda o: float(confidence[o.view].mean()))
        loop_keyframe = window.views[best.view].keyframe_id
    tracked = any(v.keyframe_id is not None and v.keyframe_id not in retrieved for v in window.views)
    registration = register(own, *maps, config.registration, usual) if tracked else _NOWHERE
    bridged, relocalized = False, loop is not None and bool(registration.reason)
    if relocalized and loop is not None:
        registration = loop
    elif not tracked:
        registration, bridged = _start(window, confident, start, config)
    known = np.array([view.keyframe_id is not None for view in window.views])
    connected = window.poses.ok & confident & ~known
    if not registration.reason and not connected.any():
        registration = replace(registration, reason="no new view is connected to the map")
    window = replace(window, registration=registration)
    knowledge = replace(knowledge, errors=usual.after(registration.errors, registration.baselines))
    scales = {int(i): 1.0 / registration.map_from_window.scale for i in np.flatnonzero(connected)}
    for fit in (registration, loop):
        scales.update({} if fit is None else _known_scales(window, fit, keyframes))
    return Track(
        window, loop, loop_keyframe if loop else None, relocalized, connected, knowledge, scales, bridged
    )


def _known_scales(
    window: RegisteredWindow, fit: Registration, keyframes: Mapping[int, Keyframe]
) -> dict[int, float]:
    """View number -> window units per unit of its keyframe, for the views that agree with a fit.

    The first view, to which the others are relative, gets their common value.
    """
    result: dict[int, float] = {}
    for view, error, weight in sorted(zip(fit.views, fit.errors[:, 6], fit.weights, strict=True)):
        identity = window.views[view].keyframe_id
        if weight > 0 and identity is not None:
            scale = keyframes[identity].map_from_local.scale
            own = float(np.exp(error)) if result else 1.0
            result[view] = scale * own / fit.map_from_window.scale
    return result


def _confident(window: RegisteredWindow, retrieved: set[int], config: MapperConfig) -> NDArray[np.bool_]:
    """(V,) views whose confidence is not far below that of the recent trajectory (or of each other)."""
    medians = [typical_confidence(view) for view in window.reconstruction.confidence_global]
    confidence = torch.stack(medians).cpu().numpy() - 1.0
    identities = [view.keyframe_id for view in window.views]
    own = np.array([i is not None and i not in retrieved for i in identities])
    usual = float(np.median(confidence[own])) if own.any() else float(confidence.max())
    return np.asarray(confidence >= config.registration.min_view_confidence * usual)


def _start(
    window: RegisteredWindow, confident: NDArray[np.bool_], start: SubmapStart, config: MapperConfig
) -> tuple[Registration, bool]:
    """`map_from_window` of a window that shares nothing with the map, and whether odometry bridges the gap.

    Otherwise it begins a submap, whose oldest view and depth are those of `start`.
    """
    order = np.argsort([view.stamp_ns for view in window.views], kind="stable")
    usable = [
        int(i) for i in order if confident[i] and window.poses.ok[i] and window.views[i].keyframe_id is None
    ]
    if len(usable) < 2:
        reason = "fewer than two views of the first window could be placed"
        return replace(_NOWHERE, reason=reason), False
    scale = start.depth / median_depth(window, usable, config.points)
    share = float(np.mean(window.poses.inlier_share[usable]))
    bridge = _bridge(window, usable, start)
    if bridge is not None:
        return replace(_NOWHERE, map_from_window=bridge, inlier_share=share, residual=0.0, reason=""), True
    camera_from_window = inverse(window.poses.window_from_camera[usable[0]])
    place = Sim3(scale, np.eye(3), np.zeros(3)) @ Sim3.from_rigid(camera_from_window)
    fit = Registration(Sim3.from_rigid(start.map_from_camera) @ place, share, 0.0, np.zeros((7, 7)), "")
    return fit, False


def _bridge(window: RegisteredWindow, usable: Sequence[int], start: SubmapStart) -> Sim3 | None:
    """`map_from_window` that maps the views to their poses by odometry; None if unknown or contradicted."""
    keys = {i: (window.views[i].camera, window.views[i].stamp_ns) for i in usable}
    known = [i for i in usable if keys[i] in start.expected]
    if len(known) < 2:
        return None
    poses = np.stack([window.poses.window_from_camera[i] for i in known])
    return similarity_of_poses(poses, np.stack([start.expected[keys[i]] for i in known]))


_NOWHERE = Registration(
    Sim3.identity(), 0.0, float("inf"), np.zeros((7, 7)), "the window shares no view with the map"
)

"""Every frame of a source in one forward pass, without holding all images or pointmaps in memory.

Frames are encoded a few at a time, and only their tokens and small images are stored.  After the fusion the
heads run twice over a few views at a time: first both heads, to place the views, which stores some numbers of
each; then the local head for the placed views, to add them to the map and to yield them.  With hundreds of
views the heads are a small part of the pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fast3r_ros.errors import UserError
from fast3r_ros.geometry.camera_pose import CameraPoses
from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.calibration import FocalLengths, WindowCameras, network_focals
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import (
    Float64,
    Frame,
    MapperStatus,
    PoseEstimate,
    Reconstruction,
    WindowNetwork,
    WindowResult,
)
from fast3r_ros.mapping.gravity import extrinsics, level_origin
from fast3r_ros.mapping.inbox import FrameIntake, OdometryBuffer
from fast3r_ros.mapping.many_views import HasSafer, ManyViewNetwork, in_parts, map_lists, some_views
from fast3r_ros.mapping.map import Map
from fast3r_ros.mapping.map_update import MapUpdate, map_update
from fast3r_ros.mapping.network import PreparedFrame
from fast3r_ros.mapping.placement import RegisteredWindow, median_depth
from fast3r_ros.mapping.points import typical_confidence
from fast3r_ros.mapping.registration import Registration, place_views
from fast3r_ros.mapping.scale import MetricScale
from fast3r_ros.mapping.tracking import Track, unusable_result
from fast3r_ros.mapping.window import WindowView, reference_order
from fast3r_ros.mapping.window_result import Clock, Context, pose_of, up_to_date, window_result

CHUNK = 16  # number of views whose images or pointmaps are in memory at a time
Pointmaps = Callable[[Any, Sequence[int]], Reconstruction]
_UNIT_VOXEL = 0.01  # default voxel size, as a share of the views' median depth
_NOWHERE = Registration(Sim3.identity(), 0.0, float("inf"), np.zeros((7, 7)), "no view could be placed")


@dataclass(frozen=True)
class Placement:
    """The poses of a pass's views.

    poses, cameras: of all views in the network's order.  connected: (V,) which of them go into the map.
    """

    poses: CameraPoses
    cameras: WindowCameras
    registration: Registration
    connected: NDArray[np.bool_]


def streamed(
    pointmaps: Pointmaps, features: Any, order: Sequence[int], chunk: int = CHUNK
) -> Iterator[tuple[Sequence[int], Reconstruction]]:
    """The pointmaps of a pass, `chunk` views at a time in the given order, with the views' indices."""
    for start in range(0, len(order), chunk):
        numbers = order[start : start + chunk]
        yield numbers, pointmaps(features, numbers)


class OnePass:
    """A map from one forward pass, with the interface of a `Mapper`."""

    def __init__(
        self, network: WindowNetwork | ManyViewNetwork, config: MapperConfig, chunk: int = CHUNK
    ) -> None:
        self.config = config
        self.map = Map(config.map, config.map.voxel_size or _UNIT_VOXEL)
        self._given, self._network, self._chunk = network, in_parts(network), chunk
        self._intake = FrameIntake(config.keyframes, 1)
        self._odometry = OdometryBuffer()
        self._metric = MetricScale(self._odometry, {})
        self._waiting: list[tuple[Frame, PreparedFrame]] = []
        self._views: list[WindowView] = []
        self._last_error = ""
        self._timings: dict[str, float] = {}
        self._accepted = self._rejected = 0

    def add_odometry(self, stamp_ns: int, odom_from_base: Float64) -> None:
        """A pose (4, 4) of the robot's base in its odometry frame, metres.  UserError if it is not a pose."""
        self._odometry.add(stamp_ns, odom_from_base)

    def add_frame(self, frame: Frame) -> str:
        """Take a frame as a view (""), or drop it for the returned reason."""
        reason = self._intake.offer(frame)
        if reason:
            return reason
        self._intake.take()
        clock = Clock()
        try:
            prepared = self._network.prepare(frame)
        except UserError as error:
            self._last_error = str(error)
            self._intake.drop("unusable")
            return "unusable"
        if self._waiting and self._waiting[0][1].pixels.shape != prepared.pixels.shape:
            self._encode_waiting()
        # the full-size image is not needed any more; no view of it keeps it in memory
        small = replace(frame, image=np.empty((0, 0, 3), np.uint8), depth=self._kept_depth(frame))
        self._waiting.append((small, prepared))
        if len(self._waiting) == self._chunk:
            self._encode_waiting()
        clock.lap("encode")
        self._note(clock)
        return ""

    def process(self) -> Iterator[WindowResult]:
        """Run the pass over all frames; yields the placed views a few at a time, or one rejection."""
        clock = Clock()
        self._encode_waiting()
        clock.lap("encode")
        self._note(clock)
        if len(self._views) < 2:
            self._rejected += 1
            yield self._result(None, "fewer than two usable views", None)
            return
        ordered, features, placement = self._pass()
        if placement.registration.reason:
            self._rejected += 1
            yield self._result(None, placement.registration.reason, None)
            return
        self._accepted += 1
        # from here on the fused features hold the tokens
        ordered = [replace(view, encoded=replace(view.encoded, tokens=None)) for view in ordered]
        self._views = []
        yield from self._map_views(ordered, features, placement)

    def _pass(self) -> tuple[list[WindowView], Any, Placement]:
        """Views in the network's order, fused features and placement, with the best view 0 that works."""
        for reference in reference_order(self._views)[: 1 + self.config.registration.retries]:
            features = None  # frees the memory of the last attempt
            clock = Clock()
            ordered, features, placement = self._attempt(reference, clock)
            if placement is None:
                features = None
                self._take_safer_network()
                ordered, features, placement = self._attempt(reference, clock)
            self._note(clock)
            if placement is not None and not placement.registration.reason:
                break
        assert placement is not None  # the safer network does not overflow
        return ordered, features, placement

    def _attempt(self, reference: int, clock: Clock) -> tuple[list[WindowView], Any, Placement | None]:
        """One pass with the view `reference` as view 0; no placement if it overflows."""
        ordered = [self._views[reference]] + [v for i, v in enumerate(self._views) if i != reference]
        features = self._network.fuse([view.encoded for view in ordered])
        clock.lap("network")
        return ordered, features, self._place(ordered, features, clock)

    def _take_safer_network(self) -> None:
        """Continue in a precision of larger range, with the views encoded again."""
        assert isinstance(self._network, HasSafer)
        self._network, encoded = self._network.safer([view.encoded for view in self._views])
        self._views = [replace(view, encoded=new) for view, new in zip(self._views, encoded, strict=True)]

    def _map_views(
        self, views: Sequence[WindowView], features: Any, placement: Placement
    ) -> Iterator[WindowResult]:
        """Add the connected views to the map in time order; then make it metric if the scale is known."""
        in_time = np.argsort([view.stamp_ns for view in views], kind="stable").tolist()
        order = [number for number in in_time if placement.connected[number]]
        self._intake.drop("not_connected", len(views) - len(order))
        clock = Clock()
        for decoded, maps in streamed(self._network.local_pointmaps, features, order, self._chunk):
            clock.lap("network")
            reasons = _reasons([views[i] for i in decoded], maps)
            sound = [i for i, reason in enumerate(reasons) if not reason]
            self._last_error = next(filter(None, reasons), self._last_error)
            self._intake.drop("not_connected", len(decoded) - len(sound))
            if not sound:
                continue
            numbers, reconstruction = [decoded[i] for i in sound], some_views(maps, sound)
            window = RegisteredWindow(
                [views[i] for i in numbers],
                reconstruction,
                _chosen(placement.poses, numbers),
                placement.cameras.chosen(numbers),
                placement.registration,
            )
            tracked = Track(window, None, None, False, placement.connected[numbers])
            update = map_update(tracked, self.map.keyframes, (), len(self.map.keyframes), 0, self.config)
            self.map.put(update.keyframes)
            ids = [keyframe.id for keyframe in update.keyframes]
            self.map.refine(final=ids, provisional=())
            self.map.fuse(ids)
            self.map.cull(set())
            clock.lap("fuse")
            self._note(clock)
            yield self._result(tracked, "", update)
            clock = Clock()
        if not self.map.keyframes:
            self._accepted, self._rejected = self._accepted - 1, self._rejected + 1
            yield self._result(None, self._last_error, None)
            return
        self._metric.find(self.map, 0, self.config.scale)

    def _place(self, views: Sequence[WindowView], features: Any, clock: Clock) -> Placement | None:
        """The first run over the heads: poses, focal lengths, confidence and depth of each view.

        None if maps are not finite and the network has a safer precision.
        """
        focals = FocalLengths()
        poses, confidence, depth, focal = [], [], [], []
        reasons: list[str] = []
        for numbers, decoded in streamed(self._network.pointmaps, features, range(len(views)), self._chunk):
            if isinstance(self._network, HasSafer) and self._network.overflows(decoded):
                return None
            clock.lap("network")
            some = [views[i] for i in numbers]
            reasons += _reasons(some, decoded)
            maps = _without(reasons[-len(some) :], some, decoded)
            seen = network_focals(some, maps)
            focals = focals.after(some, seen)
            cameras = focals.cameras(some, seen)
            poses.append(place_views(maps, cameras, self.config.registration))
            confidence += [float(typical_confidence(view)) - 1.0 for view in maps.confidence_global]
            chunk = RegisteredWindow(some, maps, poses[-1], cameras, _NOWHERE)
            depth += [median_depth(chunk, [i], self.config.points) for i in range(len(numbers))]
            focal += seen.tolist()
            clock.lap("register")
        together = _together(poses)
        trusted = np.array(confidence)
        connected = together.ok & (
            trusted >= self.config.registration.min_view_confidence * float(trusted.max())
        )
        registration = self._registration(views, together, connected, np.array(depth))
        known = next(filter(None, reasons), "")
        self._last_error = known or self._last_error
        if registration.reason and known:
            registration = replace(registration, reason=known)
        return Placement(
            together, focals.cameras(views, np.array(focal)), registration, np.asarray(connected)
        )

    def _registration(
        self,
        views: Sequence[WindowView],
        poses: CameraPoses,
        connected: NDArray[np.bool_],
        depth: Float64,
    ) -> Registration:
        """`map_from_window`: the oldest view is the origin, and the median depth of the views is one."""
        order = np.argsort([view.stamp_ns for view in views], kind="stable")
        usable = [int(i) for i in order if connected[i]]
        if len(usable) < 2:
            return replace(_NOWHERE, reason="fewer than two views could be placed")
        oldest = views[usable[0]]
        origin = level_origin(None, self._odometry.at(oldest.stamp_ns), extrinsics({}, oldest))
        unit = Sim3(1.0 / float(np.median(depth[usable])), np.eye(3), np.zeros(3))
        place = unit @ Sim3.from_rigid(inverse(poses.window_from_camera[usable[0]]))
        share = float(np.mean(poses.inlier_share[usable]))
        return Registration(Sim3.from_rigid(origin) @ place, share, 0.0, np.zeros((7, 7)), "")

    def _encode_waiting(self) -> None:
        if not self._waiting:
            return
        encoded = self._network.encode_prepared([prepared for _, prepared in self._waiting])
        self._views += [
            WindowView.of(frame, view) for (frame, _), view in zip(self._waiting, encoded, strict=True)
        ]
        self._waiting = []

    def _kept_depth(self, frame: Frame) -> Any:
        return frame.depth if self.config.scale.source == "depth" else None

    def _note(self, clock: Clock) -> None:
        for stage, seconds in clock.laps.items():
            self._timings[stage] = self._timings.get(stage, 0.0) + seconds

    def _result(self, tracked: Track | None, reason: str, update: MapUpdate | None) -> WindowResult:
        """A result with the times since the last one."""
        timings, self._timings = self._timings, {}
        estimates = () if update is None else update.estimates
        views = up_to_date(estimates, self.map.keyframes, 1.0)
        context = Context(0, self.map.version, False, Sim3.identity(), timings)
        self._last_error = reason or self._last_error
        return window_result(tracked, reason, views, context)

    # ---------------------------------------------------------------- out

    def trajectory(self, by_arrival: bool = False, submap: int | None = None) -> list[PoseEstimate]:
        """Every view of one submap (None: the main one) with its pose; see `Mapper.trajectory`."""
        mine = self.map.part(submap).values()
        return [pose_of(k) for k in sorted(mine, key=lambda k: k.id if by_arrival else k.stamp_ns)]

    def status(self) -> MapperStatus:
        """Counts so far."""
        received, dropped = self._intake.counts()
        return MapperStatus(
            received=received,
            keyframes=len(self.map.keyframes),
            dropped=dropped,
            windows=self._accepted,
            windows_rejected=self._rejected,
            submaps=self.map.submaps,
            loops_closed=0,
            map_points=self.map.points,
            map_bytes=self.map.nbytes,
            scale_source=self.config.scale.source,
            metres=self.map.metres,
            scale_sigma=self._metric.latest.sigma,
            timings=self._timings,
            last_error=self._last_error,
            repeated_passes=getattr(self._given, "repeated_passes", 0),
        )


def _reasons(views: Sequence[WindowView], maps: Reconstruction) -> list[str]:
    """Why the network's result for each view is unusable; empty if it is usable.

    Without global maps, the views' own maps are checked.
    """
    if not len(maps.points_global):
        maps = replace(maps, points_global=maps.points_local, confidence_global=maps.confidence_local)
    if any(len(each) != len(views) for each in map_lists(maps)):
        return [unusable_result(views, maps)] * len(views)
    return [unusable_result([view], some_views(maps, [i])) for i, view in enumerate(views)]


def _without(reasons: Sequence[str], views: Sequence[WindowView], maps: Reconstruction) -> Reconstruction:
    """The maps, with zeros for the unusable views, which are not placed."""
    if not any(reasons):
        return maps

    def sound(tensors: Sequence[torch.Tensor], *channels: int) -> list[torch.Tensor]:
        return [
            torch.zeros(*view.encoded.image.shape[:2], *channels, device=maps.points_local[0].device)
            if reason
            else tensors[i]
            for i, (view, reason) in enumerate(zip(views, reasons, strict=True))
        ]

    return replace(
        maps,
        points_global=sound(maps.points_global, 3),
        confidence_global=sound(maps.confidence_global),
        points_local=sound(maps.points_local, 3),
        confidence_local=sound(maps.confidence_local),
    )


def _chosen(poses: CameraPoses, numbers: Sequence[int]) -> CameraPoses:
    """The poses of some views."""
    chosen = list(numbers)
    arrays = {
        item.name: getattr(poses, item.name)[chosen] for item in fields(CameraPoses) if item.name != "reasons"
    }
    return CameraPoses(**arrays, reasons=tuple(poses.reasons[i] for i in chosen))


def _together(parts: Sequence[CameraPoses]) -> CameraPoses:
    """The poses of all views, in order."""
    arrays = {
        item.name: np.concatenate([getattr(part, item.name) for part in parts])
        for item in fields(CameraPoses)
        if item.name != "reasons"
    }
    return CameraPoses(**arrays, reasons=tuple(reason for part in parts for reason in part.reasons))

"""The expected pose of the robot: given by the user, or predicted by odometry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import hypot

import numpy as np

from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.geometry.rotation import angle_between
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.data import Float64, Keyframe
from fast3r_ros.mapping.gravity import Mounted, extrinsics, known_extrinsics, rotation_to_vertical
from fast3r_ros.mapping.inbox import OdometryBuffer
from fast3r_ros.mapping.pose_graph import Edge
from fast3r_ros.mapping.view_errors import ViewErrors
from fast3r_ros.mapping.window import WindowView

_NEAREST = 16  # number of keyframes used if none is within the radius
COMPARED = 40  # number of newest keyframes used to assess odometry
_FEWEST = 6  # minimum number of comparisons
_SPAN = 4  # keyframes over which path lengths are compared
_TRUSTED_SHIFT = 0.1  # maximum median error as a share of the path
_TRUSTED_TURN = float(np.deg2rad(3))  # maximum median error
_SHORTEST = 0.3  # minimum path length in metres for a scale from odometry
_AGREES_SHIFT, _AGREES_TURN = 0.2, float(np.deg2rad(10))  # between a window and odometry
# Minimum error of odometry: metres, share of the path, radians
_LEAST_SHIFT, _LEAST_DRIFT, _LEAST_TURN = 0.005, 0.005, float(np.deg2rad(0.1))
_NO_SCALE = 10.0  # standard deviation of a log scale that odometry does not determine
_CONTRADICTION = 4.0  # standard deviations between window and odometry that indicate wheel slip


@dataclass(frozen=True)
class InitialPose:
    """A pose (4, 4) `map_from_base` in metres, accurate within `radius` metres and `angle` radians."""

    map_from_base: Float64
    radius: float
    angle: float

    def near(self, keyframes: Iterable[Keyframe], base_from_camera: Float64) -> set[int]:
        """Ids of the keyframes near the pose with a similar viewing direction; otherwise the nearest ones."""
        map_from_camera = self.map_from_base @ base_from_camera
        held = [keyframe for keyframe in keyframes if keyframe.points is not None]
        if not held:
            return set()
        places = np.stack([keyframe.map_from_local.translation for keyframe in held])
        ahead = np.stack([keyframe.map_from_local.rotation[:, 2] for keyframe in held])
        distance = np.linalg.norm((places - map_from_camera[:3, 3])[:, :2], axis=1)
        along = ahead @ map_from_camera[:3, 2] >= np.cos(min(self.angle, np.pi))
        found = np.flatnonzero(along & (distance <= self.radius))
        if not len(found):
            found = np.argsort(distance)[:_NEAREST]
        return {held[n].id for n in found}


def placed_by_odometry(
    view: WindowView, odometry: OdometryBuffer, base_from_camera: Mapping[str, Float64]
) -> WindowView:
    """The view with its camera pose by odometry, for networks that accept known poses."""
    odom_from_base, mount = odometry.at(view.stamp_ns), known_extrinsics(base_from_camera, view)
    if odom_from_base is None or mount is None:
        return view
    return replace(view, encoded=replace(view.encoded, odom_from_camera=odom_from_base @ mount))


def odometry_error(
    keyframes: Sequence[Keyframe], odometry: OdometryBuffer, base_from_camera: Mapping[str, Float64]
) -> tuple[float, float] | None:
    """Median errors of odometry over the newest keyframes, as a share of the path and in radians.

    The keyframes are in time order, of one submap in metres.  None if too few can be compared.
    """
    length, shift, turn = _compared(keyframes, _SPAN, odometry, base_from_camera)
    moved = length > 0.1
    if moved.sum() < _FEWEST:
        return None
    return float(np.median(shift[moved] / length[moved])), float(np.median(turn))


def _compared(
    keyframes: Sequence[Keyframe],
    span: int,
    odometry: OdometryBuffer,
    base_from_camera: Mapping[str, Float64],
) -> tuple[Float64, Float64, Float64]:
    """Pairs of the newest keyframes, `span` apart: path length (metres), difference (metres, radians)."""
    recent, rows = keyframes[-COMPARED:], []
    for before, after in zip(recent, recent[span:], strict=False):
        step = odometry_step(odometry, base_from_camera, before, after)
        if step is not None:
            mapped = inverse(before.map_from_camera) @ after.map_from_camera
            apart = np.linalg.norm(mapped[:3, 3] - step[:3, 3])
            rows.append((np.linalg.norm(mapped[:3, 3]), apart, angle_between(mapped[:3, :3], step[:3, :3])))
    length, shift, turn = np.reshape(np.array(rows, np.float64), (-1, 3)).T
    return length, shift, turn


def _odometry_drift(
    keyframes: Sequence[Keyframe], odometry: OdometryBuffer, base_from_camera: Mapping[str, Float64]
) -> tuple[float, float]:
    """The drift of odometry: a share of the path, and radians per keyframe.

    The map's errors do not depend on the distance of keyframes; the part that grows is odometry's.
    """
    near = [np.median(each) for each in _compared(keyframes, _SPAN, odometry, base_from_camera)]
    far_pairs = _compared(keyframes, 3 * _SPAN, odometry, base_from_camera)
    # with too few keyframes, the whole difference is attributed to odometry
    far, base = ([np.median(each) for each in far_pairs], near) if len(far_pairs[0]) else (near, np.zeros(3))
    spans = 2 * _SPAN if len(far_pairs[0]) else _SPAN
    share = float((far[1] - base[1]) / max(far[0] - base[0], _SHORTEST))
    return max(share, _LEAST_DRIFT), max(float(far[2] - base[2]) / spans, 0.0) + _LEAST_TURN


def expected_poses(
    keyframes: Sequence[Keyframe],
    views: Sequence[Mounted],
    odometry: OdometryBuffer,
    base_from_camera: Mapping[str, Float64],
) -> dict[tuple[str, int], Float64]:
    """`map_from_camera` of new views by odometry since the newest keyframe, by (camera, stamp_ns).

    keyframes: the newest of a submap in metres, in time order.  Empty if odometry has recently disagreed with
    the map: slipping wheels, or a wrong pose of the camera on the robot, do not help.
    """
    if _trusted_error(keyframes, odometry, base_from_camera) is None:
        return {}
    last, found = keyframes[-1], {}
    for view in views:
        step = odometry_step(odometry, base_from_camera, last, view)
        if step is not None:
            found[view.camera, view.stamp_ns] = last.map_from_camera @ step
    return found


def odometry_edges(
    keyframes: Sequence[Keyframe],
    count: int,
    odometry: OdometryBuffer,
    base_from_camera: Mapping[str, Float64],
    errors: ViewErrors,
) -> list[Edge]:
    """Edges by odometry between the newest `count` keyframes and the one before each, for the pose graph.

    keyframes: the newest of a submap in metres, in time order.  Their poses then follow the network where it
    is certain, and odometry where a window determines little: each is weighted by its variance, odometry's
    from its recent errors.  errors: the network's typical errors.  Steps that contradict the window (wheel
    slip) are omitted.
    """
    before = keyframes[: len(keyframes) - count]
    if _trusted_error(before, odometry, base_from_camera) is None:
        return []
    drift, turn = _odometry_drift(before, odometry, base_from_camera)
    by_window = np.sqrt(2 * errors.variance())  # for two views: radians, share of the depth
    edges = []
    for earlier, later in zip(keyframes[-count - 1 :], keyframes[-count:], strict=False):
        step = odometry_step(odometry, base_from_camera, earlier, later)
        if step is None:
            continue
        scale, other = earlier.map_from_local.scale, later.map_from_local.scale
        mapped = inverse(earlier.map_from_camera) @ later.map_from_camera
        shift = (drift * float(np.linalg.norm(step[:3, 3])) + _LEAST_SHIFT) / (scale * earlier.depth)
        apart = float(np.linalg.norm(mapped[:3, 3] - step[:3, 3])) / (scale * earlier.depth)
        turned = float(angle_between(mapped[:3, :3], step[:3, :3]))
        if max(apart / hypot(shift, by_window[1]), turned / hypot(turn, by_window[0])) > _CONTRADICTION:
            continue
        sigma = (turn, shift, _NO_SCALE)
        measured = Sim3(other / scale, step[:3, :3], step[:3, 3] / scale)
        edges.append(Edge(earlier.id, later.id, measured, earlier.depth, sigma, robust=False))
    return edges


def _trusted_error(
    keyframes: Sequence[Keyframe], odometry: OdometryBuffer, base_from_camera: Mapping[str, Float64]
) -> tuple[float, float] | None:
    """`odometry_error`, None if unknown or too large."""
    error = odometry_error(keyframes, odometry, base_from_camera)
    return None if error is None or error[0] > _TRUSTED_SHIFT or error[1] > _TRUSTED_TURN else error


def odometry_step(
    odometry: OdometryBuffer, base_from_camera: Mapping[str, Float64], before: Mounted, after: Mounted
) -> Float64 | None:
    """(4, 4) from the later image's camera to the earlier one's, metres; None without odometry."""
    start, end = odometry.at(before.stamp_ns), odometry.at(after.stamp_ns)
    if start is None or end is None:
        return None
    odom_from_before = start @ extrinsics(base_from_camera, before)
    return np.asarray(inverse(odom_from_before) @ end @ extrinsics(base_from_camera, after))


def similarity_of_poses(poses: Float64, expected: Float64) -> Sim3 | None:
    """The similarity from camera poses (N, 4, 4) to the expected ones (N, 4, 4), in metres.

    None if the path is too short to determine the scale, or if the two disagree.
    """
    mean = expected[:, :3, :3] @ poses[:, :3, :3].transpose(0, 2, 1)
    left, _, right = np.linalg.svd(mean.sum(axis=0))
    rotation = left @ np.diag([1.0, 1.0, np.linalg.det(left @ right)]) @ right
    here, there = (each[:, :3, 3] - each[:, :3, 3].mean(axis=0) for each in (poses, expected))
    length, seen = float(np.linalg.norm(there)), float(np.linalg.norm(here))
    if length < _SHORTEST or seen < 1e-9:
        return None
    scale = length / seen
    apart = np.linalg.norm(scale * here @ rotation.T - there)
    turn = angle_between(rotation[None] @ poses[:, :3, :3], expected[:, :3, :3])
    if apart > _AGREES_SHIFT * length or float(np.median(turn)) > _AGREES_TURN:
        return None
    translation = expected[:, :3, 3].mean(axis=0) - scale * rotation @ poses[:, :3, 3].mean(axis=0)
    return Sim3(scale, rotation, translation)


def to_the_plane(map_from_camera: Float64, base_from_camera: Float64, metres: bool) -> Sim3:
    """The rigid transform of the map that brings the bases, on average, to the ground plane: level, at z = 0.

    map_from_camera, base_from_camera: (N, 4, 4) of the same views.  metres: whether the map is in metres;
    otherwise the height stays.
    """
    bases = map_from_camera @ inverse(base_from_camera)
    turn = rotation_to_vertical(bases[:, :3, 2].mean(axis=0))
    middle = (bases if metres else map_from_camera)[:, :3, 3].mean(axis=0)
    wanted = middle * [1.0, 1.0, 0.0] if metres else middle
    return Sim3(1.0, turn, wanted - turn @ middle)

"""One focal length per camera over all windows: the calibration's and the network's.

A network sees a camera with its own focal length, which differs from the calibration by some percent.  Poses
in a window come from the network's own rays, on which its points lie.  The map's points, and whatever is
fitted to it, lie on the camera's rays at the network's depths.  Otherwise the difference would change the
scale with every window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fast3r_ros.geometry.focal import estimate_focal
from fast3r_ros.geometry.intrinsics import centred_intrinsics
from fast3r_ros.mapping.data import Float64, Reconstruction
from fast3r_ros.mapping.window import WindowView

_PIXELS = 1024  # per view; more pixels add no accuracy
_WINDOWS = 200  # number of newest windows used for a focal length
_FEWEST = 3  # minimum number of windows to check a calibration
_IMPOSSIBLE = 1.25  # ratio of focal lengths that exceeds any network's error

_Camera = tuple[str, int, int]  # name, height and width at network size


@dataclass(frozen=True)
class WindowCameras:
    """The cameras of a window's V views.

    intrinsics: (V, 3, 3) at network size, on whose rays points are stored.  given: (V,) bool, whether they
    come from a calibration.  network_focal: (V,) the network's focal length in this window, in pixels.
    """

    intrinsics: Float64
    given: NDArray[np.bool_]
    network_focal: Float64

    @property
    def lateral(self) -> Float64:
        """(V,) factor of the x and y of the network's points for the camera's focal length."""
        return self.network_focal / _focal(self.intrinsics)

    @property
    def network_intrinsics(self) -> Float64:
        """(V, 3, 3) cameras on whose rays the network's points lie; NaN without a calibration."""
        result = self.intrinsics.copy()
        result[:, [0, 1], [0, 1]] *= self.lateral[:, None]
        result[~self.given] = np.nan
        return result

    def chosen(self, views: Sequence[int]) -> WindowCameras:
        """The cameras of some views."""
        rows = list(views)
        return WindowCameras(self.intrinsics[rows], self.given[rows], self.network_focal[rows])

    def kept(self, view: int, points: Tensor) -> Tensor:
        """The network's points (h, w, 3) of a view in its own camera frame, on the camera's rays.

        Without a calibration they stay on the network's rays, except for the focal length.
        """
        if not self.given[view]:
            x, y, depth = points.unbind(-1)
            lateral = float(self.lateral[view])
            return torch.stack([lateral * x, lateral * y, depth], -1)
        height, width = points.shape[:2]
        return points[..., 2:] * _rays(self.intrinsics[view].tobytes(), height, width, points.device)


@dataclass(frozen=True)
class FocalLengths:
    """The known focal lengths of the cameras.

    seen: the network's focal lengths in pixels, one per window.  given: those of calibrations.
    """

    seen: Mapping[_Camera, tuple[float, ...]] = field(default_factory=dict)
    given: Mapping[_Camera, float] = field(default_factory=dict)

    def after(self, views: Sequence[WindowView], network_focal: Float64) -> FocalLengths:
        """A copy with one more window, with the network's focal lengths (V,) of its views."""
        seen, given = dict(self.seen), dict(self.given)
        for camera, members in _by_camera(views).items():
            if np.isfinite(network_focal[members[0]]):
                seen[camera] = (*seen.get(camera, ()), float(network_focal[members[0]]))[-_WINDOWS:]
            known = [m for v in members if (m := views[v].encoded.intrinsics) is not None]
            if known:
                given[camera] = float(_focal(known[-1]))
        return FocalLengths(seen, given)

    def cameras(self, views: Sequence[WindowView], network_focal: Float64) -> WindowCameras:
        """The cameras of views, given the network's focal lengths (V,), NaN where unknown.

        A camera without a calibration has the median focal length of all windows; without any, it is the
        image width (a field of view of 53 degrees).
        """
        intrinsics, own = np.zeros((len(views), 3, 3)), np.array(network_focal)
        for (name, height, width), members in _by_camera(views).items():
            seen = self.seen.get((name, height, width), ())
            usual = float(np.median(seen)) if seen else np.nan
            for view in members:
                known = views[view].encoded.intrinsics
                if known is None:
                    known = centred_intrinsics(usual if seen else float(width), height, width)
                intrinsics[view] = known
                if not np.isfinite(own[view]):
                    own[view] = usual if seen else _focal(intrinsics[view])
        given = np.array([view.encoded.intrinsics is not None for view in views])
        return WindowCameras(intrinsics, given, own)

    def differences(self) -> dict[str, float]:
        """By camera: relative difference of the network's focal length from the calibration's."""
        return {
            camera[0]: float(np.median(self.seen[camera])) / focal - 1.0
            for camera, focal in self.given.items()
            if len(self.seen.get(camera, ())) >= _FEWEST
        }

    def doubts(self) -> str:
        """Implausible calibrations as a human-readable sentence; empty without any."""
        return "; ".join(
            f"the calibration of camera {name!r} is implausible: its focal length is {1 / (1 + share):.2f}"
            " times the network's estimate; check its camera_info"
            for name, share in self.differences().items()
            if abs(np.log1p(share)) > np.log(_IMPOSSIBLE)
        )


def network_focals(views: Sequence[WindowView], reconstruction: Reconstruction) -> Float64:
    """(V,) the network's focal length of each camera in pixels; NaN where it cannot be determined.

    It is that of the network's own intrinsics, or the one on which the camera's local points agree.
    """
    result = np.full(len(views), np.nan)
    if reconstruction.intrinsics is not None:
        own = _focal(reconstruction.intrinsics)
        for members in _by_camera(views).values():
            result[members] = np.median(own[members])
        return result
    for (_, height, width), members in _by_camera(views).items():
        known = [m for v in members if (m := views[v].encoded.intrinsics) is not None]
        centre = (float(known[-1][0, 2]), float(known[-1][1, 2])) if known else (width / 2, height / 2)
        points, confidence = (
            [maps[view] for view in members]
            for maps in (reconstruction.points_local, reconstruction.confidence_local)
        )
        estimate = estimate_focal(points, confidence, shared=True, principal_point=centre, max_pixels=_PIXELS)
        result[members] = estimate.focal[0] if estimate.ok[0] else np.nan
    return result


def _by_camera(views: Sequence[WindowView]) -> dict[_Camera, list[int]]:
    """View numbers by camera and size."""
    result: dict[_Camera, list[int]] = {}
    for number, view in enumerate(views):
        height, width = view.encoded.image.shape[:2]
        result.setdefault((view.camera, height, width), []).append(number)
    return result


@lru_cache(maxsize=8)
def _rays(intrinsics: bytes, height: int, width: int, device: torch.device) -> Tensor:
    """Directions (h, w, 3) with z = 1 through the pixels of a camera (3, 3), which all its views share."""
    matrix = np.frombuffer(intrinsics, np.float64).reshape(3, 3)
    columns = (torch.arange(width, device=device) + (0.5 - matrix[0, 2])) / matrix[0, 0]
    rows = (torch.arange(height, device=device) + (0.5 - matrix[1, 2])) / matrix[1, 1]
    x, y = torch.broadcast_tensors(columns, rows[:, None])
    return torch.stack([x, y, torch.ones_like(x)], -1)


def _focal(intrinsics: Float64) -> Float64:
    """Mean focal length (...) of matrices (..., 3, 3)."""
    return np.asarray(0.5 * (intrinsics[..., 0, 0] + intrinsics[..., 1, 1]))

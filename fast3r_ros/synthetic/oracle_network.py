"""A stand-in for the network that returns disturbed ground truth, to test mapping without trained weights.

It makes the typical errors of networks: an unknown scale per window and per view, depth errors that are
partly smooth over a view, outliers, regions without a result, and nonsense for views that share nothing with
view 0.  Optionally it also makes the errors of trained networks on real images: wrong poses of views, worse
with the distance from view 0, views of another scale, a bent window, a wrong focal length, bowl-shaped depth,
invented surfaces where depth was not measured, and nonsense with full confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from fast3r_ros.errors import UserError
from fast3r_ros.geometry.intrinsics import pixel_rays
from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.geometry.rotation import angle_between, matrix_from_vector
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.data import EncodedView, Float32, Float64, Frame, Reconstruction, WindowNetwork

_DESCRIPTOR_SIZE = 512
_PLACE_LENGTH = 1.5  # metres over which descriptors decorrelate
_DIRECTION_LENGTH = 0.6  # difference of unit view directions over which descriptors decorrelate
_PROBES = 8  # pixels per row and column tested for visibility in another view
_FULL_TURN_ERROR = 0.6  # radians from view 0 at which a view's pose error has its full size
_INVENTED_NOISE = 0.05  # relative depth error where the network invents depth
_INVENTED_CONFIDENCE = 0.3  # confidence there, as a share of the usual confidence (above 1)


class KnownSequence(Protocol):
    """Frames whose depth and poses are known: a `SyntheticSequence` or a `RecordedSequence`."""

    @property
    def camera(self) -> str:
        """The camera's name."""

    @property
    def width(self) -> int:
        """Pixels per row."""

    @property
    def height(self) -> int:
        """Rows."""

    @property
    def intrinsics(self) -> Float64:
        """(3, 3)."""

    @property
    def world_from_camera(self) -> Float64:
        """(F, 4, 4), metres."""

    def __len__(self) -> int:
        """The number of frames."""

    def stamp_ns(self, index: int) -> int:
        """The stamp of frame `index` in nanoseconds."""

    def depth(self, index: int) -> Float32:
        """(h, w) metres of frame `index`, 0 where it is not known."""


@dataclass(frozen=True)
class Disturbance:
    """The errors of the stand-in's results.  Shares are relative: 0.02 is 2 %.

    depth_noise: standard deviation of depth, relative.  correlated: share of its variance that is smooth over
    a view.  outliers: share of pixels with a wrong depth.  wrong_confidence: outliers have full confidence.
    missing: share of the image, one rectangle per view, without a result (confidence 1).
    invented: where depth is missing or unknown, the network invents a continuous surface of low confidence.
    bowl: relative depth error, too large in the corners and too small in the middle, in every view.
    focal_error: share by which the network's focal length is too long, in both heads, for the whole run.

    For the global head only, drawn for every window; pose errors and bend grow with the distance and the
    angle to view 0, up to full size at one median depth or 0.6 rad.  pose_rotation: standard deviation of a
    view's rotation about each axis, degrees.  pose_translation: of its position along each axis, as a share
    of the window's median depth.  view_scale: of the logarithm of a view's scale.  bend: of the logarithm of
    the factor by which far views are moved away from view 0.

    pure_noise: every window is nonsense.  min_covisibility: share of pixels that two views must share to be
    connected.  unconnected_confidence: confidence (above 1) of the nonsense for views that are not connected
    to view 0, as a share of the others'; 1 is an overconfident network.
    """

    depth_noise: float = 0.01
    correlated: float = 0.5
    outliers: float = 0.05
    wrong_confidence: bool = False
    missing: float = 0.0
    invented: bool = False
    bowl: float = 0.0
    focal_error: float = 0.0
    pose_rotation: float = 0.0
    pose_translation: float = 0.0
    view_scale: float = 0.0
    bend: float = 0.0
    pure_noise: bool = False
    min_covisibility: float = 0.1
    unconnected_confidence: float = 0.02


# error sizes of trained networks on recorded RGB-D images
REALISTIC = Disturbance(
    depth_noise=0.02,
    invented=True,
    pose_rotation=1.0,
    pose_translation=0.02,
    view_scale=0.02,
    bend=0.02,
)


@dataclass(frozen=True)
class _Truth:
    """The tokens of this network: depth (h, w) in metres, 0 where unknown, and the camera."""

    depth: Float32
    world_from_camera: Float64
    intrinsics: Float64


class OracleNetwork(WindowNetwork):
    """A `WindowNetwork` that looks up the ground truth of its sequences by camera name and stamp."""

    def __init__(
        self,
        sequences: KnownSequence | Sequence[KnownSequence],
        disturbance: Disturbance | None = None,
        seed: int = 0,
    ) -> None:
        """sequences: the cameras that frames may come from, with distinct names."""
        several = sequences if isinstance(sequences, Sequence) else [sequences]
        self.disturbance = disturbance or Disturbance()
        self._index: dict[tuple[str, int], tuple[KnownSequence, int]] = {}
        for sequence in several:
            self.add(sequence)
        self._depths: dict[tuple[str, int], Float32] = {}
        self._rng = np.random.default_rng([seed, 5])
        # a separate generator, so that pose errors change no other error
        self._pose_rng = np.random.default_rng([seed, 6])
        features = np.random.default_rng(7)
        self._frequencies = features.normal(size=(6, _DESCRIPTOR_SIZE))
        self._phases = features.uniform(0, 2 * np.pi, _DESCRIPTOR_SIZE)

    def add(self, sequence: KnownSequence) -> None:
        """Add a sequence; frames are looked up by camera name and stamp."""
        self._index.update(
            {(sequence.camera, sequence.stamp_ns(i)): (sequence, i) for i in range(len(sequence))}
        )

    def encode(self, frame: Frame) -> EncodedView:
        """Look up the ground truth.  Raises UserError for an unknown frame or a wrong size."""
        if (frame.camera, frame.stamp_ns) not in self._index:
            raise UserError(f"no frame of {frame.camera!r} at {frame.stamp_ns} ns in the known sequences")
        sequence, index = self._index[frame.camera, frame.stamp_ns]
        if frame.image.shape[:2] != (sequence.height, sequence.width):
            raise UserError(
                f"the frame is {frame.image.shape[1]} x {frame.image.shape[0]} pixels, the sequence "
                f"{sequence.width} x {sequence.height}; give the frames unchanged"
            )
        pose = sequence.world_from_camera[index]
        truth = _Truth(self._depth(frame, sequence, index), pose, sequence.intrinsics)
        return EncodedView(frame.image, np.eye(3), frame.intrinsics, self._descriptor(pose), truth)

    def reconstruct(self, views: Sequence[EncodedView]) -> Reconstruction:
        """True pointmaps in view 0's camera and in each own camera, disturbed; views may differ in size."""
        truths = [view.tokens for view in views]
        if self.disturbance.pure_noise:
            return self._nonsense([truth.depth.shape for truth in truths])
        window_scale = float(np.exp(self._rng.normal(0, 0.5)))
        rays = [pixel_rays(truth.intrinsics, *truth.depth.shape).astype(np.float32) for truth in truths]
        disturbed = self._disturbed([truth.depth for truth in truths])
        connected = _connected_to_first(truths, rays, self.disturbance.min_covisibility)
        places = self._places(truths, connected, window_scale)
        wrong_focal = np.array([1 / (1 + self.disturbance.focal_error)] * 2 + [1], np.float32)
        unsure = np.float32(self.disturbance.unconnected_confidence)
        result: list[tuple[Float32, Float32, Float32, Float32]] = []
        for place, ray, linked, view in zip(places, rays, connected, disturbed, strict=True):
            global_depth, confidence_global, local_depth, confidence_local = view
            if not linked:
                confidence_global = 1 + unsure * (confidence_global - 1)
            points_global = place.apply(wrong_focal * ray * global_depth[..., None])
            scale = np.float32(np.exp(self._rng.normal(0, 0.3)))
            points_local = scale * (wrong_focal * ray * local_depth[..., None])
            result.append((points_global, confidence_global, points_local, confidence_local))
        return Reconstruction(*([torch.from_numpy(v) for v in maps] for maps in zip(*result, strict=True)))

    def _places(
        self, truths: Sequence[_Truth], connected: NDArray[np.bool_], window_scale: float
    ) -> list[Sim3]:
        """The poses `window_from_camera` at which the global head places each view's points, with errors."""
        d, rng = self.disturbance, self._pose_rng
        window_from_view0 = Sim3(window_scale, np.eye(3), np.zeros(3))
        view0_from_world = inverse(truths[0].world_from_camera)
        known = np.concatenate([truth.depth[truth.depth > 0] for truth in truths])
        typical = float(np.median(known)) if known.size else 1.0
        stretch = float(np.exp(d.bend * rng.standard_normal()))
        places = []
        for truth, linked in zip(truths, connected, strict=True):
            pose = view0_from_world @ truth.world_from_camera
            turned = float(angle_between(pose[:3, :3], np.eye(3)))
            grown = min(1.0, float(np.linalg.norm(pose[:3, 3])) / typical + turned / _FULL_TURN_ERROR)
            turn = np.deg2rad(d.pose_rotation) * grown * rng.standard_normal(3)
            shift = d.pose_translation * typical * grown * rng.standard_normal(3)
            rotation, translation = pose[:3, :3], stretch**grown * pose[:3, 3]
            size = float(np.exp(d.view_scale * rng.standard_normal()))
            off = Sim3(size, rotation @ matrix_from_vector(turn), translation + rotation @ shift)
            place = window_from_view0 @ off
            places.append(place if linked else place @ self._random_similarity())
        return places

    def _depth(self, frame: Frame, sequence: KnownSequence, index: int) -> Float32:
        """The exact depth, (h, w) metres, rendered at most once per frame of a sequence."""
        key = (frame.camera, frame.stamp_ns)
        if key not in self._depths:
            self._depths[key] = frame.depth if frame.depth is not None else sequence.depth(index)
        return self._depths[key]

    def _descriptor(self, world_from_camera: Float64) -> Float32:
        """Random Fourier features: the cosine of two descriptors is a Gaussian of the pose difference."""
        pose = np.concatenate(
            [world_from_camera[:3, 3] / _PLACE_LENGTH, world_from_camera[:3, 2] / _DIRECTION_LENGTH]
        )
        features = np.cos(pose @ self._frequencies + self._phases)
        return (features / np.linalg.norm(features)).astype(np.float32)

    def _disturbed(self, depths: Sequence[Float32]) -> list[tuple[Float32, ...]]:
        """Per view: depth and confidence of the global head, and those of the local one, all (h, w)."""
        result: list[tuple[Float32, ...]] = [()] * len(depths)
        for shape in dict.fromkeys(depth.shape for depth in depths):
            alike = [i for i, depth in enumerate(depths) if depth.shape == shape]
            stack = np.stack([depths[i] for i in alike])
            missing = self._missing(stack.shape)
            both = *self._disturb(stack, missing), *self._disturb(stack, missing)
            for i, view in zip(alike, zip(*both, strict=True), strict=True):
                result[i] = view
        return result

    def _disturb(self, depth: Float32, missing: NDArray[np.bool_]) -> tuple[Float32, Float32]:
        """Depth with errors and the confidence in it, both (V, h, w)."""
        d, rng = self.disturbance, self._rng
        smooth = self._smooth(depth.shape)
        white = rng.standard_normal(depth.shape, np.float32)
        parts = np.float32(np.sqrt(d.correlated)), np.float32(np.sqrt(1 - d.correlated))
        error = np.float32(d.depth_noise) * (parts[0] * smooth + parts[1] * white)
        trust = np.float32(2.0) + np.float32(0.3) * rng.standard_normal(depth.shape, np.float32)
        confidence = 1 + np.exp(trust - 30 * np.abs(error))
        wrong = rng.random(depth.shape, np.float32) < d.outliers
        factor = np.exp(np.float32(0.7) * rng.standard_normal(depth.shape, np.float32))
        relative = (1 + error + _bowl(depth.shape, d.bowl)) * np.where(wrong, factor, np.float32(1))
        if not d.wrong_confidence:
            confidence = np.where(wrong, 1 + (confidence - 1) * np.float32(0.15), confidence)
        nothing = missing | (depth <= 0)
        if d.invented:
            depth = np.stack([_filled(view) for view in np.where(nothing, np.float32(0), depth)])
            relative = np.where(nothing, 1 + np.float32(_INVENTED_NOISE) * smooth, relative)
            doubtful = 1 + np.float32(_INVENTED_CONFIDENCE) * (confidence - 1)
            confidence = np.where(nothing, doubtful, confidence)
            nothing = depth <= 0
        disturbed = np.where(nothing, np.float32(1) * factor, depth * relative)
        return disturbed.astype(np.float32), np.where(nothing, np.float32(1), confidence).astype(np.float32)

    def _smooth(self, shape: tuple[int, ...]) -> Float32:
        """Smooth fields (V, h, w) of unit variance."""
        views, height, width = shape
        coarse = self._rng.normal(size=(views, 4, 5)).astype(np.float32)
        smooth = np.stack([cv2.resize(c, (width, height), interpolation=cv2.INTER_CUBIC) for c in coarse])
        return np.asarray(smooth / max(float(smooth.std()), 1e-6), np.float32)

    def _missing(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """One rectangle per view of the configured share of the image."""
        views, height, width = shape
        mask = np.zeros(shape, bool)
        rows, columns = (round(side * np.sqrt(self.disturbance.missing)) for side in (height, width))
        for view in range(views):
            top = self._rng.integers(0, height - rows + 1)
            left = self._rng.integers(0, width - columns + 1)
            mask[view, top : top + rows, left : left + columns] = True
        return mask

    def _random_similarity(self) -> Sim3:
        rng = self._rng
        return Sim3(
            float(np.exp(rng.normal(0, 0.5))), matrix_from_vector(rng.normal(size=3)), rng.normal(size=3)
        )

    def _nonsense(self, shapes: Sequence[tuple[int, ...]]) -> Reconstruction:
        """Points and confidences unrelated to the views."""

        def points() -> list[Tensor]:
            noise = [self._rng.normal([0, 0, 2], 1, (*shape, 3)) for shape in shapes]
            return [torch.from_numpy(view.astype(np.float32)) for view in noise]

        def confidence() -> list[Tensor]:
            trust = [1 + np.exp(self._rng.normal(2.0, 0.3, shape)) for shape in shapes]
            return [torch.from_numpy(view.astype(np.float32)) for view in trust]

        return Reconstruction(points(), confidence(), points(), confidence())


def _bowl(shape: tuple[int, ...], size: float) -> Float32:
    """The relative depth error (h, w) of a bowl: -2/3 of `size` in the middle, 4/3 in the corners."""
    rows, columns = np.mgrid[-1 : 1 : shape[-2] * 1j, -1 : 1 : shape[-1] * 1j]
    return (size * (rows**2 + columns**2 - 2 / 3)).astype(np.float32)


def _filled(depth: Float32) -> Float32:
    """Depth (h, w) with unknown pixels filled from the nearest known one; unchanged if none is known."""
    unknown = depth <= 0
    if unknown.all() or not unknown.any():
        return depth
    nearest = distance_transform_edt(unknown, return_distances=False, return_indices=True)
    return np.asarray(depth[tuple(nearest)])


def _connected_to_first(truths: Sequence[_Truth], rays: Sequence[Float32], least: float) -> NDArray[np.bool_]:
    """(V,) which views are connected to view 0 by a chain of pairs that see the same surfaces."""
    connected = np.zeros(len(truths), bool)
    connected[0] = True
    open_ends = [0]
    while open_ends:
        i = open_ends.pop()
        for j in map(int, np.flatnonzero(~connected)):
            pairs = (truths[i], truths[j], rays[i]), (truths[j], truths[i], rays[j])
            if any(_covisibility(*pair) >= least for pair in pairs):
                connected[j] = True
                open_ends.append(j)
    return connected


def _covisibility(a: _Truth, b: _Truth, rays: Float32) -> float:
    """Share of a's probe pixels whose points b sees at the same depth, within 5 %."""
    height, width = a.depth.shape
    rows = ((np.arange(_PROBES) + 0.5) * height / _PROBES).astype(int)
    columns = ((np.arange(_PROBES) + 0.5) * width / _PROBES).astype(int)
    grid = np.ix_(rows, columns)
    points = (rays[grid] * a.depth[grid][..., None]).reshape(-1, 3)
    b_from_a = inverse(b.world_from_camera) @ a.world_from_camera
    moved = points @ b_from_a[:3, :3].T + b_from_a[:3, 3]
    depth = moved[:, 2]
    front = depth > 0.05
    pixel = moved[front] @ b.intrinsics.T
    column = (pixel[:, 0] / pixel[:, 2]).astype(int)
    row = (pixel[:, 1] / pixel[:, 2]).astype(int)
    inside = (column >= 0) & (column < b.depth.shape[1]) & (row >= 0) & (row < b.depth.shape[0])
    seen = b.depth[row[inside], column[inside]]
    same = np.abs(seen - depth[front][inside]) < 0.05 * depth[front][inside]
    return float(same.sum()) / len(points)

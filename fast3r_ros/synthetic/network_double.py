"""A stand-in for the network that returns disturbed ground truth, to test mapping without trained weights.

It does what networks do wrong: an unknown scale per window and per view, depth errors that are partly
smooth over a view, outliers, regions without a result, and views that share nothing with view 0 and come
out as nonsense.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fast3r_ros.errors import UserError
from fast3r_ros.geometry.intrinsics import pixel_rays
from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.geometry.rotation import matrix_from_vector
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.data import EncodedView, Float32, Float64, Frame, Reconstruction
from fast3r_ros.synthetic.render import render
from fast3r_ros.synthetic.sequence import SyntheticSequence

_DESCRIPTOR_SIZE = 512
_PLACE_LENGTH = 1.5  # metres over which descriptors become different
_DIRECTION_LENGTH = 0.6  # difference of unit view directions over which descriptors become different
_PROBES = 8  # pixels per row and column that are tested for being seen by another view


@dataclass(frozen=True)
class Disturbance:
    """What is wrong with the stand-in's answers.

    depth_noise: standard deviation of depth, relative.  correlated: share of its variance that is smooth
    over a view.  outliers: share of pixels with a wrong depth.  wrong_confidence: outliers are as confident
    as the others.  missing: share of the image, one rectangle per view, without a result (confidence 1).
    pure_noise: every window is nonsense.  min_covisibility: share of pixels that two views must share to be
    connected.
    """

    depth_noise: float = 0.01
    correlated: float = 0.5
    outliers: float = 0.05
    wrong_confidence: bool = False
    missing: float = 0.0
    pure_noise: bool = False
    min_covisibility: float = 0.1


@dataclass(frozen=True)
class _Truth:
    """What the tokens of this network are: depth (h, w) in metres, 0 where nothing is hit, and the camera."""

    depth: Float32
    world_from_camera: Float64
    intrinsics: Float64


class TrueNetwork:
    """A `WindowNetwork` that knows the truth of its sequences and looks it up by camera name and stamp."""

    def __init__(
        self,
        sequences: SyntheticSequence | Sequence[SyntheticSequence],
        disturbance: Disturbance | None = None,
        seed: int = 0,
    ) -> None:
        """sequences: the cameras that frames may come from, with distinct names."""
        several = [sequences] if isinstance(sequences, SyntheticSequence) else list(sequences)
        self.disturbance = disturbance or Disturbance()
        self._index: dict[tuple[str, int], tuple[SyntheticSequence, int]] = {}
        for sequence in several:
            self.add(sequence)
        self._depths: dict[tuple[str, int], Float32] = {}
        self._rng = np.random.default_rng([seed, 5])
        features = np.random.default_rng(7)
        self._frequencies = features.normal(size=(6, _DESCRIPTOR_SIZE))
        self._phases = features.uniform(0, 2 * np.pi, _DESCRIPTOR_SIZE)

    def add(self, sequence: SyntheticSequence) -> None:
        """Know another sequence; frames are looked up by camera name and stamp."""
        self._index.update(
            {(sequence.camera, sequence.stamp_ns(i)): (sequence, i) for i in range(len(sequence))}
        )

    def encode(self, frame: Frame) -> EncodedView:
        """Look up the truth.  Raises UserError for a frame that is not of the sequences or of another
        size.
        """
        if (frame.camera, frame.stamp_ns) not in self._index:
            raise UserError(f"no frame of {frame.camera!r} at {frame.stamp_ns} ns in the synthetic sequences")
        sequence, index = self._index[frame.camera, frame.stamp_ns]
        if frame.image.shape[:2] != (sequence.height, sequence.width):
            raise UserError(
                f"the frame is {frame.image.shape[1]} x {frame.image.shape[0]} pixels, the sequence "
                f"{sequence.width} x {sequence.height}; give the frames as they come"
            )
        pose = sequence.world_from_camera[index]
        truth = _Truth(self._depth(frame, sequence, index), pose, sequence.intrinsics)
        return EncodedView(frame.image, np.eye(3), frame.intrinsics, self._descriptor(pose), truth)

    def reconstruct(self, views: Sequence[EncodedView]) -> Reconstruction:
        """True pointmaps in view 0's camera and in each own camera, disturbed; views may differ in size."""
        truths = [view.tokens for view in views]
        if self.disturbance.pure_noise:
            return self._nonsense([truth.depth.shape for truth in truths])
        window_from_view0 = Sim3(float(np.exp(self._rng.normal(0, 0.5))), np.eye(3), np.zeros(3))
        view0_from_world = inverse(truths[0].world_from_camera)
        rays = [pixel_rays(truth.intrinsics, *truth.depth.shape).astype(np.float32) for truth in truths]
        disturbed = self._disturbed([truth.depth for truth in truths])
        connected = _connected_to_first(truths, rays, self.disturbance.min_covisibility)
        result: list[tuple[Float32, Float32, Float32, Float32]] = []
        for truth, ray, linked, view in zip(truths, rays, connected, disturbed, strict=True):
            global_depth, confidence_global, local_depth, confidence_local = view
            placed = window_from_view0 @ Sim3.from_rigid(view0_from_world @ truth.world_from_camera)
            if not linked:
                placed = placed @ self._random_similarity()
                confidence_global = 1 + np.float32(0.02) * (confidence_global - 1)
            points_global = placed.apply(ray * global_depth[..., None])
            scale = np.float32(np.exp(self._rng.normal(0, 0.3)))
            points_local = scale * (ray * local_depth[..., None])
            result.append((points_global, confidence_global, points_local, confidence_local))
        return Reconstruction(*([torch.from_numpy(v) for v in maps] for maps in zip(*result, strict=True)))

    def _depth(self, frame: Frame, sequence: SyntheticSequence, index: int) -> Float32:
        """The exact depth, rendered at most once per frame of a sequence."""
        key = (frame.camera, frame.stamp_ns)
        if key not in self._depths:
            self._depths[key] = frame.depth if frame.depth is not None else _rendered_depth(sequence, index)
        return self._depths[key]

    def _descriptor(self, world_from_camera: Float64) -> Float32:
        """Random Fourier features: the cosine of two descriptors falls like a Gaussian of the pose
        difference.
        """
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
        views, height, width = depth.shape
        coarse = rng.normal(size=(views, 4, 5)).astype(np.float32)
        smooth = np.stack([cv2.resize(c, (width, height), interpolation=cv2.INTER_CUBIC) for c in coarse])
        smooth /= max(float(smooth.std()), 1e-6)
        white = rng.standard_normal(depth.shape, np.float32)
        parts = np.float32(np.sqrt(d.correlated)), np.float32(np.sqrt(1 - d.correlated))
        error = np.float32(d.depth_noise) * (parts[0] * smooth + parts[1] * white)
        trust = np.float32(2.0) + np.float32(0.3) * rng.standard_normal(depth.shape, np.float32)
        confidence = 1 + np.exp(trust - 30 * np.abs(error))
        wrong = rng.random(depth.shape, np.float32) < d.outliers
        factor = np.exp(np.float32(0.7) * rng.standard_normal(depth.shape, np.float32))
        disturbed = depth * (1 + error) * np.where(wrong, factor, np.float32(1))
        if not d.wrong_confidence:
            confidence = np.where(wrong, 1 + (confidence - 1) * np.float32(0.15), confidence)
        nothing = missing | (depth <= 0)
        disturbed = np.where(nothing, np.float32(1) * factor, disturbed)
        return disturbed.astype(np.float32), np.where(nothing, np.float32(1), confidence).astype(np.float32)

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
        """Points and confidences that have nothing to do with the views."""

        def points() -> list[Tensor]:
            noise = [self._rng.normal([0, 0, 2], 1, (*shape, 3)) for shape in shapes]
            return [torch.from_numpy(view.astype(np.float32)) for view in noise]

        def confidence() -> list[Tensor]:
            trust = [1 + np.exp(self._rng.normal(2.0, 0.3, shape)) for shape in shapes]
            return [torch.from_numpy(view.astype(np.float32)) for view in trust]

        return Reconstruction(points(), confidence(), points(), confidence())


def _rendered_depth(sequence: SyntheticSequence, index: int) -> Float32:
    """The exact depth of one frame, (h, w) metres, 0 where nothing is hit."""
    pose = torch.from_numpy(sequence.world_from_camera[index : index + 1])
    seen = render(
        sequence.scene, pose, torch.from_numpy(sequence.intrinsics), sequence.width, sequence.height
    )
    return seen.depth[0].numpy()


def _connected_to_first(truths: Sequence[_Truth], rays: Sequence[Float32], least: float) -> NDArray[np.bool_]:
    """Which views are linked to view 0 by a chain of pairs that see the same surfaces, (V,)."""
    seen = np.array([[_covisibility(a, b, rays[i]) for b in truths] for i, a in enumerate(truths)])
    linked = np.maximum(seen, seen.T) >= least
    connected = np.zeros(len(truths), bool)
    connected[0] = True
    for _ in truths:
        connected |= linked[connected].any(axis=0)
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

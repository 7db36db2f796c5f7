"""One evaluation sample: its views at network size, the network's result for them, and its scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fast3r_ros.datasets.posed import PosedFrame, PosedSequence, sample_depth
from fast3r_ros.errors import UserError
from fast3r_ros.geometry.camera_pose import (
    pointmap_weights,
    poses_by_pnp,
    poses_from_pointmaps,
)
from fast3r_ros.geometry.focal import first_view_focal
from fast3r_ros.geometry.intrinsics import pixel_rays, transform_intrinsics
from fast3r_ros.geometry.rigid import inverse, transform_points
from fast3r_ros.geometry.robust_similarity import RobustOptions
from fast3r_ros.mapping.data import Float32, Float64, Frame, UInt8, WindowNetwork
from fast3r_ros.metrics.dense import align, depth_scores, estimate_normals, reconstruction_scores
from fast3r_ros.metrics.pose import pair_errors, pose_scores
from fast3r_ros.metrics.trajectory import trajectory_scores
from fast3r_ros.model import Fast3R, normalize
from fast3r_ros.model.preprocess import prepare_image
from fast3r_ros.model.transformer import counted_indices, drawn_indices, spread_indices


@dataclass(frozen=True)
class Views:
    """V views of equal size (h, w) at network size.

    images: (V, h, w, 3) uint8 RGB.  intrinsics: (V, 3, 3) at this size.  world_from_camera: (V, 4, 4)
    float64, metres.  depth: (V, h, w) float32 z in metres, 0 where unknown; None when the dataset has none.
    """

    images: UInt8
    intrinsics: Float64
    world_from_camera: Float64
    depth: Float32 | None

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(V, h, w): pixels whose depth is known."""
        return np.zeros(self.images.shape[:3], bool) if self.depth is None else self.depth > 0

    def part(self, chosen: Sequence[int]) -> Views:
        """Some of the views."""
        index = list(chosen)
        depth = None if self.depth is None else self.depth[index]
        return Views(self.images[index], self.intrinsics[index], self.world_from_camera[index], depth)

    def points_world(self) -> Float32:
        """(V, h, w, 3) float32 true points in the world; the camera's position where the depth is unknown."""
        assert self.depth is not None
        height, width = self.depth.shape[1:]
        points = [
            transform_points(pose, pixel_rays(matrix, height, width) * depth[..., None])
            for pose, matrix, depth in zip(self.world_from_camera, self.intrinsics, self.depth, strict=True)
        ]
        return np.stack(points).astype(np.float32)


def spread_frames(sequence: PosedSequence, count: int, max_gap: int | None = None) -> list[int]:
    """Indices of `count` frames, evenly spread from the first, at most `max_gap` frames apart.

    Without `max_gap` the last frame is included.  Raises UserError when the sequence is shorter.
    """
    available = len(sequence.frames)
    if available < count:
        raise UserError(f"{sequence.name} has {available} frames with a pose, {count} views are needed")
    last = available - 1 if max_gap is None else min(available - 1, max_gap * (count - 1))
    return [int(number) for number in np.linspace(0, last, count).round()]


def read_views(frames: Sequence[PosedFrame], long_side: int) -> Views:
    """Read, resize and crop; the depth is sampled at the nearest pixel.

    Raises UserError when a file cannot be read or the views have different sizes.
    """
    images = [frame.read_image() for frame in frames]
    prepared = [prepare_image(image, long_side) for image in images]
    sizes = {view.pixels.shape for view in prepared}
    if len(sizes) != 1:
        raise UserError(f"the images of one sample have different sizes at the network: {sorted(sizes)}")
    transforms = [view.pixel_transform for view in prepared]
    depths = [
        sample_depth(frame.read_depth(), image.shape, transform, prepared[0].pixels.shape[:2])
        for frame, image, transform in zip(frames, images, transforms, strict=True)
        if frame.read_depth is not None
    ]
    return Views(
        np.stack([view.pixels for view in prepared]),
        np.stack(
            [transform_intrinsics(t, frame.intrinsics) for t, frame in zip(transforms, frames, strict=True)]
        ),
        np.stack([frame.world_from_camera for frame in frames]),
        np.stack(depths) if len(depths) == len(frames) else None,
    )


# Only the most confident 15 % of each view's pixels determine the alignment, as in the official code.
ALIGNMENT_PERCENTILE = 85
INDEX_STRATEGIES = ("spread", "drawn", "counted")
HEADS = ("local", "global")
# Low thresholds: an untrained or failing network must still get poses and scores.
ANY_POSE = RobustOptions(min_inlier_share=0.0)
Scores = Mapping[str, float]


@dataclass(frozen=True)
class Prediction:
    """The network's result for V views of one size (h, w).

    points_global: (V, h, w, 3) float32 in `window`.  points_local: (V, h, w, 3) float32, each in its own
    camera frame; NaN without a local head.  confidence_*: (V, h, w) float32, at least 1.
    """

    points_global: Float32
    confidence_global: Float32
    points_local: Float32
    confidence_local: Float32


Predict = Callable[[UInt8], Prediction]


@dataclass(frozen=True)
class PlacedViews:
    """A prediction in the `window` frame.

    points: (V, h, w, 3) float32 in `window`, NaN for a view without a pose.  depth: (V, h, w) z in the
    view's own camera, in any scale.  confidence: (V, h, w) of these points.  window_from_camera: (V, 4, 4)
    float64, NaN for a view without a pose.
    """

    points: Float32
    depth: Float32
    confidence: Float32
    window_from_camera: Float64

    def part(self, chosen: Sequence[int]) -> PlacedViews:
        """Some of the views."""
        index = list(chosen)
        return PlacedViews(
            self.points[index], self.depth[index], self.confidence[index], self.window_from_camera[index]
        )


def predictor(model: Fast3R, indices: str = "spread", seed: int = 0) -> Predict:
    """The network as a function of (V, h, w, 3) uint8 images.

    indices: image indices spread evenly over the trained range, drawn at random, or counted from 0.
    """
    device = next(model.parameters()).device

    @torch.inference_mode()
    def predict(images: UInt8) -> Prediction:
        views = len(images)
        rows = {
            "spread": lambda: spread_indices(1, views),
            "drawn": lambda: drawn_indices(1, views, seed),
            "counted": lambda: counted_indices(1, views),
        }[indices]()
        result = model([normalize(image, device)[None] for image in images], rows)
        world = _stack([view.global_points.points for view in result])
        confidence = _stack([view.global_points.confidence for view in result])
        if result[0].local_points is None:
            return Prediction(world, confidence, np.full_like(world, np.nan), np.ones_like(confidence))
        local = [view.local_points for view in result if view.local_points is not None]
        return Prediction(
            world, confidence, _stack([v.points for v in local]), _stack([v.confidence for v in local])
        )

    return predict


def window_predictor(network: WindowNetwork) -> Predict:
    """Any network as such a function; its results are resampled to the images' pixels."""

    def predict(images: UInt8) -> Prediction:
        views = [network.encode(Frame(number, "evaluated", image)) for number, image in enumerate(images)]
        maps = network.reconstruct(views)
        size = images.shape[1:3]

        def stacked(tensors: Sequence[torch.Tensor]) -> Float32:
            arrays = [tensor.float().cpu().numpy() for tensor in tensors]
            return np.stack(
                [
                    _on_image(array, view.network_from_image, size)
                    for array, view in zip(arrays, views, strict=True)
                ]
            )

        world, local = stacked(maps.points_global), stacked(maps.points_local)
        return Prediction(world, stacked(maps.confidence_global), local, stacked(maps.confidence_local))

    return predict


def _on_image(values: Float32, network_from_image: Float64, size: tuple[int, ...]) -> Float32:
    """A network's map (h, w, ...) resampled to the pixels (H, W) of its image, nearest neighbour."""
    rows, columns = (
        np.clip((np.arange(size[axis]) + 0.5) * network_from_image[i, i] + network_from_image[i, 2], 0, end)
        for axis, i, end in ((0, 1, values.shape[0] - 1), (1, 0, values.shape[1] - 1))
    )
    return values[rows.astype(np.int64)[:, None], columns.astype(np.int64)]


def place(prediction: Prediction, head: str) -> PlacedViews:
    """Poses and points of all views in `window`.

    head "local": local points, placed by their fit to the global points.  "global": the unchanged global
    points and PnP poses with view 0's focal length, the official method without a local head.
    """
    if head == "global":
        return _place_global(prediction)
    if not np.isfinite(prediction.points_local).any():
        raise UserError("the network has no local head; evaluate it with --heads global")
    weights = pointmap_weights(
        torch.from_numpy(prediction.confidence_local), torch.from_numpy(prediction.confidence_global)
    )
    poses = poses_from_pointmaps(prediction.points_local, prediction.points_global, weights, options=ANY_POSE)
    points = np.stack(
        [
            transform_points(pose, (scale * local).astype(np.float32))
            for pose, scale, local in zip(
                poses.window_from_camera, poses.scale, prediction.points_local, strict=True
            )
        ]
    )
    return PlacedViews(
        points, prediction.points_local[..., 2], prediction.confidence_local, poses.window_from_camera
    )


def _place_global(prediction: Prediction) -> PlacedViews:
    points, confidence = prediction.points_global, prediction.confidence_global
    poses = poses_by_pnp(points, confidence, first_view_focal(points, confidence))
    depth = [
        transform_points(inverse(pose), view)[..., 2]
        for pose, view in zip(poses.window_from_camera, points, strict=True)
    ]
    return PlacedViews(points, np.stack(depth).astype(np.float32), confidence, poses.window_from_camera)


def score_poses(placed: PlacedViews, truth: Views) -> Scores:
    """RRA, RTA, mAA(30), median errors of the pairs in degrees, and the share of views with a pose."""
    scores = _pair_scores(placed.window_from_camera, truth)
    return {**scores, "placed": float(np.isfinite(placed.window_from_camera).all(axis=(1, 2)).mean())}


def score_no_motion(truth: Views) -> Scores | None:
    """The result of `score_poses` when every camera is at the first camera's pose.

    The views of a slow walk differ so little in rotation that this scores well in RRA; a network that is no
    better has learnt nothing about rotation.
    """
    if len(truth.images) < 2:
        return None
    still = np.tile(np.eye(4), (len(truth.images), 1, 1))
    scores = _pair_scores(still, truth)
    del scores["direction_error"]  # without motion there is no direction
    return scores


def _pair_scores(window_from_camera: Float64, truth: Views) -> dict[str, float]:
    errors = pair_errors(window_from_camera, truth.world_from_camera)
    return {
        **pose_scores(errors),
        "rotation_error": float(np.median(errors.rotation)),
        "direction_error": float(np.median(errors.translation)),
    }


def score_trajectory(placed: PlacedViews, truth: Views) -> Scores:
    """ATE and RPE of the views in their order; infinite when they cannot be aligned."""
    try:
        return trajectory_scores(placed.window_from_camera, truth.world_from_camera).row()
    except UserError:
        return {"ate": np.inf, "ate_percent": np.inf}


def score_depth(placed: PlacedViews, truth: Views) -> Scores:
    """AbsRel and delta<1.25 with one scale per view, the mean over the views."""
    assert truth.depth is not None
    return _depth_of_views(placed.depth, truth.depth)


def score_constant_depth(truth: Views) -> Scores | None:
    """The result of `score_depth` when every pixel has the same depth."""
    if truth.depth is None or not truth.valid.any():
        return None
    return _depth_of_views(np.ones_like(truth.depth), truth.depth)


def _depth_of_views(predicted: Float32, true: Float32) -> Scores:
    rows = [depth_scores(*pair) for pair in zip(predicted, true, strict=True)]
    scored = [row for row in rows if row["valid"] > 0]
    if not scored:
        return {"AbsRel": np.inf, "valid": 0.0}
    return {name: float(np.mean([row[name] for row in scored])) for name in scored[0]}


def score_points(placed: PlacedViews, truth: Views, max_points: int = 20_000) -> Scores:
    """Accuracy, completion, normal consistency, chamfer, F-score (at 5 % of the mean depth), and point error.

    The prediction is aligned by one similarity, fitted to its most confident pixels.  point_error: median
    distance of a pixel's point from the true one, relative to the mean depth.  max_points: clouds are sampled
    down to this many points (fixed seed), which makes distances slightly larger; 0 keeps all points, as in
    the official code.
    """
    assert truth.depth is not None
    true_points = truth.points_world()
    valid = truth.valid & np.isfinite(placed.points).all(axis=-1)
    threshold = np.quantile(placed.confidence, ALIGNMENT_PERCENTILE / 100, axis=(1, 2), keepdims=True)
    chosen = valid & (placed.confidence >= threshold)
    mean_depth = float(truth.depth[truth.valid].mean())
    try:
        true_from_window = align(placed.points[chosen], true_points[chosen])
    except ValueError:
        return {"point_error": np.inf}
    moved, wanted = true_from_window.apply(placed.points[valid]), true_points[valid]
    error = np.linalg.norm(moved - wanted, axis=1)
    predicted, true = sample(moved, max_points), sample(true_points[truth.valid], max_points)
    scores = reconstruction_scores(
        predicted, true, estimate_normals(predicted), estimate_normals(true), 0.05 * mean_depth
    )
    return {"point_error": float(np.median(error)) / mean_depth, **scores.row()}


def sample(points: NDArray[np.floating], count: int) -> NDArray[np.floating]:
    """At most `count` of the points (N, 3), drawn with a fixed seed; all of them for 0."""
    if not count or len(points) <= count:
        return points
    return points[np.random.default_rng(0).choice(len(points), count, replace=False)]


def _stack(views: list[torch.Tensor]) -> Float32:
    """V tensors (1, h, w, ...) -> (V, h, w, ...) float32."""
    return torch.cat(views).float().cpu().numpy()

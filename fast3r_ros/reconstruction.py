"""`fast3r_ros.reconstruct`: images in, points, poses and intrinsics as NumPy arrays out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fast3r_ros.demo_model import REAL_MODEL, caveat
from fast3r_ros.errors import UserError
from fast3r_ros.io.cameras import CameraRecord, SourceImage, name_of
from fast3r_ros.io.run_config import run_config
from fast3r_ros.io.sources import Source, choose_indices, open_source
from fast3r_ros.io.sources.images import Pictures
from fast3r_ros.mapping.data import (
    Cloud,
    Float32,
    Float64,
    Frame,
    Keyframe,
    UInt8,
    ViewEstimate,
    WindowResult,
)
from fast3r_ros.mapping.map import Map
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.mapping.one_pass import OnePass
from fast3r_ros.networks import NetworkOptions, WindowNetwork, load_network
from fast3r_ros.pictures import Picture

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class View:
    """One image with its pose in the world.

    Attributes:
        name: its file, or its number in the input.
        image: (h, w, 3) uint8 RGB at the network's size: the colors of the points.
        points: (h, w, 3) float32 in the world, a point for each pixel.
        confidence: (h, w) float32, 1 or more.
        valid: (h, w) bool, the points that are confident enough and not at a depth edge.
        pose: (4, 4) `world_from_camera`; the camera is x right, y down, z forward.
        intrinsics: (3, 3) for the pixels of the original image, whose centres are at integer + 0.5.
        size: (width, height) of the original image, upright.
        network_from_image: (3, 3) from pixels of the original to those of `image` and `points`.
    """

    name: str
    image: UInt8
    points: Float32
    confidence: Float32
    valid: NDArray[np.bool_]
    pose: Float64
    intrinsics: Float64
    size: tuple[int, int]
    network_from_image: Float64


@dataclass(frozen=True)
class Scene:
    """The result of `reconstruct`, in one world frame: x forward, y left, z up at the first camera.

    Attributes:
        points: (N, 3) float32, those of all views fused.
        colors: (N, 3) uint8 RGB.
        confidence: (N,) float32, 1 or more.
        views: the placed images in the order of the input.
        not_placed: the names of the images that could not be placed.
        unit: of length, "m" or "map units".
    """

    points: Float32
    colors: UInt8
    confidence: Float32
    views: tuple[View, ...]
    not_placed: tuple[str, ...]
    unit: str

    @property
    def poses(self) -> Float64:
        """(V, 4, 4) `world_from_camera` of the views."""
        return np.array([view.pose for view in self.views]).reshape(-1, 4, 4)

    @property
    def intrinsics(self) -> Float64:
        """(V, 3, 3) of the views, for the pixels of the original images."""
        return np.array([view.intrinsics for view in self.views]).reshape(-1, 3, 3)

    def save(self, path: str | Path) -> None:
        """Write the fused points as `.ply` or `.pcd`, or with the cameras as `.glb`.

        Raises UserError for another suffix and when the file cannot be written.
        """
        from fast3r_ros.io.formats import CLOUDS, Results, save

        path = Path(path)
        if path.suffix.lower() not in CLOUDS:
            raise UserError(f"{path} has the suffix {path.suffix!r}; give {', '.join(CLOUDS)}")
        cloud = Cloud(self.points, self.colors, self.confidence)
        cameras = [_record(index, view) for index, view in enumerate(self.views)]
        save(path, Results(cloud, cameras, self.unit))


def reconstruct(
    images: str | Path | Sequence[Picture],
    *,
    model: str | WindowNetwork = "demo",
    mode: Literal["all", "window"] = "all",
    max_views: int | None = None,
    device: str = "auto",
    parameters: Mapping[str, Any] | None = None,
) -> Scene:
    """Reconstruct a scene from images.

    Args:
        images: what `fast3r reconstruct` takes (a glob such as `"photos/*.jpg"`, a folder, a video, a
            rosbag2, `"synthetic:2"`), or a sequence of paths, PIL images and (H, W, 3) RGB arrays.
        model: `demo`, a checkpoint folder, a hub name, or a loaded network.
        mode: `all` puts every view into one forward pass; `window` slides over ordered images of any number
            and skips redundant ones.
        max_views: take at most this many images, evenly spread.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        parameters: of the mapper, by their names: `{"points.min_confidence": 2.0}`.

    Returns:
        The scene.  It may be empty when the model cannot connect the images.

    Raises:
        UserError: when an image, the model, the device or a parameter cannot be used.
    """
    if mode not in ("all", "window"):
        raise UserError(f"mode is {mode!r}; give 'all' or 'window'")
    source = _open(images)
    indices = choose_indices(len(source), source.rate_hz, max_views=max_views)
    config = run_config(parameters or {}, mode, len(indices))
    if isinstance(model, str):
        text = caveat(model, source.synthetic, f'reconstruct(…, model="{REAL_MODEL}")')
        if text:
            _log.warning(text)
        model = load_network(model, NetworkOptions(device=device))
    mapper: Mapper | OnePass = OnePass(model, config) if mode == "all" else Mapper(model, config)
    collected = _Collected(source)
    for result in _results(collected.noted(source.frames(indices)), mapper):
        collected.add(result.views, mapper.map)
    return collected.scene(mapper.map)


def _open(images: str | Path | Sequence[Picture]) -> Source:
    if isinstance(images, (str, Path)):
        return open_source(images)
    if isinstance(images, np.ndarray) and images.ndim != 4:
        raise UserError(f"images is one array of shape {images.shape}; give a list of images")
    return Pictures(images)


def _results(frames: Iterator[Frame], mapper: Mapper | OnePass) -> Iterator[WindowResult]:
    for frame in frames:
        mapper.add_frame(frame)
        if isinstance(mapper, Mapper) and mapper.window_ready():
            yield from _given(mapper.process_window())
    if isinstance(mapper, OnePass):
        yield from mapper.process()
    else:
        yield from _given(mapper.finish())


def _given(result: WindowResult | None) -> list[WindowResult]:
    return [] if result is None else [result]


class _Collected:
    """The newest estimate of every view, with the scale that its keyframe had then."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._sizes: dict[int, tuple[int, int]] = {}  # of the stamps
        self._views: dict[int, tuple[ViewEstimate, float]] = {}

    def noted(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """The frames; their sizes are stored as they pass."""
        for frame in frames:
            self._sizes[frame.stamp_ns] = (frame.image.shape[1], frame.image.shape[0])
            yield frame

    def add(self, views: Sequence[ViewEstimate], scene: Map) -> None:
        """Store the views of a window as copies, so that the network's memory can be reused."""
        for view in views:
            scale = scene.keyframes[view.keyframe_id].map_from_local.scale
            self._views[view.keyframe_id] = (replace(view, maps=view.maps.own_copy()), scale)

    def scene(self, scene: Map) -> Scene:
        """The scene, with the final poses and scales of the main submap's keyframes."""
        cloud = scene.cloud()
        keyframes = {key: each for key, each in scene.part().items() if key in self._views}
        views = [
            self._view(keyframes[key]) for key in sorted(keyframes, key=lambda key: keyframes[key].stamp_ns)
        ]
        placed = {each.stamp_ns for each in keyframes.values()}
        others = [self._source.frame_name(stamp) for stamp in self._sizes if stamp not in placed]
        unit = "m" if scene.known_scale(scene.main) else "map units"
        return Scene(cloud.points, cloud.colors, cloud.confidence, tuple(views), tuple(others), unit)

    def _view(self, keyframe: Keyframe) -> View:
        estimate, scale = self._views[keyframe.id]
        maps = estimate.maps.scaled(keyframe.map_from_local.scale / scale).on_host
        pose = keyframe.map_from_camera
        points = maps.points @ pose[:3, :3].T + pose[:3, 3]
        return View(
            name=self._source.frame_name(keyframe.stamp_ns),
            image=estimate.image,
            points=points.astype(np.float32),
            confidence=maps.confidence,
            valid=maps.valid,
            pose=pose,
            intrinsics=np.linalg.inv(keyframe.network_from_image) @ keyframe.intrinsics,
            size=self._sizes[keyframe.stamp_ns],
            network_from_image=keyframe.network_from_image,
        )


def _record(index: int, view: View) -> CameraRecord:
    """The view as the camera files need it."""
    height, width = view.image.shape[:2]
    return CameraRecord(
        name=name_of(index),
        stamp_ns=index,
        camera="camera",
        width=width,
        height=height,
        intrinsics=view.network_from_image @ view.intrinsics,
        map_from_camera=view.pose,
        source=SourceImage(view.name, *view.size, view.network_from_image),
    )

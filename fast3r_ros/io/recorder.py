"""Keeps what the result files need of every view; pictures are written at once, so memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from fast3r_ros.io.cameras import CameraRecord, SourceImage, name_of
from fast3r_ros.io.view_images import rescale_depth, write_view_images
from fast3r_ros.mapping.data import Frame, Keyframe, ViewEstimate

_MAX_SAMPLES = 24
_SAME_SCALE = 0.005  # relative change of scale below which depth pictures are not rewritten


class Recorder:
    """Writes the pictures of new views below `directory` and keeps a few views from the whole run."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._sources: dict[
            tuple[str, int], tuple[str, int, int]
        ] = {}  # (camera, stamp) -> name, width, height
        self._sizes: dict[int, tuple[int, int]] = {}
        self._scales: dict[int, float] = {}  # keyframe id -> scale when its picture was written
        self._samples: list[ViewEstimate] = []
        self._every = 1

    def note(self, frame: Frame, name: str) -> None:
        """Note a frame's name in its source, such as its file."""
        height, width = frame.image.shape[:2]
        self._sources[frame.camera, frame.stamp_ns] = (name, width, height)

    def add(self, views: Iterable[ViewEstimate], keyframes: Mapping[int, Keyframe]) -> None:
        """Note the views of a window; views of an earlier window are skipped.

        keyframes: the map's present keyframes.  Raises UserError when a picture cannot be written.
        """
        for view in views:
            if view.keyframe_id in self._sizes:
                continue
            write_view_images(self._directory, name_of(view.keyframe_id), view)
            if len(self._sizes) % self._every == 0:
                self._samples.append(replace(view, maps=view.maps.own_copy()))
            height, width = view.image.shape[:2]
            self._sizes[view.keyframe_id] = (width, height)
            self._scales[view.keyframe_id] = keyframes[view.keyframe_id].map_from_local.scale
            if len(self._samples) > _MAX_SAMPLES:
                self._samples = self._samples[::2]
                self._every *= 2

    def finish(self, keyframes: Mapping[int, Keyframe]) -> None:
        """Rescale depth pictures that were written before a change of the map's scale."""
        for identity, written in self._scales.items():
            factor = keyframes[identity].map_from_local.scale / written if identity in keyframes else 1.0
            if abs(factor - 1.0) > _SAME_SCALE:
                rescale_depth(self._directory, name_of(identity), factor)

    def samples(self, keyframes: Mapping[int, Keyframe]) -> list[ViewEstimate]:
        """The stored views with the keyframes' latest poses and scales, in time order."""
        views = []
        for view in self._samples:
            if view.keyframe_id in keyframes:
                keyframe = keyframes[view.keyframe_id]
                maps = view.maps.scaled(keyframe.map_from_local.scale / self._scales[view.keyframe_id])
                views.append(replace(view, map_from_camera=keyframe.map_from_camera, maps=maps))
        return sorted(views, key=lambda view: view.stamp_ns)

    def cameras(self, keyframes: Mapping[int, Keyframe]) -> list[CameraRecord]:
        """The records of all keyframes with their latest poses, in time order."""
        return [
            CameraRecord(
                name=name_of(keyframe.id),
                stamp_ns=keyframe.stamp_ns,
                camera=keyframe.camera,
                width=self._sizes[keyframe.id][0],
                height=self._sizes[keyframe.id][1],
                intrinsics=keyframe.intrinsics,
                map_from_camera=keyframe.map_from_camera,
                source=self._source(keyframe),
            )
            for keyframe in sorted(keyframes.values(), key=lambda keyframe: keyframe.stamp_ns)
            if keyframe.id in self._sizes
        ]

    def _source(self, keyframe: Keyframe) -> SourceImage | None:
        noted = self._sources.get((keyframe.camera, keyframe.stamp_ns))
        return None if noted is None else SourceImage(*noted, keyframe.network_from_image)

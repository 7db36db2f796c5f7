"""Localisation of frames in a map that is not changed.

The keyframes most similar to the new frames are put into one window with them; the fit to these keyframes
gives the pose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import Keyframe, PoseEstimate, ViewEstimate, WindowNetwork
from fast3r_ros.mapping.loops import PlaceIndex
from fast3r_ros.mapping.map_builder import MapBuilder
from fast3r_ros.mapping.map_update import map_update
from fast3r_ros.mapping.tracking import Knowledge, Lap, SubmapStart, Track, track
from fast3r_ros.mapping.window import WindowView
from fast3r_ros.mapping.window_result import pose_of, up_to_date

EMPTY_MAP = "there is no map to localise in: load one with ~/load_map or map_path"
NOT_RECOGNIZED = "the images are not similar enough to any place of the map"
_RETRIEVED = 12  # maximum number of keyframes for localisation


@dataclass(frozen=True)
class Localized:
    """Localised views: estimates in time order, and their submap.

    tracked: None when the window never reached the network.  reason: of a failure, "" on success.  left_out:
    number of views that could not be placed.
    """

    tracked: Track | None
    reason: str
    estimates: tuple[ViewEstimate, ...] = ()
    submap: int = 0
    left_out: int = 0


class Localizer:
    """Keeps the newest poses, and the tokens of the keyframes they were found by."""

    def __init__(self) -> None:
        # the newest two views, in the form of keyframes that are not added to the map
        self.placed: list[Keyframe] = []
        self._views: dict[int, WindowView] = {}

    @property
    def newest(self) -> PoseEstimate | None:
        """The newest pose."""
        return pose_of(self.placed[-1]) if self.placed else None

    def forget(self) -> None:
        """Reset after a change of the map or a jump in time."""
        self.placed.clear()
        self._views.clear()

    def locate(
        self,
        network: WindowNetwork,
        new: Sequence[WindowView],
        builder: MapBuilder,
        views_of: Callable[[Sequence[int]], list[WindowView]],
        start: SubmapStart,
        known: Knowledge,
        config: MapperConfig,
        lap: Lap,
        near: set[int] | None = None,
    ) -> Localized:
        """Place new views; the map stays.  views_of: keyframes as views with tokens.

        near: ids of the candidate keyframes, None: all.
        """
        map_ = builder.map
        far = set() if near is None else map_.keyframes.keys() - near
        retrieved = self._retrieve(new, builder.loops.index, views_of, config.window.size - len(new), far)
        lap("encode")
        if not retrieved:
            return Localized(None, NOT_RECOGNIZED)
        ids = {view.keyframe_id for view in retrieved if view.keyframe_id is not None}
        tracked = track(network, [*retrieved, *new], ids, map_.keyframes, start, known, config, lap)
        if tracked.reason or not tracked.relocalized:
            return Localized(tracked, tracked.reason or NOT_RECOGNIZED, left_out=len(new))
        assert tracked.loop_keyframe is not None
        submap = map_.keyframes[tracked.loop_keyframe].submap
        update = map_update(tracked, map_.keyframes, (), builder.next_id, submap, config)
        self.placed = [*self.placed, *update.keyframes][-2:]
        keyframes = {keyframe.id: keyframe for keyframe in update.keyframes}
        estimates = up_to_date(update.estimates, keyframes, 1.0)
        return Localized(tracked, "", estimates, submap, len(update.left_out))

    def _retrieve(
        self,
        new: Sequence[WindowView],
        index: PlaceIndex,
        views_of: Callable[[Sequence[int]], list[WindowView]],
        room: int,
        far: set[int],
    ) -> list[WindowView]:
        """The keyframes most similar to the new views, without far ones.

        Only keyframes that were not in the last window are encoded.
        """
        descriptors = np.stack([view.encoded.descriptor for view in new])
        found = index.search(descriptors, min(_RETRIEVED, room), far, -1.0)
        for view in views_of([identity for identity in found if identity not in self._views]):
            assert view.keyframe_id is not None
            self._views[view.keyframe_id] = view
        self._views = {identity: self._views[identity] for identity in found if identity in self._views}
        return list(self._views.values())

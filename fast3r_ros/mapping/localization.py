"""Localisation: frames are placed in a map that stays as it is.

The keyframes that resemble the new frames most are put into one window with them; the fit to these keyframes
is the place.
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
NOT_RECOGNIZED = "the images resemble no place of the map enough to be localised in it"
_RETRIEVED = 12  # keyframes that frames are localised against, at most


@dataclass(frozen=True)
class Localized:
    """Where new views are: estimates in time order, and the submap that they are in.

    tracked: None when the window never reached the network.  reason: why they are nowhere, "" when they are
    somewhere.  left_out: how many views could not be placed.
    """

    tracked: Track | None
    reason: str
    estimates: tuple[ViewEstimate, ...] = ()
    submap: int = 0
    left_out: int = 0


class Localizer:
    """Remembers the places that it found last, and the tokens of the keyframes that it found them by."""

    def __init__(self) -> None:
        self.placed: list[Keyframe] = []  # the newest two views, as the keyframes that they do not become
        self._views: dict[int, WindowView] = {}

    @property
    def newest(self) -> PoseEstimate | None:
        """The newest place."""
        return pose_of(self.placed[-1]) if self.placed else None

    def forget(self) -> None:
        """The map or the time is another one."""
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

        near: ids of the keyframes among which the place is looked for, None: all.
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
        """The keyframes that resemble the new views most, without the far ones; only those that were not in
        the last window are encoded.
        """
        descriptors = np.stack([view.encoded.descriptor for view in new])
        found = index.search(descriptors, min(_RETRIEVED, room), far, -1.0)
        for view in views_of([identity for identity in found if identity not in self._views]):
            assert view.keyframe_id is not None
            self._views[view.keyframe_id] = view
        self._views = {identity: self._views[identity] for identity in found if identity in self._views}
        return list(self._views.values())

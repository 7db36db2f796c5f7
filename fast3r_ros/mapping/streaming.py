"""The cache of a sliding window, and the conditions for reusing it in the next window.

See `fast3r_ros.model.speed.kv_cache`; off unless the model's acceleration enables it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fast3r_ros.mapping.data import EncodedView, Reconstruction
from fast3r_ros.model.speed.kv_cache import FusionMemory


@dataclass(frozen=True)
class SeenViews:
    """The views in the fusion's cache; the first is the camera of the `window` frame, and stays.

    indices: their rows of the index table.  maps: global points and confidence, local points and confidence
    of each.  memory: keys and values of the views, in this order.  age: number of passes since a full one.
    """

    views: tuple[EncodedView, ...]
    indices: tuple[int, ...]
    maps: tuple[tuple[Tensor, ...], ...]
    memory: FusionMemory
    age: int

    def maps_of(self, views: Sequence[EncodedView]) -> Reconstruction:
        """The pointmaps of cached views."""
        places = {id(view): place for place, view in enumerate(self.views)}
        return Reconstruction(*zip(*(self.maps[places[id(view)]] for view in views), strict=True))


@dataclass(frozen=True)
class Continuation:
    """The continuation of a window from an earlier one.

    fresh: its new views.  kept: the cached views that the fresh ones attend to.
    """

    fresh: tuple[EncodedView, ...]
    kept: tuple[int, ...]

    def joined(
        self,
        seen: SeenViews,
        indices: Sequence[int],
        maps: Sequence[tuple[Tensor, ...]],
        memory: FusionMemory,
    ) -> SeenViews:
        """The kept views and the fresh ones, with the results for the latter.

        indices, maps: of the fresh views; memory: of all.
        """
        return SeenViews(
            (*(seen.views[i] for i in self.kept), *self.fresh),
            (*(seen.indices[i] for i in self.kept), *indices),
            (*(seen.maps[i] for i in self.kept), *maps),
            memory,
            seen.age + 1,
        )


def continuation(seen: SeenViews | None, views: Sequence[EncodedView], every: int) -> Continuation | None:
    """The continuation of a window from the cache; None when all its views must be processed.

    That is the case for one window in `every`, when more views are new than known, and when none is new: the
    same views are requested again after an unusable result.
    """
    if seen is None or seen.age + 1 >= every:
        return None
    known, asked = {id(view) for view in seen.views}, {id(view) for view in views}
    fresh = tuple(view for view in views if id(view) not in known)
    if not fresh or 2 * len(fresh) > len(views):
        return None
    return Continuation(fresh, tuple(i for i, view in enumerate(seen.views) if not i or id(view) in asked))


def maps_by_view(result: Reconstruction) -> list[tuple[Tensor, ...]]:
    """The pointmaps of each view together."""
    maps = result.points_global, result.confidence_global, result.points_local, result.confidence_local
    return list(zip(*maps, strict=True))

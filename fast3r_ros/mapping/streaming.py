"""What a network remembers of a sliding window, and when the next window can go on from it.

See `fast3r_ros.model.streaming`; off unless the model's acceleration says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fast3r_ros.mapping.data import EncodedView, Reconstruction
from fast3r_ros.model.streaming import FusionMemory


@dataclass(frozen=True)
class SeenViews:
    """Views that the fusion remembers; the first is the camera of the `window` frame, and stays.

    indices: their rows of the index table.  maps: global points and confidence, local points and confidence
    of each.  memory: of the views in this order.  age: passes since all of them were looked at.
    """

    views: tuple[EncodedView, ...]
    indices: tuple[int, ...]
    maps: tuple[tuple[Tensor, ...], ...]
    memory: FusionMemory
    age: int

    def maps_of(self, views: Sequence[EncodedView]) -> Reconstruction:
        """The pointmaps of views that were all seen."""
        places = {id(view): place for place, view in enumerate(self.views)}
        return Reconstruction(*zip(*(self.maps[places[id(view)]] for view in views), strict=True))


@dataclass(frozen=True)
class Continuation:
    """How a window goes on from another one.

    fresh: its views that were not seen.  kept: those of the views seen that the fresh ones attend to.
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
        """The views kept and the fresh ones, with what the pass made of these.

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
    """How a window goes on from what was seen; None when all its views have to be looked at.

    That is so for one window in `every`; when more of its views are new than known; and when none is: the
    same views are asked for again when the answer could not be used.
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

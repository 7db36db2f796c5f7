"""The sliding window: which keyframes are processed together, and which of them is view 0."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fast3r_ros.mapping.config import WindowConfig
from fast3r_ros.mapping.data import EncodedView, Float32, Float64, Frame


@dataclass(frozen=True)
class WindowView:
    """A view of a window: its keyframe's id (None while it is new), its frame's identity, and its tokens.

    depth: the frame's metric depth image, see `Frame`; None once the view is a keyframe.
    base_from_camera: see `Frame`.
    """

    keyframe_id: int | None
    stamp_ns: int
    camera: str
    encoded: EncodedView
    depth: Float32 | None = None
    base_from_camera: Float64 | None = None

    @staticmethod
    def of(frame: Frame, encoded: EncodedView) -> WindowView:
        """A new view."""
        return WindowView(None, frame.stamp_ns, frame.camera, encoded, frame.depth, frame.base_from_camera)


class SlidingWindow:
    """Keeps the tokens of the newest keyframes; those not needed in later windows are released."""

    def __init__(self, config: WindowConfig) -> None:
        self.config = config
        self._live: OrderedDict[int, WindowView] = OrderedDict()

    def compose(self, new: list[WindowView], others: list[WindowView]) -> list[WindowView]:
        """The newest keyframes, then `others` (for a loop), then the new views; at most `size` together."""
        room = self.config.size - len(new) - len(others)
        live = list(self._live.values())
        return live[max(0, len(live) - room) :] + others + new

    def keep(self, views: list[WindowView]) -> list[int]:
        """Add new keyframes; returns the ids of those that leave the window for good."""
        for view in views:
            assert view.keyframe_id is not None
            self._live[view.keyframe_id] = replace(view, depth=None)
        left = []
        while len(self._live) > self.config.size - 1:
            left.append(self._live.popitem(last=False)[0])
        return left

    def clear(self) -> list[int]:
        """Remove all views (the track was lost); returns their ids."""
        ids = list(self._live)
        self._live.clear()
        return ids

    @property
    def views(self) -> list[WindowView]:
        """Keyframes in the window with their tokens, oldest first."""
        return list(self._live.values())

    @property
    def ids(self) -> list[int]:
        """Keyframes in the window, oldest first."""
        return list(self._live)


def reference_order(views: Sequence[WindowView]) -> list[int]:
    """Numbers of the views in the order in which they are tried as view 0: first those in the map.

    View 0 should see both the known and the new scene: the tokens of the first choice are most similar to the
    known and to the new views, both weighted equally, whatever their numbers.  If that fails, the new views
    are mostly outside of its view; the second choice is the one most similar to them.
    """
    descriptors = np.stack([view.encoded.descriptor for view in views])
    alike = descriptors @ descriptors.T
    known = np.array([view.keyframe_id is not None for view in views])
    if known.all() or not known.any():
        return [int(i) for i in np.argsort(-alike.mean(axis=1), kind="stable")]
    to_new = alike[:, ~known].mean(axis=1)
    order = np.lexsort((-(alike[:, known].mean(axis=1) + to_new), ~known))
    first, *others = (int(i) for i in order)
    second = max(others, key=lambda i: (known[i], to_new[i]))
    return [first, second, *(i for i in others if i != second)]

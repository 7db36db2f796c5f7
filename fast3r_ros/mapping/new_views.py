"""Frames and keyframes as views for a window: encoded, without copies, and kept until they are placed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.data import Float64, Frame, Keyframe, WindowNetwork
from fast3r_ros.mapping.expectation import placed_by_odometry
from fast3r_ros.mapping.inbox import FrameIntake, OdometryBuffer
from fast3r_ros.mapping.tracking import encode_all
from fast3r_ros.mapping.window import WindowView


class NewViews:
    """The views of waiting frames; `pending` holds those that were processed and not placed yet.

    error: the last reason why a frame or a keyframe is no view.
    """

    def __init__(
        self,
        inbox: FrameIntake,
        odometry: OdometryBuffer,
        base_from_camera: Mapping[str, Float64],
    ) -> None:
        self._inbox = inbox
        self._odometry = odometry
        self._base_from_camera = base_from_camera
        self.pending: list[WindowView] = []
        self.error = ""

    def take(
        self, network: WindowNetwork, live: Sequence[WindowView], most: int, max_similarity: float
    ) -> list[WindowView]:
        """The pending views and those of the waiting frames, the newest `most`; none without a new one.

        live: the views of the window.  max_similarity: cosine with the camera's last keyframe above which a
        view is redundant.  Unusable and redundant frames are counted.
        """
        fresh: list[WindowView] = []
        frames = self._inbox.take()
        for frame, encoded in zip(frames, encode_all(network, frames), strict=True):
            if isinstance(encoded, UserError) or not np.isfinite(encoded.descriptor).all():
                known = isinstance(encoded, UserError)
                self.error = str(encoded) if known else "the encoder's tokens are not finite"
                self._inbox.drop("unusable")
                continue
            view = placed_by_odometry(WindowView.of(frame, encoded), self._odometry, self._base_from_camera)
            if _similarity(view, [*live, *self.pending, *fresh]) > max_similarity:
                self._inbox.drop("redundant")
            else:
                fresh.append(view)
        if not fresh:
            return []
        views, self.pending = [*self.pending, *fresh], []
        self._inbox.drop("not_connected", len(views[:-most]))
        return views[-most:]

    def drop_pending(self, reason: str) -> None:
        """Give up the views that were not placed."""
        self._inbox.drop(reason, len(self.pending))
        self.pending = []

    def of_keyframes(self, network: WindowNetwork, keyframes: Sequence[Keyframe]) -> list[WindowView]:
        """Keyframes as views, without those whose size at this network differs from the saved one."""
        frames, views = [], []
        for keyframe in keyframes:
            assert keyframe.image is not None
            frames.append(
                Frame(
                    keyframe.stamp_ns,
                    keyframe.camera,
                    keyframe.image,
                    keyframe.intrinsics,
                    base_from_camera=keyframe.base_from_camera,
                )
            )
        encoded = encode_all(network, frames)
        for keyframe, frame, view in zip(keyframes, frames, encoded, strict=True):
            if isinstance(view, UserError):
                self.error = str(view)
            elif view.image.shape == frame.image.shape:
                views.append(replace(WindowView.of(frame, view), keyframe_id=keyframe.id))
        return views


def _similarity(view: WindowView, others: Sequence[WindowView]) -> float:
    """Cosine between the descriptors of a view and of its camera's last keyframe; -1 without one."""
    last = next((other for other in reversed(others) if other.camera == view.camera), None)
    return -1.0 if last is None else float(view.encoded.descriptor @ last.encoded.descriptor)

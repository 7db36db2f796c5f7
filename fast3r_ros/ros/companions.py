"""Depth images and masks of a camera, matched to its images."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from sensor_msgs.msg import Image

from fast3r_ros.io.pixels import BadImage
from fast3r_ros.mapping.data import Float32, Frame
from fast3r_ros.ros.images import depth_to_metres, mask_to_bool
from fast3r_ros.ros.times import ns_from_stamp

DEPTHS = 10  # number of newest depth images kept for later images
MASKS = 50  # number of newest masks kept; they may arrive before or after their image
DEPTH_NS = 50_000_000  # maximum time difference between a depth image and its image

Rectify = Callable[[Float32], Float32]  # (H, W), rectified like the frames' images; raises UserError


class Companions:
    """The depth images and masks of one camera; used on the conversion thread.

    A depth image belongs to the image nearest in time.  A mask belongs to the image with its stamp; one with
    stamp zero, such as for the robot's own body, to all images without another.
    """

    def __init__(self) -> None:
        self._depths: deque[Image] = deque(maxlen=DEPTHS)
        self._masks: OrderedDict[int, Image] = OrderedDict()

    def add_depth(self, message: Image) -> None:
        """A new depth image."""
        self._depths.append(message)

    def add_mask(self, message: Image) -> None:
        """A new mask."""
        stamp_ns = ns_from_stamp(message.header.stamp)
        self._masks[stamp_ns] = message
        self._masks.move_to_end(stamp_ns)
        while len(self._masks) > MASKS:
            del self._masks[next(stamp for stamp in self._masks if stamp)]

    def has_mask(self, stamp_ns: int) -> bool:
        """Whether the mask of an image has arrived."""
        return stamp_ns in self._masks or 0 in self._masks

    def with_depth(self, frame: Frame, rectify: Rectify) -> Frame:
        """The frame with the depth image nearest in time, if there is one.

        Raises BadImage when it cannot be read or has another size.
        """

        def distance(message: Image) -> int:
            return abs(ns_from_stamp(message.header.stamp) - frame.stamp_ns)

        near = min(self._depths, key=distance, default=None)
        if near is None or distance(near) > DEPTH_NS:
            return frame
        depth = depth_to_metres(near)
        _check_size(depth, frame, "depth")
        return replace(frame, depth=rectify(depth))

    def with_mask(self, frame: Frame, rectify: Rectify) -> Frame:
        """The frame with its mask, if there is one.  Raises BadImage like `with_depth`."""
        message = self._masks.get(frame.stamp_ns, self._masks.get(0))
        if message is None:
            return frame
        ignored = mask_to_bool(message)
        _check_size(ignored, frame, "mask")
        return replace(frame, ignored=rectify(ignored.astype(np.float32)) > 0)


def _check_size(pixels: Any, frame: Frame, what: str) -> None:
    if pixels.shape != frame.image.shape[:2]:
        size, wanted = (f"{shape[1]}x{shape[0]}" for shape in (pixels.shape, frame.image.shape))
        raise BadImage(f"{what} of another size", f"{what} of {size} pixels for an image of {wanted}")

"""The intake of one camera: images become frames, with their calibration, depth images and masks."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from fast3r_ros.errors import UserError
from fast3r_ros.io.pixels import MAX_PIXELS, BadImage, compressed_size
from fast3r_ros.io.rectify import Rectifier, rectifier_of_info
from fast3r_ros.mapping.data import Float32, Frame
from fast3r_ros.ros.image_messages import compressed_to_rgb, depth_to_metres, image_to_rgb, mask_to_bool
from fast3r_ros.ros.pose_messages import NS, ns_from_stamp

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


class Rejected(Exception):
    """A dropped frame.  reason: the phrase under which it is counted; the message has details."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class TimeWentBack(Rejected):
    """The stamp went back by more than the limit: the recording started over."""


@dataclass(frozen=True)
class CameraFacts:
    """A camera: (width, height) of its images, whether camera_info describes it, its name in a rig."""

    size: tuple[int, int]
    calibrated: bool
    name: str


class Intake:
    """Turns the images of one camera into frames.

    name: of the camera in a rig, "" for a single camera.  frame_id: replaces the images' own if set.
    Size and frame id are those of the first good image until `restart`.
    """

    def __init__(self, name: str, frame_id: str = "") -> None:
        self.name = name
        self._frame_id = frame_id
        self._rectifier: Rectifier | None = None
        self._calibration: CameraInfo | None = None
        self.restart()

    def restart(self) -> None:
        """Reset size, frame id and stamp: the next image may have any."""
        self._size: tuple[int, int] | None = None
        self._camera: str | None = None
        self._newest_ns: int | None = None
        self.seen = ""  # description of the first image

    @property
    def calibrated(self) -> bool:
        """Whether intrinsics come from camera_info."""
        return self._rectifier is not None

    def calibration(self, message: CameraInfo) -> None:
        """Use a camera_info.  Raises UserError when it is invalid; the previous one then stays.

        k[0] = 0 means "not calibrated" in ROS and is not an error.
        """
        if self._calibration is not None and _same_calibration(message, self._calibration):
            return
        if message.k[0] == 0.0:
            return
        if not 0 < message.width * message.height <= MAX_PIXELS:
            raise UserError(f"camera_info is for images of {message.width}x{message.height} pixels")
        self._rectifier = rectifier_of_info(message)
        self._calibration = message

    def frame(self, message: Image | CompressedImage, jump_back: float) -> Frame:
        """One image as a frame, rectified when its camera_info is known.

        jump_back: seconds; see InputConfig.  Raises Rejected, TimeWentBack or BadImage.
        """
        camera = self._frame_id or message.header.frame_id or self.name or "camera"
        stamp_ns = ns_from_stamp(message.header.stamp)
        self._check_source(camera, stamp_ns, jump_back)
        if isinstance(message, CompressedImage):
            self._check_size(compressed_size(message.data))  # checked before decompressing
            rgb = compressed_to_rgb(message)
        else:
            rgb = image_to_rgb(message)
        size = (rgb.shape[1], rgb.shape[0])
        self._check_size(size)
        intrinsics = None
        if self._rectifier is not None:
            try:
                self._rectifier = self._rectifier.for_size(*size)
                rgb = self._rectifier(rgb)
            except UserError as error:
                raise Rejected("camera_info of another size", str(error)) from error
            intrinsics = self._rectifier.intrinsics
        self._size, self._camera, self._newest_ns = size, camera, stamp_ns
        if not self.seen:
            encoding = message.format if isinstance(message, CompressedImage) else message.encoding
            self.seen = f"{size[0]}x{size[1]}, {encoding[:40]}, frame {camera}"
        return Frame(stamp_ns, camera, rgb, intrinsics)

    def depth(self, metres: Float32) -> Float32:
        """A depth image (H, W) in metres, rectified like the frames' images.  Raises UserError."""
        return metres if self._rectifier is None else self._rectifier.depth(metres)

    def _check_size(self, size: tuple[int, int]) -> None:
        """Reject images of another size than the first."""
        if self._size not in (None, size):
            raise Rejected(
                "size changed", f"image of {size} after images of {self._size}; ~/reset accepts it"
            )

    def _check_source(self, camera: str, stamp_ns: int, jump_back: float) -> None:
        """Reject images of another camera or with an invalid stamp."""
        if self._camera not in (None, camera):
            raise Rejected(
                "frame id changed", f"frame id {camera!r} after {self._camera!r}; ~/reset accepts it"
            )
        if stamp_ns == 0:
            raise Rejected("not stamped", "the driver does not stamp its images: the stamp is zero")
        if self._newest_ns is None or stamp_ns > self._newest_ns:
            return
        back = (self._newest_ns - stamp_ns) / NS
        if back > jump_back:
            raise TimeWentBack("time went back", f"stamp {back:.3f} s before the one of the last image")
        if back == 0.0:
            raise Rejected("stamp repeated", "two images have the same stamp")
        raise Rejected("stamp went back", f"stamp {back:.3f} s before the one of the last image")


def _same_calibration(one: CameraInfo, other: CameraInfo) -> bool:
    """Whether two calibrations are equal; NaN equals nothing, so it is checked every time."""
    if (one.width, one.height, one.distortion_model) != (other.width, other.height, other.distortion_model):
        return False
    if not all(math.isclose(a, b, rel_tol=0.0, abs_tol=0.0) for a, b in zip(one.k, other.k, strict=True)):
        return False
    return list(one.d) == list(other.d)

"""Keyframe selection: cheap per-frame decisions on a small grey image."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import cv2
import numpy as np

from fast3r_ros.mapping.config import KeyframeConfig
from fast3r_ros.mapping.data import SIMULTANEOUS_NS, Frame, UInt8

_GREY_WIDTH = 160  # pixels; optical flow at this size costs about a millisecond
_GRID = 12  # tracked points per row and per column
_LOST_SHARE = 0.3  # fewer tracked points than this share: the view has changed altogether


@dataclass
class _CameraState:
    """What is remembered of one camera: its newest stamp, last keyframe and recent sharpness."""

    newest_stamp_ns: int
    keyframe_stamp_ns: int | None = None
    keyframe_grey: UInt8 | None = None
    sharpness: deque[float] = field(default_factory=lambda: deque(maxlen=30))


class KeyframeSelector:
    """Decides per frame whether it becomes a keyframe; remembers one small grey image per camera.

    Images that other cameras took together with a keyframe become keyframes, too, whatever they saw move:
    the known distance between the cameras of a rig can be measured only on such pairs.
    """

    def __init__(self, config: KeyframeConfig) -> None:
        self.config = config
        self._cameras: dict[str, _CameraState] = {}
        self._newest_keyframe_ns: int | None = None

    def judge(self, frame: Frame) -> tuple[str, float]:
        """(reason, motion): the reason why the frame is dropped, empty when it is a keyframe.

        motion is the median image motion since the camera's last keyframe as a share of the image width;
        1 when the view has changed altogether.  Reasons: duplicate, out_of_order, too_soon, featureless,
        exposure, blurred, no_motion.
        """
        state = self._cameras.get(frame.camera)
        if state is not None and frame.stamp_ns <= state.newest_stamp_ns:
            duplicate = frame.stamp_ns == state.newest_stamp_ns
            return ("duplicate" if duplicate else "out_of_order"), 0.0
        if state is None:
            state = self._cameras.setdefault(frame.camera, _CameraState(frame.stamp_ns))
        state.newest_stamp_ns = frame.stamp_ns
        elapsed = None
        if state.keyframe_stamp_ns is not None:
            elapsed = (frame.stamp_ns - state.keyframe_stamp_ns) * 1e-9
            if elapsed < self.config.min_interval:
                return "too_soon", 0.0
        grey = small_grey(frame.image)
        reason = self._quality(grey, state.sharpness)
        if reason:
            return reason, 0.0
        motion = 1.0 if state.keyframe_grey is None else image_motion(state.keyframe_grey, grey)
        overdue = elapsed is not None and 0.0 < self.config.max_interval <= elapsed
        if motion < self.config.motion and not overdue and not self._joins(frame.stamp_ns):
            return "no_motion", motion
        state.keyframe_grey = grey
        state.keyframe_stamp_ns = self._newest_keyframe_ns = frame.stamp_ns
        return "", motion

    def _joins(self, stamp_ns: int) -> bool:
        """Whether a frame was taken together with the newest keyframe, which is of another camera then."""
        newest = self._newest_keyframe_ns
        return newest is not None and abs(stamp_ns - newest) <= SIMULTANEOUS_NS

    def _quality(self, grey: UInt8, recent: deque[float]) -> str:
        """Why the image is of no use, or an empty string."""
        brightness = float(grey.mean()) / 255.0
        if brightness < 0.02 or brightness > 0.98:
            return "exposure"
        if float(grey.std()) / 255.0 < self.config.contrast:
            return "featureless"
        sharpness = float(cv2.Laplacian(grey, cv2.CV_32F).var())
        usual = float(np.median(recent)) if len(recent) >= 5 else 0.0
        recent.append(sharpness)
        return "blurred" if sharpness < self.config.sharpness * usual else ""


def small_grey(image: UInt8) -> UInt8:
    """(H, W, 3) RGB -> grey, at most 160 pixels wide."""
    height, width = image.shape[:2]
    if width > _GREY_WIDTH:
        size = (_GREY_WIDTH, max(1, round(height * _GREY_WIDTH / width)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


def image_motion(before: UInt8, after: UInt8) -> float:
    """Median optical flow of a grid of points as a share of the width; 1 if too few points could be
    followed.
    """
    if before.shape != after.shape:
        return 1.0
    height, width = before.shape
    columns, rows = np.meshgrid(
        np.linspace(0.05, 0.95, _GRID) * (width - 1), np.linspace(0.05, 0.95, _GRID) * (height - 1)
    )
    start = np.stack([columns.ravel(), rows.ravel()], axis=-1).astype(np.float32)[:, None]
    end, status, _ = cv2.calcOpticalFlowPyrLK(
        before, after, start, np.zeros_like(start), winSize=(13, 13), maxLevel=3
    )
    followed = status.ravel() == 1
    if followed.mean() < _LOST_SHARE:
        return 1.0
    flow = np.linalg.norm((end - start)[followed, 0], axis=-1)
    return min(1.0, float(np.median(flow)) / width)

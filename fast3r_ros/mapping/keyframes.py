"""Keyframe selection by cheap tests on a small grey image."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from fast3r_ros.mapping.config import KeyframeConfig
from fast3r_ros.mapping.data import SIMULTANEOUS_NS, Float64, Frame, UInt8

_GREY_WIDTH = 160  # pixels; optical flow at this size costs about a millisecond
_GRID = 12  # tracked points per row and per column
_LOST_SHARE = 0.3  # with a smaller share of tracked points the view counts as completely changed
_RECENT = 12  # number of frames for the comparison of sharpness
_SHARP_QUANTILE = 0.8  # quantile of a sharp frame among them, valid even if half are blurred
_NEEDED = (
    4.0  # multiple of a keyframe's motion after which even a blurred frame is accepted, to stay connected
)
_SHARPER = 1.25  # ratio of sharpness at which a frame replaces a keyframe
_SECOND = np.array([[1, -2, 1]], np.float32)  # filter of second differences along rows
_PATCH = 9  # pixels; side of the squares around tracked points for comparing two images


@dataclass
class _CameraState:
    """The state of one camera: its newest frame, last keyframe and recent sharpness.

    Sharpness (4,) is a logarithm per direction, relative to the first frame: of the parts shared by
    successive images, and of the whole images.
    """

    newest_stamp_ns: int
    newest_grey: UInt8 | None = None
    compared_grey: UInt8 | None = None  # the newest frame in `sharpness`, even if blurred
    keyframe_stamp_ns: int | None = None
    keyframe_grey: UInt8 | None = None
    keyframe_sharpness: Float64 | None = None
    sharpness: deque[Float64] = field(default_factory=lambda: deque(maxlen=_RECENT))


class KeyframeSelector:
    """Decides whether a frame becomes a keyframe; stores one small grey image per camera.

    Simultaneous images of other cameras become keyframes as well, regardless of motion: the known distance
    between the cameras of a rig can be measured only on such pairs.
    """

    def __init__(self, config: KeyframeConfig) -> None:
        self.config = config
        self._cameras: dict[str, _CameraState] = {}
        self._newest_keyframe_ns: int | None = None

    def judge(self, frame: Frame) -> tuple[str, float]:
        """(reason, motion): the reason why the frame is dropped, empty when it is a keyframe.

        motion is the median image motion since the camera's last keyframe as a share of the image width;
        1 when the view has changed completely.  Reasons: duplicate, out_of_order, too_soon, featureless,
        exposure, blurred, no_motion.
        """
        state = self._cameras.get(frame.camera)
        if state is not None and frame.stamp_ns <= state.newest_stamp_ns:
            duplicate = frame.stamp_ns == state.newest_stamp_ns
            return ("duplicate" if duplicate else "out_of_order"), 0.0
        if state is None:
            state = self._cameras.setdefault(frame.camera, _CameraState(frame.stamp_ns))
        state.newest_stamp_ns, state.newest_grey = frame.stamp_ns, None
        elapsed = None
        if state.keyframe_stamp_ns is not None:
            elapsed = (frame.stamp_ns - state.keyframe_stamp_ns) * 1e-9
            if elapsed < self.config.min_interval:
                return "too_soon", 0.0
        grey = small_grey(frame.image)
        reason = self._quality(grey, state)
        if reason not in ("", "blurred"):
            return reason, 0.0
        motion = 1.0 if state.keyframe_grey is None else image_motion(state.keyframe_grey, grey)
        if reason and motion < _NEEDED * self.config.motion:
            return reason, 0.0
        state.newest_grey = grey
        overdue = elapsed is not None and 0.0 < self.config.max_interval <= elapsed
        if motion < self.config.motion and not overdue and not self._joins(frame.stamp_ns):
            return "no_motion", motion
        self._choose(state)
        return "", motion

    def sharper_than(self, camera: str) -> int | None:
        """The stamp of a camera's last keyframe if the last frame shows the same view clearly sharper."""
        state = self._cameras[camera]
        if state.keyframe_sharpness is None or state.newest_grey is None:
            return None
        clearly = _relative(state.sharpness[-1], state.keyframe_sharpness) > _SHARPER
        # comparison errors accumulate over frames, so only keyframes below the recent sharpness are replaced
        below = _relative(state.keyframe_sharpness, _usual(state.sharpness)) < 1 / _SHARPER
        return state.keyframe_stamp_ns if clearly and below else None

    def exchange(self, camera: str) -> None:
        """Replace a camera's last keyframe by the frame judged last."""
        self._choose(self._cameras[camera])

    def _choose(self, state: _CameraState) -> None:
        state.keyframe_grey, state.keyframe_sharpness = state.newest_grey, state.sharpness[-1]
        state.keyframe_stamp_ns = self._newest_keyframe_ns = state.newest_stamp_ns

    def _joins(self, stamp_ns: int) -> bool:
        """Whether a frame is simultaneous with the newest keyframe, of another camera."""
        newest = self._newest_keyframe_ns
        return newest is not None and abs(stamp_ns - newest) <= SIMULTANEOUS_NS

    def _quality(self, grey: UInt8, state: _CameraState) -> str:
        """Why the image is unusable, or an empty string."""
        brightness = float(grey.mean()) / 255.0
        if brightness < 0.02 or brightness > 0.98:
            return "exposure"
        if float(grey.std()) / 255.0 < self.config.contrast:
            return "featureless"
        recent = state.sharpness
        mine = np.zeros(4)
        if state.compared_grey is not None and state.compared_grey.shape == grey.shape:
            mine = recent[-1] + log_sharper(state.compared_grey, grey)
        else:
            recent.clear()
        usual = _usual(recent) if len(recent) > 1 else mine
        recent.append(mine)
        state.compared_grey = grey
        return "blurred" if _relative(mine, usual) < self.config.sharpness else ""


def log_sharper(before: UInt8, after: UInt8) -> Float64:
    """(4,) log ratio of the sharpness of two grey images (h, w), second to first.

    Along rows and along columns, first in the shared parts, then in the whole images.  The shared parts are
    patches around tracked points, so that new content and exposure have no effect.  Sharpness is the power of
    second differences as a share of the variance; camera motion blurs one direction more than the other.
    Images with too little in common are compared as wholes.
    """
    start, end, followed = _flow(before, after)
    height, width = before.shape
    columns, rows = np.rint(end).astype(int).T
    inside = followed & (columns >= 0) & (rows >= 0) & (columns < width) & (rows < height)
    one, other = _powers(before), _powers(after)
    whole = _log_ratio(one.mean(axis=(0, 1)), other.mean(axis=(0, 1)))
    if inside.mean() < _LOST_SHARE:
        return np.concatenate([whole, whole])
    first = np.rint(start[inside]).astype(int)
    here = one[first[:, 1], first[:, 0]].mean(axis=0)
    there = other[rows[inside], columns[inside]].mean(axis=0)
    return np.concatenate([_log_ratio(here, there), whole])


def _log_ratio(here: Float64, there: Float64) -> Float64:
    """(2,) from two means of `_powers`, each (4,); 0 in a direction without structure."""
    here, there = (each[:2] / max(each[3] - each[2] ** 2, 1e-6) for each in (here, there))
    known = (here > 0) & (there > 0)
    return np.asarray(np.log(np.where(known, there, 1.0) / np.where(known, here, 1.0)))


def _powers(grey: UInt8) -> Float64:
    """(h, w, 4): means around each pixel of squared second differences (rows, columns), value, its square."""
    pixels = grey.astype(np.float32)
    patch = (_PATCH, _PATCH)
    seconds = [
        cv2.boxFilter(cv2.filter2D(pixels, -1, kernel) ** 2, -1, patch) for kernel in (_SECOND, _SECOND.T)
    ]
    values = [cv2.boxFilter(each, -1, patch) for each in (pixels, pixels**2)]
    return np.stack([*seconds, *values], axis=-1).astype(np.float64)


def _usual(recent: deque[Float64]) -> Float64:
    """The log sharpness (4,) of the sharp ones among recent frames."""
    return np.asarray(np.quantile(recent, _SHARP_QUANTILE, axis=0))


def _relative(mine: Float64, other: Float64) -> float:
    """Sharpness of one image relative to another, in the worse direction.

    Of the two comparisons the more favourable one counts: wrong tracking or new content can make a sharp
    image look blurred in one of them, blur shows in both.
    """
    return float(np.exp((mine - other).reshape(2, 2).min(axis=1).max()))


def small_grey(image: UInt8) -> UInt8:
    """(H, W, 3) RGB -> grey, at most 160 pixels wide."""
    height, width = image.shape[:2]
    if width > _GREY_WIDTH:
        size = (_GREY_WIDTH, max(1, round(height * _GREY_WIDTH / width)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


def image_motion(before: UInt8, after: UInt8) -> float:
    """Median optical flow of a grid of points as a share of the width; 1 if too few points are tracked."""
    if before.shape != after.shape:
        return 1.0
    start, end, followed = _flow(before, after)
    if followed.mean() < _LOST_SHARE:
        return 1.0
    flow = np.linalg.norm((end - start)[followed], axis=-1)
    return min(1.0, float(np.median(flow)) / before.shape[1])


def _flow(before: UInt8, after: UInt8) -> tuple[Float64, Float64, NDArray[np.bool_]]:
    """(N, 2) pixels of a grid of points in the first image and in the second, (N,) whether tracked."""
    height, width = before.shape
    columns, rows = np.meshgrid(
        np.linspace(0.05, 0.95, _GRID) * (width - 1), np.linspace(0.05, 0.95, _GRID) * (height - 1)
    )
    start = np.stack([columns.ravel(), rows.ravel()], axis=-1).astype(np.float32)[:, None]
    end, status, _ = cv2.calcOpticalFlowPyrLK(
        before, after, start, np.zeros_like(start), winSize=(13, 13), maxLevel=3
    )
    return start[:, 0].astype(np.float64), end[:, 0].astype(np.float64), status.ravel() == 1

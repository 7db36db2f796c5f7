"""Images waiting for their transforms, like in tf2's message filters, and the cameras' poses on the robot.

Independent of rclpy: frames and a TransformLookup in, frames with their camera's pose out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from fast3r_ros.mapping.data import Float64, Frame
from fast3r_ros.ros.node_config import NodeConfig
from fast3r_ros.ros.pose_messages import NS
from fast3r_ros.ros.transforms import TransformLate, TransformLookup, TransformMissing

WAIT_SECONDS = 1.0  # for transforms that arrive after their image
MOST_BYTES = 200_000_000  # limit for waiting images
LATE_NS = 10 * NS  # odometry may arrive after its image while transforms are stored
PATIENCE = 20  # consecutive images without a transform, after which later ones do not wait


@dataclass(frozen=True)
class Ready:
    """A frame that no longer waits; arrived: monotonic seconds.

    odom_from_base: (4, 4) at its stamp, if on TF.  missing: the missing transforms, human-readable.
    """

    frame: Frame
    arrived: float
    odom_from_base: Float64 | None
    missing: tuple[str, ...]


class WaitingImages:
    """Keeps frames in order until their transforms and masks have arrived, at most `WAIT_SECONDS`.

    The transforms are base -> camera and, if wanted, odom -> base at the frames' stamps.  A camera that is
    not connected to the base is waited for only if the configuration needs the base.  A transform for which
    `PATIENCE` images have waited is not waited for any more, until it arrives again.  now: monotonic seconds.
    mask_to_come(frame): whether masks are published and this frame's has not arrived.
    """

    def __init__(
        self, lookup: TransformLookup, now: Callable[[], float], mask_to_come: Callable[[Frame], bool]
    ) -> None:
        self._lookup, self._now, self._mask_to_come = lookup, now, mask_to_come
        self._waiting: deque[tuple[Frame, float, float]] = deque()  # frame, arrival time, start of waiting
        self._bytes = 0
        # (target, source) -> stamps of frames released without them, which may still arrive
        self._late: dict[tuple[str, str], deque[int]] = {}
        self._in_vain: dict[str, int] = {}  # frame whose pose was missing -> number of consecutive images

    def __len__(self) -> int:
        """Number of waiting frames."""
        return len(self._waiting)

    def add(self, frame: Frame, arrived: float) -> None:
        """Add a frame; `release` returns it."""
        self._waiting.append((frame, arrived, self._now()))
        self._bytes += frame.image.nbytes

    def release(self, config: NodeConfig) -> Iterator[Ready]:
        """The frames that are complete, or have waited long enough, in order.

        Exceptions of a lookup pass through; its frame then no longer waits.
        """
        while self._waiting:
            frame, arrived, since = self._waiting[0]
            full = self._bytes > MOST_BYTES
            found, waits = None, False
            try:
                found = self._resolve(frame, config, final=full or self._now() - since >= WAIT_SECONDS)
                waits = found is None
            finally:
                if not waits:
                    self._waiting.popleft()
                    self._bytes -= frame.image.nbytes
            if found is None:
                break
            yield replace(found, arrived=arrived)

    def late_odometry(self, config: NodeConfig) -> list[tuple[int, Float64]]:
        """Odometry (stamp, odom_from_base) that arrived on TF after its image was released."""
        late = {names: self._came_late(*names, stamps) for names, stamps in self._late.items() if stamps}
        return late.get((config.frames.odom, config.frames.base), [])

    def _came_late(self, target: str, source: str, stamps: deque[int]) -> list[tuple[int, Float64]]:
        found = []
        newest = stamps[-1]
        while stamps:
            try:
                found.append((stamps[0], self._lookup.lookup(target, source, stamps[0])))
                self._in_vain.pop(source, None)  # it arrives again: the next images wait for it
            except TransformMissing as error:
                if isinstance(error, TransformLate) and newest - stamps[0] < LATE_NS:
                    break
            stamps.popleft()
        return found

    def clear(self) -> int:
        """Remove all frames; returns their number."""
        count = len(self._waiting)
        self._waiting.clear()
        self._late.clear()
        self._bytes = 0
        return count

    def seconds_left(self) -> float:
        """Seconds until the first frame has waited long enough; infinite when none waits."""
        return self._waiting[0][2] + WAIT_SECONDS - self._now() if self._waiting else float("inf")

    def _resolve(self, frame: Frame, config: NodeConfig, final: bool) -> Ready | None:
        """The frame with its transforms; None while it should wait for one."""
        frames, missing = config.frames, []
        mask = f"mask of {frame.camera}"
        if not self._mask_to_come(frame):
            self._in_vain.pop(mask, None)
        elif not final and self._in_vain.get(mask, 0) < PATIENCE:
            return None
        else:
            self._in_vain[mask] = self._in_vain.get(mask, 0) + final
        wanted = [(frames.base, frame.camera)]
        if config.input.odometry == "tf":
            wanted.append((frames.odom, frames.base))
        found: list[Float64 | None] = []
        for target, source in wanted:
            try:
                found.append(self._lookup.lookup(target, source, frame.stamp_ns))
                self._in_vain.pop(source, None)
            except TransformMissing as error:
                to_come = isinstance(error, TransformLate) or _needs_base(config)
                if to_come and not final and self._in_vain.get(source, 0) < PATIENCE:
                    return None
                found.append(None)
                missing.append(f"{target} -> {source}: {error}")
                self._in_vain[source] = self._in_vain.get(source, 0) + final
                self._late.setdefault((target, source), deque(maxlen=1000)).append(frame.stamp_ns)
        found.append(None)
        placed = replace(frame, base_from_camera=found[0])
        return Ready(placed, 0.0, found[1], tuple(missing))


def _needs_base(config: NodeConfig) -> bool:
    """Whether the cameras' poses on the robot are needed, so that they are expected on TF."""
    by_base = config.mapper.scale.source in ("odometry", "rig") or config.tf_mode in ("base", "map_to_odom")
    return by_base or config.input.odometry == "tf"


class Mounts:
    """The cameras' poses on the robot from TF, checked, and logged at each change.

    assumed: image frame id -> assumption for a camera that is not connected to the base frame.  wrong: image
    frame id -> why its frame is probably not the optical one.
    """

    def __init__(self, logger: Any, base: str) -> None:
        self.assumed: dict[str, str] = {}
        self.wrong: dict[str, str] = {}
        self._logger, self._base = logger, base
        self._known: dict[str, bool] = {}

    def seen(self, frame: Frame) -> None:
        """Record an image's knowledge of its camera's pose."""
        camera, place = frame.camera, frame.base_from_camera
        if self._known.get(camera) == (place is not None):
            return
        self._known[camera] = place is not None
        if place is None:
            self.assumed[camera] = (
                f"{self._base} -> {camera} is not on TF: the camera is assumed to look ahead, level, from "
                f"the origin of {self._base}"
            )
            self._logger.info(self.assumed[camera])
            return
        self.assumed.pop(camera, None)
        x, y, z = (float(value) for value in place[:3, 3])
        self._logger.info(f"{camera} is at x {x:.2f}, y {y:.2f}, z {z:.2f} m on {self._base}")
        if looks_like_body_frame(place) and "optical" not in camera:
            self.wrong[camera] = (
                f"{camera} does not look like an optical frame (x right, y down, z forward): on {self._base} "
                "its z axis points up; publish images in the camera's optical frame, or name that frame in "
                "input.frame_id"
            )
            self._logger.warning(self.wrong[camera])
        else:
            self.wrong.pop(camera, None)


def looks_like_body_frame(base_from_camera: Float64) -> bool:
    """Whether a camera's frame (4, 4) has z up and y level, like camera_link, instead of z ahead, y down."""
    return bool(base_from_camera[2, 2] > 0.5 and abs(base_from_camera[2, 1]) < 0.5)

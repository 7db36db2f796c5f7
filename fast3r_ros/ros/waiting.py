"""Images that wait for their transforms, as tf2's message filters let messages wait, and what is known of
where the cameras sit on the robot.

Pure of rclpy: frames and a TransformLookup in, frames that know where their camera was out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from fast3r_ros.mapping.data import Float64, Frame
from fast3r_ros.ros.config import NodeConfig
from fast3r_ros.ros.times import NS
from fast3r_ros.ros.transforms import TransformLate, TransformLookup, TransformMissing

WAIT_SECONDS = 1.0  # for transforms that come later than their image
MOST_BYTES = 200_000_000  # of images that wait
LATE_NS = 10 * NS  # as long as transforms are kept, odometry may come after its image
PATIENCE = 20  # images in a row whose missing transform was waited for in vain, until the next do not wait


@dataclass(frozen=True)
class Ready:
    """A frame that need not wait any more; arrived: monotonic seconds.

    odom_from_base: (4, 4) at its stamp where TF gives it.  missing: what TF does not say, human-readable.
    """

    frame: Frame
    arrived: float
    odom_from_base: Float64 | None
    missing: tuple[str, ...]


class WaitingImages:
    """Keeps frames in order until TF gives base -> camera and, where it is wanted, odom -> base at their
    stamps, and until their mask has come, for `WAIT_SECONDS` at most.

    A camera that does not hang on the base at all is waited for only where the configuration needs the base.
    What `PATIENCE` images have waited for in vain is not waited for any more, until it comes again.  now:
    monotonic seconds.  mask_to_come(frame): whether a mask is published that has not come for this frame.
    """

    def __init__(
        self, lookup: TransformLookup, now: Callable[[], float], mask_to_come: Callable[[Frame], bool]
    ) -> None:
        self._lookup, self._now, self._mask_to_come = lookup, now, mask_to_come
        self._waiting: deque[tuple[Frame, float, float]] = deque()  # frame, arrived, since when it waits
        self._bytes = 0
        # (target, source) -> stamps at which they were missing when a frame was released, and may still come
        self._late: dict[tuple[str, str], deque[int]] = {}
        self._in_vain: dict[str, int] = {}  # frame whose place was waited for -> images in a row

    def __len__(self) -> int:
        """The number of frames that wait."""
        return len(self._waiting)

    def add(self, frame: Frame, arrived: float) -> None:
        """A new frame; `release` gives it back."""
        self._waiting.append((frame, arrived, self._now()))
        self._bytes += frame.image.nbytes

    def release(self, config: NodeConfig) -> Iterator[Ready]:
        """The frames that have all they wait for, or have waited long enough, in their order.

        What a lookup raises passes through; its frame waits no more then.
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
        """Odometry (stamp, odom_from_base) that came on TF after its image had been released."""
        came = {names: self._came_late(*names, stamps) for names, stamps in self._late.items() if stamps}
        return came.get((config.frames.odom, config.frames.base), [])

    def _came_late(self, target: str, source: str, stamps: deque[int]) -> list[tuple[int, Float64]]:
        found = []
        newest = stamps[-1]
        while stamps:
            try:
                found.append((stamps[0], self._lookup.lookup(target, source, stamps[0])))
                self._in_vain.pop(source, None)  # it comes again: the next images wait for it
            except TransformMissing as error:
                if isinstance(error, TransformLate) and newest - stamps[0] < LATE_NS:
                    break
            stamps.popleft()
        return found

    def clear(self) -> int:
        """Forget all; returns the number of frames among it."""
        count = len(self._waiting)
        self._waiting.clear()
        self._late.clear()
        self._bytes = 0
        return count

    def seconds_left(self) -> float:
        """Until the first waiting frame has waited long enough; infinite when none waits."""
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
    """Whether the cameras' places on the robot are needed, so that they can be expected to be on TF."""
    by_base = config.mapper.scale.source in ("odometry", "rig") or config.tf_mode in ("base", "map_to_odom")
    return by_base or config.input.odometry == "tf"


class Mounts:
    """What TF says of where the cameras sit on the robot, checked and told: a line in the log at each change.

    assumed: image frame id -> what is assumed of a camera that does not hang on the base frame.  wrong: image
    frame id -> why its frame is probably not the optical one.
    """

    def __init__(self, logger: Any, base: str) -> None:
        self.assumed: dict[str, str] = {}
        self.wrong: dict[str, str] = {}
        self._logger, self._base = logger, base
        self._known: dict[str, bool] = {}

    def seen(self, frame: Frame) -> None:
        """Note what an image knows about its camera's place."""
        camera, place = frame.camera, frame.base_from_camera
        if self._known.get(camera) == (place is not None):
            return
        self._known[camera] = place is not None
        if place is None:
            self.assumed[camera] = (
                f"{self._base} -> {camera} is not on TF: the camera is taken to look ahead, level, from the "
                f"place of {self._base}"
            )
            self._logger.info(self.assumed[camera])
            return
        self.assumed.pop(camera, None)
        x, y, z = (float(value) for value in place[:3, 3])
        self._logger.info(f"{camera} sits at x {x:.2f}, y {y:.2f}, z {z:.2f} m on {self._base}")
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
    """Whether a camera's frame (4, 4) has z up and y level, as camera_link has, and not z ahead, y down."""
    return bool(base_from_camera[2, 2] > 0.5 and abs(base_from_camera[2, 1]) < 0.5)

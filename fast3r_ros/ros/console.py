"""Console output of the running node: one line per change, never one per message."""

from __future__ import annotations

import re
from typing import Any

from fast3r_ros.msg import MappingStatus
from fast3r_ros.ros.status import CameraReport, Report, camera_finding, clock

# a measured value; digits in the name of a topic, a node or a frame are part of the name
_VALUE = re.compile(r"(?<![\w/.])\d+(\.\d+)?(?![\w/]|\.\d)")
_MAPPING = (MappingStatus.MAPPING, MappingStatus.LOCALIZING)


class Console:
    """Compares the node's reports with the last output.  `update` is called about twice a second."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._logged: dict[str, str] = {}  # subject of a line -> the line
        self._since: dict[str, float] = {}  # camera topic -> time from which its silence counts
        self._before: Report | None = None

    def update(self, report: Report, now: float) -> None:
        """Report changes.  now: monotonic seconds."""
        for camera in report.cameras:
            self._camera(camera, report.timeout, now)
        self._since = {each.topic: self._since.get(each.topic, now) for each in report.cameras}
        self._log("transforms", report.waiting_for, "transforms are broadcast")
        if report.clock_difference:
            self._log("clock", f"transforms follow the images' clock, {clock(report)}", warn=False)
        for child, parent in report.parents.items():
            self._log(f"parent of {child}", f"{child} already has the parent {parent}: ours is not broadcast")
        for child in [key.removeprefix("parent of ") for key in self._logged if key.startswith("parent of ")]:
            if child not in report.parents:
                self._log(f"parent of {child}", "", f"no other node broadcasts {child} any more")
        if self._before is not None:
            self._state(self._before, report)
        self._before = report

    def _camera(self, camera: CameraReport, timeout: float, now: float) -> None:
        """Report a camera's subscription, its first image, and missing images."""
        topic = camera.topic
        qos = "reliable" if camera.reliable else "best effort"
        self._log(f"subscription {camera.name}", f"subscribed to {topic}, {qos}{camera.note}", warn=False)
        if camera.image:
            calibration = "calibrated" if camera.calibrated else "not calibrated: intrinsics are estimated"
            self._log(f"image {topic}", f"images on {topic}: {camera.image}, {calibration}", warn=False)
        found = camera_finding(camera, timeout)
        waited = now - self._since.get(topic, now)
        if found is None:
            self._log(f"input {topic}", "", f"receiving images on {topic}")
        elif camera.silence is not None or waited > timeout:
            self._log(f"input {topic}", found[1])

    def _state(self, before: Report, report: Report) -> None:
        """Report the mapper's changes since the last report."""
        if report.state == MappingStatus.LOST != before.state:
            self._logger.warning(f"lost: {report.last_error or 'the newest windows do not fit the map'}")
        if before.state == MappingStatus.LOST and report.state in _MAPPING:
            self._logger.info("found: the newest window fits the map again")
        if before.mapper is None or report.mapper is None:
            return
        old, new = before.mapper, report.mapper
        if new.metres and not old.metres:
            uncertain = f"{new.scale_sigma:.1%} uncertain"
            self._logger.info(f"scale adopted from {new.scale_source}, {uncertain}: the map is in metres")
        if new.submaps > max(old.submaps, 1):
            self._logger.warning(f"a submap was started: the map has {new.submaps} unconnected parts")
        elif 0 < new.submaps < old.submaps:
            self._logger.info(f"submaps were joined: the map has {new.submaps}")
        if new.loops_closed > old.loops_closed:
            self._logger.info(f"a loop was closed, {new.loops_closed} in all")

    def _log(self, about: str, text: str, good: str = "", warn: bool = True) -> None:
        """Report a text that is new apart from its measured values; `good` when it has ended."""
        logged = self._logged.get(about, "")
        if _VALUE.sub("", text) == _VALUE.sub("", logged):
            return
        if text:
            self._logged[about] = text
            if warn:  # rclpy allows one severity per line of code
                self._logger.warning(text)
            else:
                self._logger.info(text)
        else:
            self._logger.info(good)
            del self._logged[about]

"""The parts of a configured node, and what they report together."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fast3r_ros.mapping.inbox import FrameCounts
from fast3r_ros.ros.broadcaster import Broadcaster
from fast3r_ros.ros.counters import Counters
from fast3r_ros.ros.inputs import Inputs
from fast3r_ros.ros.node_config import NodeConfig
from fast3r_ros.ros.outputs import Outputs
from fast3r_ros.ros.pose_messages import NS
from fast3r_ros.ros.status import CameraReport, Report
from fast3r_ros.ros.subscriptions import CameraSubscriptions
from fast3r_ros.ros.worker import MappingThread, gpu_memory

CLOCKS_APART_SECONDS = 5.0  # difference between the images' stamps and the node's clock; less may be a delay


@dataclass(frozen=True)
class Session:
    """The parts of a configured node; a holder may use it even while the node is torn down."""

    inputs: Inputs
    mapping: MappingThread
    outputs: Outputs
    broadcaster: Broadcaster

    def set_active(self, active: bool) -> None:
        """Subscribe and map, or pause; the map stays."""
        self.outputs.active = active
        self.mapping.set_running(active)
        (self.inputs.open if active else self.inputs.close)()

    def set_config(self, config: NodeConfig) -> None:
        """Use changed parameters from the next message and window on."""
        self.inputs.config = self.outputs.config = self.broadcaster.config = config
        self.mapping.set_config(config.mapper)
        self.mapping.request(lambda mapper: mapper.set_localizing(config.localization))

    def restart(self) -> None:
        """Start everything that is derived from the map again, after it was emptied or replaced."""
        self.inputs.restart()
        self.outputs.restart()
        self.broadcaster.reset()

    def stop(self, timeout: float | None) -> bool:
        """End every thread; False when a pass is still running after `timeout` seconds."""
        ended = True
        limit = None if timeout is None else time.monotonic() + timeout
        self.outputs.active = False
        for part in (self.mapping, self.inputs, self.outputs):
            part.request_stop()
        for part in (self.inputs, self.mapping, self.outputs):
            left = None if limit is None else max(0.0, limit - time.monotonic())
            ended = part.stop(left) and ended
        return ended

    def frame_counts(self, counters: Counters) -> tuple[FrameCounts, set[str]]:
        """Counts of all frames since the node was configured, and which reasons are the node's own."""
        mapped = self.mapping.mapper.frame_counts()  # read first: its frames were all counted as received
        received, drops, *_ = counters.snapshot()
        return FrameCounts(received, mapped.used, {**mapped.dropped, **drops}), set(drops)

    def clock_difference(self, now_ns: int) -> float:
        """Seconds by which the images' clock is ahead of the node's (`now_ns`).

        0 if both may be the same; otherwise the images are from a recording or another machine.
        """
        image_time_ns = self.inputs.image_time_ns()
        apart = 0.0 if image_time_ns is None else (image_time_ns - now_ns) / NS
        return apart if abs(apart) > CLOCKS_APART_SECONDS else 0.0

    def report(self, report: Report, keyframes: int, dropped: Mapping[str, int]) -> Report:
        """The node's report with what its parts know.

        keyframes, dropped: the mapper's counts since the map was last emptied or replaced.
        """
        inputs, mapping, outputs, broadcaster = self.inputs, self.mapping, self.outputs, self.broadcaster
        allocated, peak = gpu_memory()
        return replace(
            report,
            window_size=mapping.mapper.config.window.size,
            stamp_ns=outputs.newest_ns or report.now_ns,
            mapper=replace(mapping.status, keyframes=keyframes, dropped=dropped),
            map_version=mapping.mapper.map.version,
            latencies=outputs.latencies,
            image_age=outputs.image_age,
            gpu_bytes=allocated,
            gpu_peak_bytes=peak,
            cameras=[_camera_report(camera, inputs) for camera in inputs.cameras],
            parents=dict(broadcaster.parents),
            waiting_for=broadcaster.waiting_for,
            no_grid=outputs.no_grid,
            assumed=dict(inputs.mounts.assumed),
            wrong_frames=dict(inputs.mounts.wrong),
            broadcast=broadcaster.broadcast,
            held_back=outputs.held_back,
            clock_difference=self.clock_difference(report.now_ns),
        )


def _camera_report(camera: CameraSubscriptions, inputs: Inputs) -> CameraReport:
    last = inputs.last_image_time.get(camera.name)
    silence = None if last is None else time.monotonic() - last
    intake = inputs.intakes[camera.name]
    return CameraReport(
        topic=camera.topic,
        publishers=camera.publishers,
        silence=silence,
        reliable=camera.reliable,
        calibrated=intake.calibrated,
        unheard=camera.unheard,
        name=camera.name,
        image=intake.seen,
        others=camera.others,
        note=camera.note,
    )

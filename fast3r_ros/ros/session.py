"""A configured node: its parts, how they are connected, and what they report together."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from geometry_msgs.msg import TransformStamped
from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node

from fast3r_ros.mapping.data import Frame, WindowNetwork, WindowResult
from fast3r_ros.mapping.inbox import FrameCounts
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.msg import MappingStatus
from fast3r_ros.ros.broadcaster import Broadcaster
from fast3r_ros.ros.counters import Counters
from fast3r_ros.ros.inputs import Inputs
from fast3r_ros.ros.live_viewer import LiveViewer
from fast3r_ros.ros.map_files import path_at_start
from fast3r_ros.ros.node_config import NodeConfig
from fast3r_ros.ros.outputs import Outputs
from fast3r_ros.ros.pose_messages import NS
from fast3r_ros.ros.status import CameraReport, Report
from fast3r_ros.ros.subscriptions import CameraSubscriptions
from fast3r_ros.ros.transforms import OwnFrames, TransformLookup
from fast3r_ros.ros.worker import MappingThread, gpu_memory, prepare_network

CLOCKS_APART_SECONDS = 5.0  # difference between the images' stamps and the node's clock; less may be a delay


class Session:
    """The parts of a configured node, how they are connected, and what they report together.

    A holder may use it even while the node is torn down.  counters: of the node.  own_frames, lookup: TF,
    which outlives a session.  group: of the input callbacks.  publish_tf(transforms) and publish_status() are
    the node's.  on_smaller_window(size): see `MappingThread`.  Raises UserError for an unusable saved map.
    """

    def __init__(
        self,
        node: Node,
        config: NodeConfig,
        network: WindowNetwork,
        counters: Counters,
        own_frames: OwnFrames,
        lookup: TransformLookup,
        group: CallbackGroup,
        publish_tf: Callable[[list[TransformStamped]], Any],
        publish_status: Callable[[], None],
        on_smaller_window: Callable[[int], None],
    ) -> None:
        self._counters = counters
        self._counted = FrameCounts()  # counts when the map was last emptied or replaced
        self._last_accepted = True
        self._complete = False
        logger = node.get_logger()
        mapper = Mapper(network, config.mapper)
        if config.map_path:
            path = path_at_start(config.map_directory, config.map_path)
            mapper.load_map(path)
            logger.info(f"map loaded: {len(mapper.map.keyframes)} keyframes from {path}")
        mapper.set_localizing(config.localization)
        with ExitStack() as begun:  # parts are ended again if a later one fails
            self.mapping = MappingThread(
                mapper,
                counters,
                logger,
                self._on_window,
                self._on_idle,
                on_smaller_window,
                self._on_still,
                lambda pose: self.broadcaster.place(pose.map_from_base),
            )
            begun.callback(self.mapping.stop)
            self.mapping.request(lambda _: prepare_network(network, config)).result()
            self.inputs = Inputs(
                node, config, counters, lookup, own_frames, group, self.mapping, self._time_went_back
            )
            begun.callback(self.inputs.stop)
            facts, arrivals = self.inputs.facts, self.inputs.arrivals
            self.broadcaster = Broadcaster(publish_tf, config, own_frames, lookup, facts, logger.info)
            viewer = LiveViewer(config.viewer, logger)
            self.outputs = Outputs(
                node, config, counters, self.broadcaster, facts, arrivals, viewer, publish_status
            )
            self._complete = True
            begun.pop_all()

    # what the threads of the parts call

    def _on_window(self, mapper: Mapper, result: WindowResult) -> None:
        """On the mapping thread."""
        self._last_accepted = result.accepted
        self.outputs.window(mapper, result)

    def _on_idle(self, mapper: Mapper) -> None:
        """On the mapping thread, which starts before the other parts."""
        if self._complete:
            self.outputs.idle(mapper)

    def _on_still(self, frame: Frame) -> None:
        """On the conversion thread."""
        if self.outputs.active:
            self.broadcaster.still(frame.camera, frame.stamp_ns)

    def _time_went_back(self) -> None:
        """On the conversion thread: a new window starts, the map stays."""
        self.broadcaster.time_went_back()
        self.mapping.mapper.restart_input()  # at once: the next image is of the new time
        self.mapping.request(lambda mapper: mapper.restart_window())

    # what the node calls

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

    def new_map(self) -> None:
        """On the mapping thread: the map was emptied or replaced; everything derived from it starts again."""
        self._counted, _ = self._frame_counts()
        self._last_accepted = True
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

    def _frame_counts(self) -> tuple[FrameCounts, set[str]]:
        """Counts of all frames since the node was configured, and which reasons are the node's own."""
        mapped = self.mapping.mapper.frame_counts()  # read first: its frames were all counted as received
        received, drops, *_ = self._counters.snapshot()
        return FrameCounts(received, mapped.used, {**mapped.dropped, **drops}), set(drops)

    def clock_difference(self, now_ns: int) -> float:
        """Seconds by which the images' clock is ahead of the node's (`now_ns`).

        0 if both may be the same; otherwise the images are from a recording or another machine.
        """
        image_time_ns = self.inputs.image_time_ns()
        apart = 0.0 if image_time_ns is None else (image_time_ns - now_ns) / NS
        return apart if abs(apart) > CLOCKS_APART_SECONDS else 0.0

    def report(self, report: Report, localizing: bool) -> Report:
        """The node's report with what its parts know; frames are counted since the map's last beginning."""
        counted = self._counted  # read first: later counts are never smaller
        total, own_drops = self._frame_counts()
        frames = total.since(counted)
        own = {reason: n for reason, n in frames.dropped.items() if reason in own_drops}
        dropped = {reason: n for reason, n in frames.dropped.items() if reason not in own_drops}
        inputs, mapping, outputs, broadcaster = self.inputs, self.mapping, self.outputs, self.broadcaster
        allocated, peak = gpu_memory()
        return replace(
            report,
            state=self._state(localizing) if report.state == MappingStatus.WAITING else report.state,
            received=frames.received,
            drops=own,
            window_size=mapping.mapper.config.window.size,
            stamp_ns=outputs.newest_ns or report.now_ns,
            mapper=replace(mapping.status, keyframes=frames.used, dropped=dropped),
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

    def _state(self, localizing: bool) -> int:
        """The state of an active node."""
        if self.inputs.paused:
            return MappingStatus.PAUSED
        if not self.inputs.facts:
            return MappingStatus.WAITING
        if not self._last_accepted:
            return MappingStatus.LOST
        return MappingStatus.LOCALIZING if localizing else MappingStatus.MAPPING


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

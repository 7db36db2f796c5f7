"""The node `fast3r_mapping`: images in, one map out.  A lifecycle node, by default with autostart.

Threads: the executor's (callbacks only leave references), conversion (`inputs`), mapping (`worker`)
and publishing (`outputs`).
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState
from nav_msgs.msg import OccupancyGrid
from rclpy.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.executors import MultiThreadedExecutor
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.timer import Timer

from fast3r_ros.demo_model import REAL_MODEL, caveat
from fast3r_ros.errors import UserError
from fast3r_ros.files import one_line
from fast3r_ros.mapping.data import WindowNetwork
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.msg import MappingStatus
from fast3r_ros.ros.broadcaster import tf_publisher
from fast3r_ros.ros.console import Console
from fast3r_ros.ros.counters import Counters, Guard
from fast3r_ros.ros.node_config import NodeConfig
from fast3r_ros.ros.parameters import ConfiguredNode
from fast3r_ros.ros.pose_messages import NS
from fast3r_ros.ros.process import begin, leave, leave_within, spin_until
from fast3r_ros.ros.services import Services
from fast3r_ros.ros.session import Session
from fast3r_ros.ros.status import Report, diagnostics_message, status_message
from fast3r_ros.ros.transforms import OwnFrames, transform_lookup
from fast3r_ros.ros.worker import (
    MappingThread,
    free_gpu_memory,
    load_network,
    resolve_device,
)

NODE_NAME = "fast3r_mapping"
STOP_SECONDS = 1.3  # time for a running pass after Ctrl-C
LEAVE_SECONDS = 2.5  # the process ends this long after Ctrl-C at the latest
ADAPT_SECONDS = 0.5
EXECUTOR_THREADS = 4

NetworkLoader = Callable[[NodeConfig], WindowNetwork]


class MappingNode(ConfiguredNode):
    """The lifecycle node.

    configure loads the model, activate subscribes and maps, deactivate pauses, cleanup frees.  load_network:
    makes a network from the configuration.  defaults: of the parameters and constants.  Raises UserError for
    unusable parameters.
    """

    def __init__(
        self, load_network: NetworkLoader = load_network, defaults: NodeConfig | None = None
    ) -> None:
        super().__init__(NODE_NAME, defaults or NodeConfig())
        self._load_network = load_network
        self._counters = Counters()
        self._own_frames = OwnFrames()
        self._lookup = transform_lookup()
        self._guard = Guard(self._counters, self.get_logger())
        self._console = Console(self.get_logger())
        self._session: Session | None = None
        self._state = MappingStatus.UNCONFIGURED
        self._device = ""
        self._input_group = MutuallyExclusiveCallbackGroup()
        self._publish_tf = tf_publisher(self)
        self._status = self.create_publisher(MappingStatus, "~/status", 10)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._service_set = Services(
            self,
            self._guard,
            self._mapping_thread,
            lambda: self.config.map_directory,
            self._set_paused,
            self._set_localizing,
            self._new_map,
            self._grid,
        )
        self._answer_impossible_transitions()
        self._create_timers()
        self.follow_parameters()

    def _create_timers(self) -> None:
        """Periodic work by the steady clock, which neither simulation nor a looping bag sets back."""
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        group = MutuallyExclusiveCallbackGroup()

        def every(seconds: float, action: Callable[[], None], group: CallbackGroup) -> Timer:
            def tick() -> None:
                self._guard.run("timer", action)

            return self.create_timer(seconds, tick, group, steady)

        self._status_timer = every(1.0 / self.config.output.status_rate, self._publish_status, group)
        self._tf_timer = every(1.0 / self.config.tf.rate, self._tick_transforms, group)
        every(1.0, self._publish_diagnostics, group)
        every(ADAPT_SECONDS, self._adapt, self._input_group)
        threshold = JumpThreshold(
            min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=False
        )
        self._jump = self.get_clock().create_jump_callback(threshold, post_callback=self._clock_jumped)

    # Lifecycle -------------------------------------------------------------------------------------------

    def _answer_impossible_transitions(self) -> None:
        """Answer impossible transitions; Jazzy's rclpy leaves their callers waiting."""
        change = self._service_change_state.callback

        def answer(request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
            try:
                return change(request, response)
            except RuntimeError as error:  # includes rclpy's RCLError
                self.get_logger().error(f"transition {request.transition.id} failed: {one_line(error)}")
                response.success = False
                return response

        self._service_change_state.callback = answer

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the network and start the threads."""
        try:
            self._set_up()
        except Exception as error:
            self._report_error(error)
            self._tear_down()
            self._state = MappingStatus.ERROR
            return TransitionCallbackReturn.FAILURE
        self._state = MappingStatus.INACTIVE
        return TransitionCallbackReturn.SUCCESS

    def _set_up(self) -> None:
        self._counters.reset()
        config = self.config
        start = time.monotonic()
        network = self._load_network(config)
        self._device = resolve_device(config.device)
        took = time.monotonic() - start
        self.get_logger().info(
            f"model {config.model} ({config.accelerate}) on {self._device}, loaded in {took:.1f} s"
        )
        self._print_caveat()
        self._session = Session(
            self,
            config,
            network,
            self._counters,
            self._own_frames,
            self._lookup,
            self._input_group,
            self._publish_tf,
            self._publish_status,
            self._on_smaller_window,
        )

    def _print_caveat(self) -> None:
        """Print the model's caveat at start and end: a node cannot know where its images come from."""
        launch = f"ros2 launch fast3r_ros mapping.launch.py model:={REAL_MODEL}"
        text = caveat(self.config.model, False, launch)
        if text:
            self.get_logger().warning(text)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and map; an unexpected error leads to `on_error`."""
        try:
            self._set_active(True)
        except Exception as error:
            self._report_error(error)
            return TransitionCallbackReturn.ERROR
        self._state = MappingStatus.WAITING
        return TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe; the map stays."""
        self._set_active(False)
        self._state = MappingStatus.INACTIVE
        return TransitionCallbackReturn.SUCCESS

    def _set_active(self, active: bool) -> None:
        session = self._session
        if session is not None:
            session.set_active(active)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End the threads and free the network and the map."""
        self._tear_down()
        for group in (self.default_callback_group, self._input_group):
            # rclpy keeps a dead reference to everything that was ever in a group
            group.entities = {each for each in list(group.entities) if each() is not None}
        self._state = MappingStatus.UNCONFIGURED
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Like cleanup."""
        return self.on_cleanup(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Like cleanup; ~/status reports ERROR and the reason, and the node can be configured again."""
        self._tear_down()
        self._state = MappingStatus.ERROR
        return TransitionCallbackReturn.SUCCESS

    def _report_error(self, error: Exception) -> None:
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        self._counters.error(text)
        self.get_logger().error(text)

    def _tear_down(self, timeout: float | None = None) -> bool:
        """End every thread; False when a pass is still running after `timeout` seconds."""
        session, self._session = self._session, None
        ended = True
        if session is not None:
            self._print_caveat()
            ended = session.stop(timeout)
        del session
        gc.collect()
        free_gpu_memory()
        return ended

    def autostart(self) -> bool:
        """Configure and activate; False when the node could not be configured."""
        if self.trigger_configure() != TransitionCallbackReturn.SUCCESS:
            return False
        return self.trigger_activate() == TransitionCallbackReturn.SUCCESS

    def callback_failed(self, error: Exception) -> None:
        """On the executor's thread: handle an exception of a callback, ours or rclpy's."""
        self._guard.failed("callback", error)

    def stop(self) -> bool:
        """End everything before the process ends; False when a pass is still running."""
        ended = self._tear_down(STOP_SECONDS)
        self._guard.close()
        return ended

    # Changes ---------------------------------------------------------------------------------------------

    def _on_smaller_window(self, size: int) -> None:
        """On the mapping thread: set the parameter, so that a later change of another keeps the size."""
        self.set_parameters([Parameter("window.size", Parameter.Type.INTEGER, size)])

    def _set_paused(self, paused: bool) -> None:
        session = self._session
        if session is not None:
            session.inputs.paused = paused

    def _set_localizing(self, localizing: bool) -> None:
        """Change the parameter, to agree with the service.  Raises UserError if rejected."""
        (result,) = self.set_parameters([Parameter("localization", Parameter.Type.BOOL, localizing)])
        if not result.successful:
            raise UserError(result.reason)

    def _grid(self, mapper: Mapper) -> OccupancyGrid:
        """On the mapping thread: the map's grid, for services."""
        session = self._session
        if session is None:
            raise UserError("the node is not configured; configure it first")
        return session.outputs.grid(mapper)

    def _mapping_thread(self) -> MappingThread | None:
        session = self._session
        return None if session is None else session.mapping

    def _new_map(self) -> None:
        """On the mapping thread: the map was emptied or replaced."""
        self._counters.restart()
        session = self._session
        if session is not None:
            session.new_map()

    def _clock_jumped(self, jump: object) -> None:
        self.get_logger().warning("the clock went back: a new window starts")
        session = self._session
        if session is not None:
            session.inputs.clock_went_back()

    def use_config(self, config: NodeConfig) -> None:
        """Use changed parameters, from the next message and window on."""
        self._status_timer.timer_period_ns = round(1e9 / config.output.status_rate)
        self._tf_timer.timer_period_ns = round(1e9 / config.tf.rate)
        session = self._session
        if session is not None:
            session.set_config(config)

    # Periodic --------------------------------------------------------------------------------------------

    def _adapt(self) -> None:
        session = self._session
        if session is not None:
            session.inputs.adapt()
            self._console.update(self._report(), time.monotonic())

    def _tick_transforms(self) -> None:
        session = self._session
        if session is not None and session.outputs.active:
            now_ns = self.get_clock().now().nanoseconds
            session.broadcaster.tick(now_ns + round(session.clock_difference(now_ns) * NS))

    def _publish_status(self) -> None:
        self._status.publish(status_message(self._report(), self.config.frames.map))

    def _publish_diagnostics(self) -> None:
        name = self.get_fully_qualified_name().removeprefix("/")
        self._diagnostics.publish(diagnostics_message(self._report(), name))

    def _report(self) -> Report:
        session = self._session
        _, _, problems, last_error = self._counters.snapshot()
        p99, longest = self._counters.callback_times()
        now_ns = self.get_clock().now().nanoseconds
        report = Report(
            now_ns=now_ns,
            stamp_ns=now_ns,
            state=self._state,
            received=0,
            drops={},
            problems=problems,
            last_error=last_error,
            window_size=self.config.mapper.window.size,
            callback_p99=p99,
            callback_max=longest,
            device=self._device,
            accelerate=self.config.accelerate,
            timeout=self.config.input.timeout,
        )
        return report if session is None else session.report(report, self.config.localization)


def main(
    arguments: Sequence[str] | None = None,
    load_network: NetworkLoader = load_network,
    defaults: NodeConfig | None = None,
) -> NoReturn:
    """Run the node until a signal.  Ends the process: 0 after a signal, 2 when the node cannot start.

    load_network, defaults: see MappingNode.
    """
    stop = begin(arguments)
    try:
        node = MappingNode(load_network, defaults)
    except UserError as error:
        print(f"{NODE_NAME}: {error}", file=sys.stderr)
        leave(2)
    executor = MultiThreadedExecutor(EXECUTOR_THREADS)
    executor.add_node(node)
    status = 0

    def start() -> None:
        nonlocal status
        try:
            started = node.autostart()
        except Exception as error:  # a manager may change the state at the same time
            node.callback_failed(error)
            return
        if not started and not stop.is_set():
            status = 2
            stop.set()

    starting = threading.Thread(target=start, name="fast3r_autostart", daemon=True)
    spinning = spin_until(stop, executor, node.callback_failed)
    if node.config.autostart:
        starting.start()
    while not stop.wait(0.5):
        if not spinning.is_alive():  # rclpy was shut down elsewhere
            status = 1
            stop.set()
    leave_within(LEAVE_SECONDS, status)
    ended = not starting.is_alive() and node.stop()
    executor.shutdown(timeout_sec=0.5)
    if ended:
        spinning.join(0.5)  # a node in use is not destroyed, and would stay in the graph for its lease
        node.destroy_node()
        rclpy.shutdown()
    leave(status)


if __name__ == "__main__":
    main()

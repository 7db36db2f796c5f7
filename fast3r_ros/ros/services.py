"""The services ~/reset, ~/pause, ~/localize, ~/save_map, ~/load_map and ~/get_map.

All except `pause` and `localize` wait for the mapping thread, one at a time, so that images keep flowing;
other calls are answered as busy at once.  No wait is unbounded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from nav_msgs.msg import OccupancyGrid
from nav_msgs.srv import GetMap
from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile
from std_srvs.srv import SetBool, Trigger

from fast3r_ros.errors import UserError
from fast3r_ros.io.formats import Results, save
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.ros.counters import Guard
from fast3r_ros.ros.map_files import (
    CLOUD_SUFFIXES,
    GRID_SUFFIXES,
    path_for_loading,
    path_for_saving,
    write_grid,
)
from fast3r_ros.ros.worker import MappingThread, ShuttingDown
from fast3r_ros.srv import LoadMap, SaveMap

Answer = TypeVar("Answer")
CALLS = 1000  # maximum number of waiting calls; the middleware drops more
WAIT_SECONDS = 30.0  # for the current window, in addition to twice the newest window's time
WORK_SECONDS = 600.0  # for the work itself, such as a map on a slow disk
AT_ONCE = 2  # calls at a time: one that works, and one that is answered as busy
LOGGED = ("reset", "save_map", "load_map")  # services that change a map, in memory or on disk
# answers without a pause, then the pause between answers: a client buffers ten
BURST, PAUSE_SECONDS = 8, 0.01


class LimitedCallbackGroup(CallbackGroup):
    """At most `AT_ONCE` of its callbacks run at a time; the executor's other threads serve images."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._running = 0

    def can_execute(self, entity: Any) -> bool:
        """Whether one more callback may start."""
        with self._lock:
            return self._running < AT_ONCE

    def beginning_execution(self, entity: Any) -> bool:
        """Start a callback, if one more may."""
        with self._lock:
            begins = self._running < AT_ONCE
            self._running += begins
            return begins

    def ending_execution(self, entity: Any) -> None:
        """A callback has ended."""
        with self._lock:
            self._running -= 1


class Services:
    """Creates the services; on failure they answer with success = False and the reason.

    guard: receives unexpected failures.  thread() is the mapping thread, None while the node is not
    configured.  directory() is the map directory.  on_pause(paused) and on_localize(localizing) run on the
    executor, on_new_map() on the mapping thread, where grid(mapper) makes the map's grid.
    """

    def __init__(
        self,
        node: Node,
        guard: Guard,
        thread: Callable[[], MappingThread | None],
        directory: Callable[[], str],
        on_pause: Callable[[bool], None],
        on_localize: Callable[[bool], None],
        on_new_map: Callable[[], None],
        grid: Callable[[Mapper], OccupancyGrid],
    ) -> None:
        self._node, self._thread, self._directory = node, thread, directory
        self._guard, self._grid = guard, grid
        self._on_pause, self._on_localize, self._on_new_map = on_pause, on_localize, on_new_map
        self._lock = threading.Lock()
        self._busy = ""  # the service being processed
        self._busy_since = 0.0
        self._next_answer = 0.0  # as time.monotonic()
        group, qos = LimitedCallbackGroup(), QoSProfile(depth=CALLS)
        for kind, name, action in (
            (Trigger, "reset", self._reset),
            (SetBool, "pause", self._pause),
            (SetBool, "localize", self._localize),
            (SaveMap, "save_map", self._save),
            (LoadMap, "load_map", self._load),
            (GetMap, "get_map", self._get),
        ):
            node.create_service(
                kind, f"~/{name}", self._answering(name, action), qos_profile=qos, callback_group=group
            )

    def _answering(self, name: str, action: Callable[[Any, Any], str]) -> Callable[[Any, Any], Any]:
        """A service callback: the action's result, or the reason of its failure, becomes the message."""

        def answer(request: Any, response: Any) -> Any:
            success = False
            try:
                message = action(request, response)
                success = True
                if name in LOGGED:
                    self._node.get_logger().info(f"{name}: {message}")
            except (UserError, OSError, ShuttingDown) as error:
                message = str(error)
                self._node.get_logger().error(f"{name}: {error}", throttle_duration_sec=1.0)
            except Exception as error:
                message = f"internal error: {error!r}"
                self._guard.failed(f"service {name}", error)
            if not isinstance(response, GetMap.Response):  # which has no message field
                response.success, response.message = success, message
            self._wait_for_turn()
            return response

        return answer

    def _wait_for_turn(self) -> None:
        """Pause between many answers, because a client's buffer is limited."""
        with self._lock:
            now = time.monotonic()
            self._next_answer = max(self._next_answer, now - BURST * PAUSE_SECONDS) + PAUSE_SECONDS
            seconds = self._next_answer - now
        if seconds > 0.0:
            time.sleep(seconds)

    def _configured(self) -> MappingThread:
        thread = self._thread()
        if thread is None:
            raise UserError("the node is not configured; configure it first")
        return thread

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Raises UserError while another service works, including its work on the mapping thread."""
        with self._lock:
            if self._busy:
                seconds = time.monotonic() - self._busy_since
                raise UserError(
                    f"busy: ~/{self._busy} has been running for {seconds:.1f} s; call again after its answer"
                )
            self._busy, self._busy_since = name, time.monotonic()
            self._work: Future[Any] | None = None
        try:
            yield
        finally:
            if self._work is None:
                self._free(None)
            else:  # the work may continue after the answer
                self._work.add_done_callback(self._free)

    def _free(self, work: Future[Any] | None) -> None:
        with self._lock:
            self._busy = ""

    def _do(self, function: Callable[[Mapper], Answer]) -> Answer:
        """Run `function(mapper)` on the mapping thread and wait for it.

        Raises UserError on a timeout, and the function's exceptions.
        """
        thread = self._configured()
        self._work = future = thread.request(function)
        return _result(future, WAIT_SECONDS + 2.0 * thread.pass_seconds)

    def _reset(self, request: Trigger.Request, response: Trigger.Response) -> str:
        def reset(mapper: Mapper) -> None:
            mapper.reset()
            self._on_new_map()

        with self._alone("reset"):
            self._do(reset)
        return "the map is empty"

    def _pause(self, request: SetBool.Request, response: SetBool.Response) -> str:
        self._configured()
        self._on_pause(request.data)
        return "paused: images are ignored, the map stays" if request.data else "running"

    def _localize(self, request: SetBool.Request, response: SetBool.Response) -> str:
        self._configured()
        self._on_localize(request.data)
        return "localising: the map is not changed" if request.data else "mapping: the map is extended"

    def _save(self, request: SaveMap.Request, response: SaveMap.Response) -> str:
        thread = self._configured()
        path = path_for_saving(self._directory(), request.name, request.overwrite)
        kind = path.suffix.lower()

        left_out = 0

        def take(mapper: Mapper) -> Results | OccupancyGrid:
            nonlocal left_out
            thread.process_pending()
            left_out = mapper.map.submaps - 1
            cloud = mapper.map.cloud()
            if len(cloud.points) == 0:
                raise UserError("the map is empty: nothing was saved")
            if kind in GRID_SUFFIXES:
                return self._grid(mapper)
            if kind not in CLOUD_SUFFIXES:
                mapper.save_map(path)
            unit = "m" if mapper.map.known_scale(mapper.map.main) else "map units"
            return Results(cloud, [], unit)

        with self._alone("save_map"):
            saved = self._do(take)
            if isinstance(saved, Results):
                if kind in CLOUD_SUFFIXES:
                    save(path, saved)
                count, what = len(saved.cloud.points), "points"
            else:
                count, what = write_grid(path, saved), "cells"
        response.path, response.points = str(path), count
        written = f"{count} {what} written to {path}"
        if left_out and kind in (*CLOUD_SUFFIXES, *GRID_SUFFIXES):
            which = "a part that is" if left_out == 1 else f"{left_out} parts that are"
            written += f", without {which} not connected; a name without suffix saves the whole map"
        return written

    def _get(self, request: GetMap.Request, response: GetMap.Response) -> str:
        with self._alone("get_map"):
            response.map = self._do(self._grid)
        return f"a grid of {response.map.info.width}x{response.map.info.height} cells"

    def _load(self, request: LoadMap.Request, response: LoadMap.Response) -> str:
        self._configured()
        path = path_for_loading(self._directory(), request.name)

        def load(mapper: Mapper) -> int:
            mapper.load_map(path)
            self._on_new_map()
            return len(mapper.map.keyframes)

        with self._alone("load_map"):
            response.keyframes = self._do(load)
        return f"{response.keyframes} keyframes loaded from {path}"


def _result(future: Future[Answer], patience: float) -> Answer:
    """The result of a request.  patience: seconds until its start.  Raises UserError on a timeout."""
    for seconds in (patience, WORK_SECONDS):
        try:
            return future.result(seconds)
        except TimeoutError:
            if future.done():  # raised by the function
                raise
            if future.cancel():
                text = f"busy: a window has been running for {seconds:.0f} s"
                raise UserError(f"{text}; nothing was changed, call again") from None
    raise UserError(f"not finished after {WORK_SECONDS:.0f} s; it continues, ~/status shows the map")

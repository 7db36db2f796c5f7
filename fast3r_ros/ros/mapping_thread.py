"""The thread that runs the mapper: windows, and whatever else needs the mapper to itself."""

from __future__ import annotations

import logging
import threading
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import Float64, Frame, WindowResult
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.ros.counters import Counters
from fast3r_ros.ros.network import free_gpu_memory

Answer = TypeVar("Answer")
IDLE_SECONDS = 0.2


class MappingThread:
    """Owns a Mapper: frames come from the conversion thread, windows run on a thread of their own.

    on_window(mapper, result) runs on that thread after every window; on_idle(mapper) when nothing is to do,
    about five times a second.
    """

    def __init__(
        self,
        mapper: Mapper,
        counters: Counters,
        logger: Any,
        on_window: Callable[[Mapper, WindowResult], None],
        on_idle: Callable[[Mapper], None],
    ) -> None:
        self.mapper = mapper
        self._counters, self._logger = counters, logger
        self._on_window, self._on_idle = on_window, on_idle
        self.status = mapper.status()  # as of the newest window
        self._wake = threading.Condition()
        self._requests: deque[tuple[Callable[[Mapper], Any], Future[Any]]] = deque()
        self._running = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="fast3r_mapping", daemon=True)
        self._thread.start()

    def add_frame(self, frame: Frame) -> None:
        """Offer a frame to the mapper, which keeps it or counts why not."""
        self.mapper.add_frame(frame)
        with self._wake:
            self._wake.notify()

    def add_odometry(self, stamp_ns: int, odom_from_base: Float64) -> None:
        """Hand a metric pose on to the mapper."""
        self.mapper.add_odometry(stamp_ns, odom_from_base)

    def set_extrinsics(self, camera: str, base_from_camera: Float64) -> None:
        """Tell the mapper where a camera sits on the robot."""
        self.request(lambda mapper: mapper.set_extrinsics(camera, base_from_camera))

    def set_running(self, running: bool) -> None:
        """Whether windows are processed; requests are always answered."""
        with self._wake:
            self._running = running
            self._wake.notify()

    def request(self, function: Callable[[Mapper], Answer]) -> Future[Answer]:
        """Run `function(mapper)` between two windows; its result or exception is in the future."""
        future: Future[Answer] = Future()
        with self._wake:
            if self._stopping:
                future.set_exception(RuntimeError("the mapper is being shut down"))
                return future
            self._requests.append((function, future))
            self._wake.notify()
        return future

    def work_off(self) -> Future[None]:
        """Process what waits, down to a last partial window, so that all that was seen is in the map."""

        def finish(mapper: Mapper) -> None:
            while mapper.window_ready() and not self._stopping:
                self._process_window(mapper.process_window)
            self._process_window(mapper.finish)

        return self.request(finish)

    def stop(self, timeout: float | None = None) -> bool:
        """End the thread after the window in progress; False when that takes more than `timeout` seconds."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping:
            with self._wake:
                if not self._requests and not (self._running and self.mapper.window_ready()):
                    self._wake.wait(IDLE_SECONDS)
                requests = list(self._requests)
                self._requests.clear()
            for function, future in requests:
                self._answer(function, future)
            self.status = self.mapper.status()
            if self._running and self.mapper.window_ready() and not self._stopping:
                self._process_window(self.mapper.process_window)
            elif not self._stopping:
                self._guarded(lambda: self._on_idle(self.mapper))
        for _, future in self._requests:
            future.set_exception(RuntimeError("the mapper is being shut down"))

    def _answer(self, function: Callable[[Mapper], Any], future: Future[Any]) -> None:
        try:
            future.set_result(function(self.mapper))
        except BaseException as error:
            future.set_exception(error)

    def _process_window(self, process: Callable[[], WindowResult | None]) -> None:
        results: list[WindowResult | None] = []
        self._guarded(lambda: results.append(process()))
        result = results[0] if results else None
        if result is not None:
            self._guarded(lambda: self._on_window(self.mapper, result))

    def _guarded(self, action: Callable[[], None]) -> None:
        """Run a step; its failure is told and the thread lives on, with the map as it was."""
        try:
            action()
        except Exception as error:
            if _out_of_memory(error):
                self._shrink_window()
            self._counters.error(f"{type(error).__name__}: {error}")
            self._counters.problem("window failed")
            self._logger.error(f"a window failed and was left out: {error!r}", throttle_duration_sec=1.0)
            logging.getLogger(__name__).debug("%s", traceback.format_exc())

    def _shrink_window(self) -> None:
        """Go on with smaller windows after one that did not fit into memory."""
        free_gpu_memory()
        config = smaller_window(self.mapper.config)
        if config is not self.mapper.config:
            size = config.window.size
            text = f"out of memory: going on with windows of {size} views; set window.size {size}"
            self._logger.warning(text)
            self.mapper.set_config(config)


def smaller_window(config: MapperConfig) -> MapperConfig:
    """The configuration with windows of three quarters of the views, never fewer than stride + overlap."""
    window = config.window
    size = max(window.stride + window.overlap, window.size * 3 // 4)
    return config if size == window.size else replace(config, window=replace(window, size=size))


def _out_of_memory(error: BaseException) -> bool:
    """PyTorch's error is told by its name, so that this module does not import PyTorch."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"

"""The mapping thread, and the network of a node's parameters."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import Float64, Frame, WindowNetwork, WindowResult
from fast3r_ros.mapping.expectation import InitialPose
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.ros.counters import Counters, Guard
from fast3r_ros.ros.node_config import NodeConfig

if TYPE_CHECKING:
    from fast3r_ros.mapping.network import Fast3RNetwork


_log = logging.getLogger(__name__)


def load_network(config: NodeConfig) -> WindowNetwork:
    """The network of `model` on `device` in `dtype`.

    Raises UserError for an unknown network, checkpoint, device or acceleration.
    """
    import torch

    from fast3r_ros import networks

    if config.torch_threads:
        torch.set_num_threads(config.torch_threads)
    expected_size(config.expected_image)  # checked before anything is loaded
    options = networks.NetworkOptions(config.device, config.dtype, accelerate=config.accelerate)
    return networks.load_network(config.model, options)


def prepare_network(network: WindowNetwork, config: NodeConfig) -> None:
    """On a GPU: warm up for the size of `expected_image`, so that the first window is as fast as the others.

    Call it on the thread that runs the windows: cuDNN caches its plans per thread and shape.
    """
    expected = expected_size(config.expected_image)
    if expected is None or not resolve_device(config.device).startswith("cuda"):
        return
    from fast3r_ros.mapping.network import Fast3RNetwork
    from fast3r_ros.model.preprocess import plan_resize

    if isinstance(network, Fast3RNetwork):
        warm_up(network, config.mapper, plan_resize(*expected, network.model.config.image_size).size)


def warm_up(network: Fast3RNetwork, config: MapperConfig, size: tuple[int, int]) -> None:
    """Warm up for windows of views of this size (width, height)."""
    import torch

    from fast3r_ros.mapping.warm_up import warm_up_mapping

    window = config.window
    try:
        warm_up_mapping(network.warm_up(window.size, size, window.stride), config)
        return
    except torch.OutOfMemoryError:  # the first window reports it, too, and smaller ones follow
        _log.warning("no memory to warm up for windows of %d views", window.size)
    free_gpu_memory()  # after the error is gone with its frames and their tensors


def expected_size(text: str) -> tuple[int, int] | None:
    """The parameter `expected_image` as (width, height); None when it is empty.  Raises UserError."""
    if not text:
        return None
    width, mark, height = text.partition("x")
    if not (mark and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise UserError(f"expected_image is {text!r}; give WIDTHxHEIGHT such as 640x480, or leave it empty")
    return int(width), int(height)


def resolve_device(device: str) -> str:
    """Like `model.precision.resolve_device`, without loading PyTorch before it is needed."""
    from fast3r_ros.model import precision

    return precision.resolve_device(device)


def gpu_memory() -> tuple[int, int]:
    """(allocated, peak) bytes of GPU memory of this process, on all GPUs together; zeros without one."""
    import torch

    if not torch.cuda.is_available():
        return 0, 0
    # not of the current device, which is the first GPU even if the model is on another
    gpus = range(torch.cuda.device_count())
    return sum(map(torch.cuda.memory_allocated, gpus)), sum(map(torch.cuda.max_memory_allocated, gpus))


def free_gpu_memory() -> None:
    """Return cached GPU memory to the device."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


Answer = TypeVar("Answer")
IDLE_SECONDS = 0.2
STANDING_NS = (
    2_000_000_000  # without motion, after which the pending keyframes become a window, even if it is not full
)
AHEAD_NS = 5_000_000_000  # tf2 rejects transforms ten seconds older than its newest


class ShuttingDown(RuntimeError):
    """The mapping thread ends."""

    def __init__(self) -> None:
        super().__init__("the mapper is being shut down")


class MappingThread:
    """Owns a Mapper: frames come from the conversion thread, windows run on a separate thread.

    on_window(mapper, result) runs on that thread after every window; on_idle(mapper) about five times a
    second when idle; on_smaller_window(size) after windows of more than `size` views ran out of memory;
    on_initial_pose(pose) for a pose in the map.  on_still(frame) runs on the caller's thread for each frame
    without motion, but not far ahead of pending keyframes, whose transforms tf2 would then reject as too old.
    """

    def __init__(
        self,
        mapper: Mapper,
        counters: Counters,
        logger: Any,
        on_window: Callable[[Mapper, WindowResult], None],
        on_idle: Callable[[Mapper], None],
        on_smaller_window: Callable[[int], None],
        on_still: Callable[[Frame], None] = lambda _: None,
        on_initial_pose: Callable[[InitialPose], None] = lambda _: None,
    ) -> None:
        self.mapper = mapper
        self.pass_seconds = 0.0  # duration of the newest window
        self._counters, self._logger = counters, logger
        self._guard = Guard(counters, logger)
        self._on_window, self._on_idle, self._on_smaller_window = on_window, on_idle, on_smaller_window
        self._on_still, self._on_initial_pose = on_still, on_initial_pose
        self._keyframes: list[int] = []  # stamps of the pending ones
        self._stands = False
        self.status = mapper.status()  # at the newest window
        self._error = ""  # the mapper's newest error that was passed on
        self._wake = threading.Condition()
        self._requests: deque[tuple[Callable[[Mapper], Any], Future[Any]]] = deque()
        self._current: Future[Any] | None = None  # the request being processed
        self._config: MapperConfig | None = None  # for the next window
        self._running = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="fast3r_mapping", daemon=True)
        self._thread.start()

    def add_frame(self, frame: Frame) -> None:
        """Offer a frame to the mapper, which queues it or counts the reason for dropping it."""
        reason = self.mapper.add_frame(frame)
        still = reason == "no_motion"
        with self._wake:
            if not reason:
                self._keyframes.append(frame.stamp_ns)
            keyframes = self._keyframes or [frame.stamp_ns]
            self._stands = still and frame.stamp_ns - keyframes[-1] > STANDING_NS
            self._wake.notify()
        if still and frame.stamp_ns - keyframes[0] < AHEAD_NS:
            self._on_still(frame)

    def add_odometry(self, stamp_ns: int, odom_from_base: Float64) -> None:
        """Pass a metric pose to the mapper."""
        self.mapper.add_odometry(stamp_ns, odom_from_base)

    def set_initial_pose(self, pose: InitialPose) -> None:
        """Set the robot's pose in the mapper, between two windows."""

        def place(mapper: Mapper) -> None:
            x, y = pose.map_from_base[:2, 3]
            try:
                mapper.set_initial_pose(pose)
            except UserError as error:
                self._counters.problem("initialpose: the map is not in metres")
                self._logger.warning(f"initialpose: {error}")
            else:
                found = (
                    "the next images are searched there" if mapper.map.keyframes else "the map begins there"
                )
                self._logger.info(f"initialpose: the base is at x {x:.2f}, y {y:.2f} m; {found}")
                if mapper.map.keyframes:
                    self._on_initial_pose(pose)

        self.request(place)

    def set_running(self, running: bool) -> None:
        """Whether windows are processed; requests are always answered."""
        with self._wake:
            self._running = running
            self._wake.notify()

    def set_config(self, config: MapperConfig) -> None:
        """Use new parameters from the next window on."""
        with self._wake:
            self._config = config
            self._wake.notify()

    def request(self, function: Callable[[Mapper], Answer]) -> Future[Answer]:
        """Run `function(mapper)` between two windows; its result or exception is in the future.

        The future fails with `ShuttingDown` as soon as the thread is asked to end.
        """
        future: Future[Answer] = Future()
        with self._wake:
            if self._stopping:
                future.set_exception(ShuttingDown())
                return future
            self._requests.append((function, future))
            self._wake.notify()
        return future

    def process_pending(self) -> None:
        """On the mapping thread: process the pending keyframes, so that everything so far is in the map.

        Frames that arrive meanwhile wait for the next window; with a camera faster than the network this
        would never end.
        """
        self._process_window(self.mapper.finish)

    def request_stop(self) -> None:
        """Ask the thread to end after the current window; waiting requests fail at once."""
        with self._wake:
            self._stopping = True
            waiting = [future for _, future in self._requests]
            self._requests.clear()
            if self._current is not None:
                waiting.append(self._current)
            self._wake.notify()
        for future in waiting:
            _fail(future, ShuttingDown())

    def stop(self, timeout: float | None = None) -> bool:
        """End the thread after the window in progress; False when that takes more than `timeout` seconds."""
        self.request_stop()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping:
            with self._wake:
                if not (self._requests or self._config or self._due()):
                    self._wake.wait(IDLE_SECONDS)
                request = self._requests.popleft() if self._requests else None
                self._current = None if request is None else request[1]
            self._guard.run("parameters", self._use_config)
            if request is not None:
                self._answer(*request)
            self._guard.run("status", self._take_status)
            if self._stopping or self._requests:
                continue
            if self._due():
                self._process_window(self.mapper.process_window)
            else:
                self._guard.run("idle", lambda: self._on_idle(self.mapper))

    def _use_config(self) -> None:
        with self._wake:
            config, self._config = self._config, None
        if config is not None:
            self.mapper.set_config(config)

    def _due(self) -> bool:
        return self._running and self.mapper.window_ready(self._stands)

    def _take_status(self) -> None:
        self.status = self.mapper.status()
        if self.status.last_error != self._error:
            self._error = self.status.last_error
            if self._error:
                self._counters.error(self._error)

    def _answer(self, function: Callable[[Mapper], Any], future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = function(self.mapper)
        except BaseException as error:
            _fail(future, error)
        else:
            with contextlib.suppress(InvalidStateError):  # it already failed because the thread ends
                future.set_result(result)

    def _process_window(self, process: Callable[[], WindowResult | None]) -> None:
        """Run a window; a failure is counted, and the thread continues with the unchanged map."""
        start, taken = time.monotonic(), len(self._keyframes)
        try:
            result = process()
        except Exception as error:
            self._failed(error)
            return
        finally:
            self.pass_seconds = time.monotonic() - start
            with self._wake:
                del self._keyframes[:taken]
        if result is not None:
            if not result.accepted:
                self._counters.error(result.reason)
            self._guard.run("window", lambda: self._on_window(self.mapper, result))

    def _failed(self, error: Exception) -> None:
        self._counters.error(f"{type(error).__name__}: {error}")
        self._counters.problem("window failed")
        self._logger.error(f"a window failed and was skipped: {error!r}", throttle_duration_sec=1.0)
        logging.getLogger(__name__).debug("%s", traceback.format_exc())
        if _out_of_memory(error):
            self._guard.run("smaller window", self._shrink_window)

    def _shrink_window(self) -> None:
        """Continue with smaller windows after one ran out of memory."""
        free_gpu_memory()
        config = smaller_window(self.mapper.config)
        if config is not self.mapper.config:
            size = config.window.size
            text = f"out of memory: continuing with windows of {size} views (window.size {size})"
            self._logger.warning(text)
            self.mapper.set_config(config)
            self._on_smaller_window(size)


def _fail(future: Future[Any], error: BaseException) -> None:
    with contextlib.suppress(InvalidStateError):  # answered, cancelled or failed before
        future.set_exception(error)


def smaller_window(config: MapperConfig) -> MapperConfig:
    """The configuration with windows of three quarters of the views, never fewer than stride + overlap."""
    window = config.window
    size = max(window.stride + window.overlap, window.size * 3 // 4)
    return config if size == window.size else replace(config, window=replace(window, size=size))


def _out_of_memory(error: BaseException) -> bool:
    """PyTorch's error is recognised by name, so that this module does not import PyTorch."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"

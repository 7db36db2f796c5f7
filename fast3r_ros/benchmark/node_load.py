"""`benchmark node`: the cost of the ROS interface, measured over DDS between processes on this machine.

Run as a program, this module is the camera of the measurement: 1280x720 raw images, 30 per second by default.

    python -m fast3r_ros.benchmark.node_load SECONDS [reliable|best_effort] [RATE]

ROS is imported only where it is used, so that the other benchmarks run without it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.config import MapperConfig

WIDTH, HEIGHT, RATE = 1280, 720, 30.0
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
PROFILE = Path(__file__).resolve().parents[2] / "config" / "fastdds.xml"
CLOUD_POINTS = 1_000_000
FIRST_CLOUD_SECONDS = 60.0
CAMERA_MODULE = "fast3r_ros.benchmark.node_load"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options: measurements and their length."""
    parser.add_argument("--model", default="demo", help="the network of the node (default: demo)")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="length of each measurement (default: 10)"
    )
    parser.add_argument("--rate", type=float, default=RATE, help="images per second (default: %(default)s)")
    parser.add_argument("--dds", action="store_true", help="also measure the loss of images by DDS settings")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the document.  Raises UserError without ROS."""
    try:
        import rclpy  # noqa: F401
    except ImportError as error:
        raise UserError("benchmark node needs ROS 2: run it in the environment of `make demo`") from error
    import torch

    from fast3r_ros.benchmark.measure import machine

    domain = 100 + os.getpid() % 100
    document: dict[str, Any] = {
        "benchmark": "node",
        "machine": machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "packing": _packing(),
        "conversion": _conversion(),
        "node": _node(arguments.model, arguments.seconds, arguments.rate, domain),
    }
    if arguments.dds:
        document["delivery"] = [
            _delivery(reliability, profile, arguments.seconds, arguments.rate, domain)
            for reliability in ("reliable", "best_effort")
            for profile in (False, True)
        ]
    return document


def _timed(action: Callable[[], Any], repeats: int = 9) -> dict[str, float]:
    durations = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        durations.append(time.perf_counter() - start)
    return _spread(durations)


def _packing() -> dict[str, dict[str, float]]:
    """A cloud of a million points to a PointCloud2."""
    from fast3r_ros.mapping.data import Cloud
    from fast3r_ros.ros.messages import cloud_to_message

    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, (CLOUD_POINTS, 3), np.uint8)
    points = rng.random((CLOUD_POINTS, 3), np.float32)
    cloud = Cloud(points, colors, rng.random(CLOUD_POINTS, np.float32))
    return {"cloud of 1 M points": _timed(lambda: cloud_to_message(cloud, 0, "map"))}


def _conversion() -> dict[str, dict[str, float]]:
    """A 1280x720 image message to RGB."""
    from fast3r_ros.ros.image_messages import compressed_to_rgb, image_to_rgb, rgb_to_image, rgb_to_jpeg

    picture = moving_pictures()[0]
    raw, jpeg = rgb_to_image(picture, 0, "camera"), rgb_to_jpeg(picture, 0, "camera")
    bgr = rgb_to_image(picture, 0, "camera")
    bgr.encoding = "bgr8"
    return {
        "rgb8": _timed(lambda: image_to_rgb(raw)),
        "bgr8": _timed(lambda: image_to_rgb(bgr)),
        "jpeg": _timed(lambda: compressed_to_rgb(jpeg)),
    }


def _node(model: str, seconds: float, rate: float, domain: int) -> dict[str, Any]:
    """The mapping node with images of 1280x720: frames used and dropped, latency and cost."""
    import rclpy
    from sensor_msgs.msg import PointCloud2

    from fast3r_ros.msg import MappingStatus

    environment = _environment(domain, profile=True)
    words = ["--ros-args", "-p", f"model:={model}", "-p", "output.status_rate:=5.0"]
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    listener = rclpy.create_node("benchmark", context=context)
    newest: list[Any] = []
    listener.create_subscription(MappingStatus, "/fast3r_mapping/status", newest.append, 10)
    delays: list[float] = []

    def on_cloud(cloud: PointCloud2) -> None:
        delays.append(_age(cloud.header.stamp))

    listener.create_subscription(PointCloud2, "/fast3r_mapping/cloud", on_cloud, 10)
    executor = rclpy.executors.SingleThreadedExecutor(context=context)
    executor.add_node(listener)
    node = subprocess.Popen([sys.executable, "-m", "fast3r_ros.ros.mapping_node", *words], env=environment)
    try:
        limit = time.monotonic() + 120
        while not newest or newest[-1].state != MappingStatus.WAITING:
            executor.spin_once(timeout_sec=0.2)
            if node.poll() is not None or time.monotonic() > limit:
                raise UserError(f"the mapping node did not start with model {model!r}")
        before = _cpu_seconds(node.pid)
        start = time.monotonic()
        memory = [_memory_mb(node.pid)]
        with _camera(seconds, "reliable", rate, environment) as camera:
            while camera.poll() is None:
                executor.spin_once(timeout_sec=0.2)
                memory.append(_memory_mb(node.pid))
            sent = int((camera.communicate()[0] or "0").split()[0])
        busy = (_cpu_seconds(node.pid) - before) / (time.monotonic() - start)
        limit = time.monotonic() + FIRST_CLOUD_SECONDS
        # a slow machine may still be processing its first window
        while not delays and _begins_a_map(newest[-1], sent) and time.monotonic() < limit:
            executor.spin_once(timeout_sec=0.2)
    finally:
        node.terminate()
        node.wait(10)
        executor.shutdown()
        rclpy.shutdown(context=context)
    status = newest[-1]
    return {
        "model": model,
        "rate_hz": rate,
        "images_sent": sent,
        "images_received": status.frames_received,
        "keyframes": status.frames_used,
        "windows": status.windows,
        "drops": {drop.reason: drop.count for drop in status.drops},
        "callback_p99_ms": round(status.callback_p99 * 1e3, 3),
        "callback_max_ms": round(status.callback_max * 1e3, 3),
        # from the newest image's stamp to its cloud in another process
        "frame_to_cloud_s": _spread(delays),
        "stages_s": _stages([each for each in newest if each.windows]),
        "cpu_cores": round(busy, 2),
        # in fifths of the time: flat after the first, which allocates the network's working memory
        "memory_mb": [round(max(part)) for part in np.array_split(memory, 5) if len(part)],
    }


def _begins_a_map(status: Any, sent: int) -> bool:
    """Whether a first window has come or can come of the images that were sent."""
    window = MapperConfig().window
    possible = status.frames_waiting + max(0, sent - status.frames_received)
    return status.windows > 0 or possible >= window.stride + window.overlap


def _stages(statuses: Sequence[Any]) -> dict[str, dict[str, float]]:
    """Stage -> median and spread over the windows; a window in several statuses counts once."""
    windows = {each.windows: each for each in statuses}
    times: dict[str, list[float]] = {}
    for status in windows.values():
        for each in status.latencies:
            times.setdefault(each.stage, []).append(each.seconds)
    return {stage: _spread(values) for stage, values in times.items()}


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum of some times; empty without any."""
    if not seconds:
        return {}
    times = {"median_s": statistics.median(seconds), "fastest_s": min(seconds), "slowest_s": max(seconds)}
    return {**{name: round(value, 5) for name, value in times.items()}, "runs": len(seconds)}


def _age(stamp: Any) -> float:
    """Seconds since a stamp of this machine's clock."""
    return time.time() - stamp.sec - stamp.nanosec * 1e-9


def _delivery(reliability: str, profile: bool, seconds: float, rate: float, domain: int) -> dict[str, Any]:
    """Number of images received from another process, by reliability, with or without config/fastdds.xml."""
    import rclpy
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import Image

    policy = ReliabilityPolicy.RELIABLE if reliability == "reliable" else ReliabilityPolicy.BEST_EFFORT
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    listener = rclpy.create_node("benchmark", context=context)
    received: list[int] = []

    def on_image(image: Image) -> None:
        received.append(image.step)

    listener.create_subscription(Image, "image", on_image, QoSProfile(depth=5, reliability=policy))
    executor = rclpy.executors.SingleThreadedExecutor(context=context)
    executor.add_node(listener)
    with _camera(seconds, reliability, rate, _environment(domain, profile)) as camera:
        while camera.poll() is None:
            executor.spin_once(timeout_sec=0.1)
        sent = int((camera.communicate()[0] or "0").split()[0])
    executor.shutdown()
    rclpy.shutdown(context=context)
    return {"reliability": reliability, "profile": profile, "sent": sent, "received": len(received)}


def _camera(
    seconds: float, reliability: str, rate: float, environment: dict[str, str]
) -> subprocess.Popen[str]:
    """This module as a camera, in a separate process."""
    command = [sys.executable, "-m", CAMERA_MODULE, str(seconds), reliability, str(rate)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def _environment(domain: int, profile: bool) -> dict[str, str]:
    values = {name: value for name, value in os.environ.items() if name not in PROFILE_VARIABLES}
    values.update(ROS_DOMAIN_ID=str(domain), ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST")
    if profile:
        values.update(dict.fromkeys(PROFILE_VARIABLES, str(PROFILE)))
    return values


def _cpu_seconds(pid: int) -> float:
    """Processor time of a process so far, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mb(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def moving_pictures(count: int = 20) -> list[np.ndarray]:
    """A coarse pattern that moves by 16 pixels per image, (720, 1280, 3) uint8 each."""
    coarse = np.random.default_rng(0).integers(0, 256, (45, 80 + count, 3), np.uint8)
    wide = np.kron(coarse, np.ones((16, 16, 1), np.uint8))
    return [np.ascontiguousarray(wide[:HEIGHT, 16 * i : 16 * i + WIDTH]) for i in range(count)]


def camera(seconds: float, reliability: str = "reliable", rate: float = RATE) -> None:
    """Publish images for some seconds after the first subscriber has come; prints their number."""
    import rclpy
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import Image

    from fast3r_ros.ros.image_messages import rgb_to_image

    policy = ReliabilityPolicy.RELIABLE if reliability == "reliable" else ReliabilityPolicy.BEST_EFFORT
    rclpy.init(args=[])
    node = rclpy.create_node("benchmark_camera")
    publisher = node.create_publisher(Image, "image", QoSProfile(depth=5, reliability=policy))
    messages = [rgb_to_image(picture, 0, "camera_optical_frame") for picture in moving_pictures()]
    while publisher.get_subscription_count() == 0:
        time.sleep(0.05)
    start, count = time.monotonic(), 0
    while time.monotonic() < start + seconds:
        message = messages[count % len(messages)]
        message.header.stamp = node.get_clock().now().to_msg()
        publisher.publish(message)
        count += 1
        time.sleep(max(0.0, start + count / rate - time.monotonic()))
    time.sleep(0.5)  # for images still in transport
    print(f"{count} images in {time.monotonic() - start:.1f} s", flush=True)
    rclpy.shutdown()


if __name__ == "__main__":
    given = dict(zip(("seconds", "reliability", "rate"), sys.argv[1:], strict=False))
    camera(float(given["seconds"]), given.get("reliability", "reliable"), float(given.get("rate", RATE)))

"""Random events and faults of a node; nothing may be lost or grow.

FAST3R_CAMPAIGN_SECONDS (10) is the length of the mapping campaign, FAST3R_KILLS (2) the number of
nodes killed, FAST3R_CAMPAIGN_SEED (1) what is random.  `pytest -s` prints the figures, see
docs/reliability.md.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

from camera import Camera, faulty_node, ready_listener
from fast3r_ros.msg import MappingStatus, WindowEstimate
from fast3r_ros.srv import LoadMap, SaveMap
from faulty_node import FAULTS, switch
from geometry_msgs.msg import TransformStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from nav_msgs.msg import OccupancyGrid, Odometry
from nav_msgs.msg import Path as PathMessage
from patience import HANG_SECONDS, wait_until
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from ros_fuzz import random_camera_info, random_odometry
from ros_harness import NODE, Listener, Program, domain, running
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_srvs.srv import SetBool, Trigger
from tf2_msgs.msg import TFMessage

from fast3r_ros.ros.node_config import NodeConfig
from fast3r_ros.ros.parameters import declared_fields

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("FAST3R_CAMPAIGN_SECONDS", "10"))
KILLS = int(os.environ.get("FAST3R_KILLS", "2"))
SEED = int(os.environ.get("FAST3R_CAMPAIGN_SEED", "1"))
STATUS = f"{NODE}/status"
SAMPLES = 12  # of memory, threads and descriptors in a campaign
LONG = 300.0  # seconds after which growth is tested, when caches are filled
OUTPUTS: tuple[tuple[Any, str], ...] = (
    (PointCloud2, "cloud"),
    (PointCloud2, "map_cloud"),
    (Image, "confidence"),
    (Image, "depth/image_rect"),
    (Odometry, "odometry"),
    (PathMessage, "path"),
    (WindowEstimate, "window"),
    (OccupancyGrid, "grid"),
)
# would slow the campaign down; the memory that a fault takes is given back by `recovered`
KEPT = {"output.status_rate", "window.size"}


class Campaign:
    """The node, the camera, and the possible events."""

    def __init__(self, folder: Path) -> None:
        self.random = random.Random(SEED)
        self._numbers = np.random.default_rng(SEED)
        self._file = folder / "fault"
        domain_id = domain(51)
        self.node: Program = faulty_node(domain_id, self._file, map_directory=folder)
        self.listener: Listener = ready_listener(domain_id)
        self.done: Counter[str] = Counter()
        self.broken: list[MappingStatus] = []  # inconsistent status messages
        self.most_waiting = 0
        self.listener.node.create_subscription(MappingStatus, STATUS, self._check, 50)
        self._camera = Camera(self.listener)
        self._sending = threading.Event()
        self._visitors: list[Any] = []
        self._clients: dict[str, Any] = {}
        self._others: list[Camera] = []
        node = self.listener.node
        self._info = node.create_publisher(CameraInfo, "/camera_info", 10)
        self._odometry = node.create_publisher(Odometry, "/odometry", 10)
        self._transforms = node.create_publisher(TFMessage, "/tf", 10)
        self._thread = threading.Thread(target=self._send)
        self._sending.set()
        self._thread.start()
        self.actions: tuple[Callable[[], None], ...] = (
            self.fault,
            self.fault,
            self.parameters,
            self.service,
            self.service,
            self.visitor,
            self.visitor,
            self.second_camera,
            self.bad_messages,
            self.transition,
        )

    def _check(self, m: MappingStatus) -> None:
        self.done["status messages"] += 1
        self.most_waiting = max(self.most_waiting, m.frames_waiting)
        if m.frames_received != m.frames_used + m.frames_waiting + m.frames_dropped:
            self.broken.append(m)

    def _send(self) -> None:
        while self._sending.is_set():
            self._camera.stream(1, 0.03)

    def step(self) -> None:
        """Run one random event."""
        action = self.random.choice(self.actions)
        action()
        self.done[action.__name__] += 1
        assert self.node.process.poll() is None, "the node has ended"
        assert not self.broken, self.broken[0]

    def fault(self) -> None:
        switch(self._file, self.random.choice(("", "", "slow:0.5", *FAULTS)))

    def parameters(self) -> None:
        """Twenty changes at once, half with valid values."""
        known = [(n, f, v) for n, f, v in declared_fields(NodeConfig()) if n not in KEPT]
        changes = []
        for name, item, value in self.random.choices(known, k=20):
            bounds = item.metadata["range"]
            changed: Any = self.random.choice((value, float("nan"), -1, "", True, 10**9))
            if bounds and self.random.random() < 0.5:
                changed = type(value)(self.random.uniform(*bounds))
            if value != () and changed is not None:
                changes.append(Parameter(name, value=changed).to_parameter_msg())
        self.call(SetParameters, "set_parameters", parameters=changes)

    def service(self) -> None:
        kind, name, fields = self.random.choice(
            (
                (Trigger, "reset", {}),
                (SetBool, "pause", {"data": True}),
                (SetBool, "pause", {"data": False}),
                (SaveMap, "save_map", {"name": self.random.choice("ab"), "overwrite": True}),
                (SaveMap, "save_map", {"name": "cloud.ply"}),
                (LoadMap, "load_map", {"name": self.random.choice("ab")}),
                (LoadMap, "load_map", {"name": "../elsewhere"}),
            )
        )
        if self.random.random() < 0.2:  # a client that does not wait for the answer
            client = self.listener.node.create_client(kind, f"{NODE}/{name}")
            client.call_async(kind.Request(**fields))
            self.listener.node.destroy_client(client)
        else:
            self.call(kind, name, **fields)

    def visitor(self) -> None:
        """Subscribe to an output, or unsubscribe."""
        if self._visitors and self.random.random() < 0.5:
            self.listener.node.destroy_subscription(self._visitors.pop(0))
        else:
            kind, name = self.random.choice(OUTPUTS)
            self._visitors.append(
                self.listener.node.create_subscription(kind, f"{NODE}/{name}", lambda _: None, 1)
            )

    def second_camera(self) -> None:
        """Another publisher on the image topic starts, sends, or stops."""
        if self._others and self.random.random() < 0.5:
            self._others.pop().close()
        elif len(self._others) < 3:
            self._others.append(Camera(self.listener))
        for camera in self._others:
            camera.stream(2, 0.0)

    def bad_messages(self) -> None:
        for _ in range(10):
            self._info.publish(random_camera_info(self._numbers))
            self._odometry.publish(random_odometry(self._numbers))
            transform = TransformStamped(child_frame_id=f"frame {self.random.randrange(20_000)}")
            transform.header.frame_id = f"frame {self.random.randrange(20_000)}"
            transform.transform.rotation.w = self.random.choice((1.0, 0.0, float("nan")))
            self._transforms.publish(TFMessage(transforms=[transform] * 20))

    def transition(self) -> None:
        """Down and up again, by a manager; from any state, sometimes while a service is running."""
        if self.random.random() < 0.5:
            client = self.listener.node.create_client(Trigger, f"{NODE}/reset")
            client.call_async(Trigger.Request())
            self.listener.node.destroy_client(client)
        self.change(Transition.TRANSITION_DEACTIVATE)
        if self.random.random() < 0.5:
            self.change(Transition.TRANSITION_CLEANUP)
            self.change(Transition.TRANSITION_CONFIGURE)
        self.change(Transition.TRANSITION_ACTIVATE)

    def change(self, transition: int) -> None:
        answer = self.call(ChangeState, "change_state", transition=Transition(id=transition))
        assert answer.success, f"transition {transition}"

    def call(self, kind: Any, name: str, /, **fields: Any) -> Any:
        """A service is answered, with success or not.

        By a client that stays: the middleware drops the answer to one that the node has not discovered yet.
        """
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = self.listener.node.create_client(kind, f"{NODE}/{name}")
            wait_until(client.service_is_ready, f"the service {name}")
            for _ in range(10):  # until the node has discovered it
                self.listener.later(STATUS)
        answer = client.call_async(kind.Request(**fields))
        wait_until(answer.done, f"an answer from {name}")
        return answer.result()

    def recovered(self) -> None:
        """Restore the initial state, and wait until the node maps."""
        switch(self._file, "")
        for visitor in self._visitors:
            self.listener.node.destroy_subscription(visitor)
        for camera in self._others:
            camera.close()
        self._visitors, self._others = [], []
        changes = [
            Parameter(name, value=value).to_parameter_msg()
            for name, item, value in declared_fields(NodeConfig())
            if item.metadata["dynamic"] and name not in KEPT
        ]
        changes += [
            Parameter(name, value=value).to_parameter_msg()
            for name, value in (
                ("keyframes.motion", 0.0),
                ("keyframes.sharpness", 0.0),
                ("window.size", 6),
            )
        ]
        self.call(SetParameters, "set_parameters", parameters=changes)
        assert self.call(SetBool, "pause", data=False).success
        # a service without a waiting client may be running
        wait_until(lambda: self.call(Trigger, "reset").success, "an empty map")
        self.listener.wait_for(STATUS, lambda m: m.windows > m.windows_rejected + 2)
        wait_until(lambda: self.call(Trigger, "reset").success, "an empty map")

    def close(self) -> None:
        self._sending.clear()
        self._thread.join()

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.node.pid}/fd"))


def test_a_campaign_leaves_the_node_as_it_was(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path)
    with running(campaign.node):
        try:
            samples = run(campaign)
        finally:
            campaign.close()
        assert campaign.node.stop() == 0
        campaign.listener.close()
    print(f"\n{SECONDS:.0f} s, seed {SEED}: {dict(campaign.done)}")
    print(f"at most {campaign.most_waiting} frames waited")
    for memory, threads, descriptors in samples:
        print(f"{memory:.0f} MB, {threads} threads, {descriptors} descriptors")
    assert campaign.done["status messages"] > SECONDS
    assert campaign.most_waiting <= 100
    settled, last = samples[min(2, len(samples) - 1)], samples[-1]
    assert last[1] <= settled[1] + 2
    assert last[2] <= settled[2] + 8
    if SECONDS >= LONG:
        assert last[0] - samples[len(samples) // 3][0] < 20


def run(campaign: Campaign) -> list[tuple[float, int, int]]:
    """The campaign; (MB, threads, descriptors) of the node between its parts, when it has recovered."""
    samples = []
    start = time.monotonic()
    for part in range(SAMPLES if SECONDS >= LONG else 3):
        end = start + SECONDS * (part + 1) / (SAMPLES if SECONDS >= LONG else 3)
        while time.monotonic() < end:
            campaign.step()
        campaign.recovered()
        node = campaign.node
        samples.append((node.memory_mb(), node.threads(), campaign.descriptors()))
    return samples


def answered(listener: Listener, kind: Any, service: str, name: str, **more: Any) -> Any:
    """The answer of a successful service call; repeated while the node is busy."""
    answer = listener.call(kind, f"{NODE}/{service}", name=name, **more)
    while answer.message.startswith("busy"):
        answer = listener.call(kind, f"{NODE}/{service}", name=name, **more)
    assert answer.success, answer.message
    return answer


def test_killed_nodes_lose_no_map_that_was_acknowledged(tmp_path: Path) -> None:
    """kill -9 at a random moment of saving, loading and mapping; the next node loads the acknowledged map."""
    chance = random.Random(SEED)
    kept: dict[str, set[int]] = {}  # name -> possible keyframes: acknowledged, or requested since
    moments: Counter[str] = Counter()
    for number in range(KILLS + 1):
        domain_id = domain(60 + number % 4)
        node = faulty_node(domain_id, tmp_path / "fault", map_directory=tmp_path)
        with running(node):
            listener = ready_listener(domain_id)
            for name, keyframes in kept.items():
                answer = answered(listener, LoadMap, "load_map", name)
                assert answer.keyframes in keyframes or len(keyframes) > 1, (name, keyframes)
                kept[name] = {answer.keyframes}
            if number == KILLS:
                listener.close()
                break
            camera = Camera(listener)
            camera.connect()
            camera.deliver(chance.randrange(8, 30))
            listener.wait_for(STATUS, lambda message: message.map_points > 0)
            for name in ("a", f"map{number % 5}"):
                answered(listener, SaveMap, "save_map", name, overwrite=True)
                kept[name] = {answered(listener, LoadMap, "load_map", name).keyframes}
            camera.deliver(chance.randrange(2, 10))
            moment = chance.choice(("save", "save", "load", "mapping"))
            moments[moment] += 1
            if moment == "save":
                kept["a"].add(-1)  # the old or the new one, whole
                client = listener.node.create_client(SaveMap, f"{NODE}/save_map")
                assert client.wait_for_service(HANG_SECONDS)
                client.call_async(SaveMap.Request(name="a", overwrite=True))
            elif moment == "load":
                client = listener.node.create_client(LoadMap, f"{NODE}/load_map")
                assert client.wait_for_service(HANG_SECONDS)
                client.call_async(LoadMap.Request(name="a"))
            else:
                camera.stream(5, 0.0)
            time.sleep(chance.uniform(0.0, 0.15))
            node.kill()
            node.wait()
            listener.close()
    print(f"\n{KILLS} kills: {dict(moments)}; maps that loaded after the last: {kept}")
    leftovers = [path.name for path in tmp_path.iterdir() if path.name not in {*kept, "fault", "fault.part"}]
    print(f"left in the directory: {leftovers}")

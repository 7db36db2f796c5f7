"""Images wait for later transforms, and the cameras' poses on the robot are reported."""

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

from fast3r_ros.geometry.rigid import BODY_FROM_OPTICAL, rigid_matrix
from fast3r_ros.geometry.rotation import matrix_from_vector
from fast3r_ros.mapping.data import Frame
from fast3r_ros.ros import waiting
from fast3r_ros.ros.node_config import InputConfig, NodeConfig
from fast3r_ros.ros.pose_messages import stamped_transform
from fast3r_ros.ros.transforms import OwnLookup
from fast3r_ros.ros.waiting import Mounts, WaitingImages, looks_like_body_frame

MS = 1_000_000
BY_TF = NodeConfig(input=InputConfig(odometry="tf"))
CAMERA = "camera_optical_frame"


def turned(degrees: float) -> np.ndarray:
    return rigid_matrix(matrix_from_vector(np.array([0, 0, np.deg2rad(degrees)])), np.zeros(3))


class Robot:
    """TF and images, on a clock controlled by the test."""

    def __init__(self) -> None:
        self.lookup = OwnLookup()
        self.time = 0.0
        self.masks_to_come: set[int] = set()
        self.waiting = WaitingImages(
            self.lookup, lambda: self.time, lambda frame: frame.stamp_ns in self.masks_to_come
        )

    def mount(self, base_from_camera: np.ndarray, stamp_ms: int = 0, static: bool = True) -> None:
        transform = stamped_transform(base_from_camera, "base_link", CAMERA, stamp_ms * MS)
        self.lookup.insert(transform, static)

    def odometry(self, stamp_ms: int, x: float) -> None:
        pose = rigid_matrix(np.eye(3), [x, 0, 0])
        self.lookup.insert(stamped_transform(pose, "odom", "base_link", stamp_ms * MS), False)

    def image(self, stamp_ms: int, size: int = 8) -> None:
        picture = np.zeros((size, size, 3), np.uint8)
        self.waiting.add(Frame(stamp_ms * MS, CAMERA, picture), self.time)

    def released(self, config: NodeConfig = BY_TF) -> list[int]:
        return [ready.frame.stamp_ns // MS for ready in self.waiting.release(config)]


def test_an_image_waits_for_odometry_that_comes_later() -> None:
    robot = Robot()
    robot.mount(BODY_FROM_OPTICAL)
    robot.odometry(0, 0.0)
    robot.image(100)
    robot.image(200)
    assert robot.released() == []
    robot.odometry(150, 3.0)
    robot.time = 0.3
    (ready,) = robot.waiting.release(BY_TF)
    assert (ready.frame.stamp_ns, ready.arrived, ready.missing) == (100 * MS, 0.0, ())
    assert ready.odom_from_base[0, 3] == pytest.approx(2.0)
    assert np.array_equal(ready.frame.base_from_camera, BODY_FROM_OPTICAL)
    assert len(robot.waiting) == 1
    assert robot.waiting.seconds_left() == pytest.approx(waiting.WAIT_SECONDS - 0.3)


def test_an_image_continues_without_missing_transforms_which_are_reported() -> None:
    robot = Robot()
    robot.odometry(0, 0.0)
    robot.image(100)
    assert robot.released() == []
    robot.time = waiting.WAIT_SECONDS
    (ready,) = robot.waiting.release(BY_TF)
    assert ready.odom_from_base is None
    assert ready.frame.base_from_camera is None
    camera, odometry = ready.missing
    assert "base_link and camera_optical_frame are not connected" in camera
    assert odometry.startswith("odom -> base_link: the newest transform odom -> base_link is 0.100 s off")


def test_an_image_waits_for_its_mask_and_continues_without_one() -> None:
    robot = Robot()
    robot.masks_to_come = {100 * MS, 200 * MS}
    robot.image(100)
    robot.image(200)
    assert robot.released(NodeConfig()) == []
    robot.masks_to_come.discard(100 * MS)
    assert robot.released(NodeConfig()) == [100]
    robot.time = waiting.WAIT_SECONDS
    assert robot.released(NodeConfig()) == [200]
    for number in range(300, 300 + waiting.PATIENCE):
        robot.masks_to_come.add(number * MS)
        robot.image(number)
    robot.time += waiting.WAIT_SECONDS
    assert len(robot.released(NodeConfig())) == waiting.PATIENCE
    robot.masks_to_come.add(900 * MS)
    robot.image(900)
    assert robot.released(NodeConfig()) == [900]  # no waiting for a silent publisher


def test_odometry_after_its_image_was_released_is_still_passed_on() -> None:
    robot = Robot()
    robot.mount(BODY_FROM_OPTICAL)
    robot.odometry(0, 0.0)
    robot.image(100)
    robot.time = 2.0
    assert robot.released() == [100]
    assert robot.waiting.late_odometry(BY_TF) == []
    robot.odometry(200, 2.0)
    ((stamp_ns, pose),) = robot.waiting.late_odometry(BY_TF)
    assert stamp_ns == 100 * MS
    assert pose[0, 3] == pytest.approx(1.0)
    assert robot.waiting.late_odometry(BY_TF) == []


def test_a_camera_that_is_alone_on_tf_is_not_waited_for_unless_the_base_is_needed() -> None:
    robot = Robot()
    robot.image(100)
    assert robot.released(NodeConfig()) == [100]
    robot.image(200)
    assert robot.released(BY_TF) == []
    robot.mount(BODY_FROM_OPTICAL)
    robot.odometry(100, 0.0)
    robot.odometry(300, 0.0)
    assert robot.released(BY_TF) == [200]


def test_a_missing_transform_delays_nothing_until_it_arrives_again() -> None:
    robot = Robot()
    robot.mount(BODY_FROM_OPTICAL)
    for number in range(waiting.PATIENCE):
        robot.image(100 * number)
    robot.time = 2.0
    assert len(robot.released()) == waiting.PATIENCE
    robot.image(5000)
    assert robot.released() == [5000]
    robot.odometry(4900, 0.0)
    robot.odometry(5100, 0.0)
    assert [stamp_ns // MS for stamp_ns, _ in robot.waiting.late_odometry(BY_TF)] == [5000]
    robot.image(5200)
    assert robot.released() == []
    robot.odometry(5300, 0.0)
    assert robot.released() == [5200]


def test_a_panning_camera_is_looked_up_at_the_stamp_of_each_image() -> None:
    robot = Robot()
    config = NodeConfig()
    robot.mount(turned(0) @ BODY_FROM_OPTICAL, 0, static=False)
    robot.image(50)
    assert robot.released(config) == []
    robot.mount(turned(20) @ BODY_FROM_OPTICAL, 100, static=False)
    (ready,) = robot.waiting.release(config)
    assert ready.frame.base_from_camera == pytest.approx(turned(10) @ BODY_FROM_OPTICAL)


def test_images_that_wait_are_bounded_and_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MOST_BYTES", 5 * 8 * 8 * 3)
    robot = Robot()
    for number in range(8):
        robot.image(number)
    assert robot.released() == [0, 1, 2]
    assert robot.waiting.clear() == 5
    assert robot.waiting.seconds_left() == float("inf")


def test_a_camera_off_the_robot_and_a_non_optical_frame_are_reported() -> None:
    lines: list[str] = []

    class Log:
        def info(self, text: str) -> None:
            lines.append(text)

        warning = info

    mounts = Mounts(Log(), "base_link")
    frame = Frame(0, "camera_link", np.zeros((2, 2, 3), np.uint8))
    mounts.seen(frame)
    mounts.seen(frame)
    assert "ahead, level" in mounts.assumed["camera_link"]
    assert len(lines) == 1
    tilted = rigid_matrix(matrix_from_vector(np.array([0, np.deg2rad(33), 0.5])), [0.1, 0.0, 1.2])
    mounts.seen(Frame(1, "camera_link", frame.image, base_from_camera=tilted))
    assert not mounts.assumed
    assert "optical" in mounts.wrong["camera_link"]
    assert "x 0.10, y 0.00, z 1.20" in lines[1]
    mounts.seen(Frame(2, CAMERA, frame.image, base_from_camera=tilted @ BODY_FROM_OPTICAL))
    assert CAMERA not in mounts.wrong


@pytest.mark.parametrize("pitch", [-50, 0, 33, 50])
@pytest.mark.parametrize("yaw", [0, 90, 200])
def test_body_frames_are_distinguished_from_optical_ones(pitch: float, yaw: float) -> None:
    rotation = matrix_from_vector(np.array([0, 0, np.deg2rad(yaw)])) @ matrix_from_vector(
        np.array([0, np.deg2rad(pitch), 0])
    )
    body = rigid_matrix(rotation, np.zeros(3))
    assert looks_like_body_frame(body)
    assert not looks_like_body_frame(body @ BODY_FROM_OPTICAL)

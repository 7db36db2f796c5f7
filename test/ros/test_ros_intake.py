"""From messages of one camera to frames; invalid ones are rejected with a countable reason."""

import array
import io
import resource
import time
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

from PIL import Image as PillowImage
from ros_encoders import known_picture
from ros_fuzz import random_camera_info, random_images
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from fast3r_ros.errors import UserError
from fast3r_ros.io.pixels import BadImage
from fast3r_ros.ros.camera import Intake, Rejected, TimeWentBack
from fast3r_ros.ros.image_messages import rgb_to_image
from fast3r_ros.ros.subscriptions import QUEUE_LENGTH, Mailbox

NS = 1_000_000_000
K = [50.0, 0.0, 31.5, 0.0, 50.0, 23.5, 0.0, 0.0, 1.0]


def image(stamp_s: float, size: tuple[int, int] = (64, 48), frame: str = "camera") -> Image:
    return rgb_to_image(known_picture(size[1], size[0]), round(stamp_s * NS), frame)


def info(**changes) -> CameraInfo:
    values = {"width": 64, "height": 48, "k": K, "d": [0.0] * 5, "distortion_model": "plumb_bob"}
    return CameraInfo(**{**values, **changes})


def reason_of(intake: Intake, message: Image | CompressedImage) -> str:
    with pytest.raises((Rejected, BadImage)) as caught:
        intake.frame(message, jump_back=1.0)
    return caught.value.reason


def test_a_frame_has_the_stamp_the_frame_id_and_the_picture() -> None:
    frame = Intake("").frame(image(3.5), 1.0)
    assert (frame.stamp_ns, frame.camera, frame.intrinsics) == (3_500_000_000, "camera", None)
    assert np.array_equal(frame.image, known_picture())
    assert Intake("", "other").frame(image(3.5), 1.0).camera == "other"
    assert Intake("front").frame(image(3.5, frame=""), 1.0).camera == "front"


def test_intrinsics_have_our_pixel_centres() -> None:
    intake = Intake("")
    intake.calibration(info())
    intrinsics = intake.frame(image(1.0), 1.0).intrinsics
    assert intrinsics is not None
    # ROS has the centre of the upper left pixel at (0, 0), we at (0.5, 0.5)
    assert np.allclose(intrinsics, [[50, 0, 32], [0, 50, 24], [0, 0, 1]])


@pytest.mark.parametrize(
    "changes",
    [
        {"k": [*K[:8], 0.0]},
        {"k": [*K[:8], 2.0]},
        {"k": [*K[:6], 1.0, 0.0, 1.0]},
        {"k": [*K[:3], 5.0, *K[4:]]},
        {"k": [50.0, 0.0, 1e9, *K[3:]]},
        {"k": [50.0, 0.0, -500.0, *K[3:]]},
        {"d": [1e10, 0.0, 0.0, 0.0, 0.0]},
        {"d": [0.0, 0.0, 1e3, 0.0, 0.0]},
        {"d": [1e300, -1e300, 0.0, 0.0, 0.0]},
        {"d": [0.1] * 15},
    ],
)
def test_a_calibration_that_gives_black_images_is_rejected(changes: dict) -> None:
    """The previous calibration stays, and so do the images."""
    intake = Intake("")
    intake.calibration(info(d=[-0.3, 0.1, 0.0, 0.0, 0.0]))
    before = intake.frame(image(1.0), 1.0)
    with pytest.raises(UserError):
        intake.calibration(info(**changes))
    after = intake.frame(image(2.0), 1.0)
    assert np.array_equal(after.image, before.image)
    assert np.array_equal(after.intrinsics, before.intrinsics)


def test_calibrations_of_huge_images_cost_nothing_until_an_image_arrives() -> None:
    """Of 81 megapixels each, all different: the tables for one of them take half a gigabyte and seconds."""
    intake = Intake("")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.thread_time()
    for i in range(60):
        k = [5000.0 + i, 0.0, 4500.0, 0.0, 5000.0, 4500.0, 0.0, 0.0, 1.0]
        intake.calibration(info(width=9000, height=9000, k=k, d=[-0.1, 0.01, 0.0, 0.0, 0.0]))
    assert reason_of(intake, image(1.0)) == "camera_info of another size"
    assert time.thread_time() - start < 1.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_a_small_file_of_a_huge_image_is_rejected_before_decompression() -> None:
    """100 megapixels of one bit fit into 12 kB; in memory they are 300 MB."""
    file = io.BytesIO()
    PillowImage.new("1", (9999, 9999)).save(file, "PNG")
    message = CompressedImage(data=array.array("B", file.getvalue()))
    message.header.stamp.sec = 2
    assert len(message.data) < 50_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert reason_of(Intake(""), message) == "image too large"
    known = Intake("")
    known.frame(image(1.0, frame="camera"), 1.0)
    message.header.frame_id = "camera"
    file = io.BytesIO()
    PillowImage.new("RGB", (1500, 1500)).save(file, "PNG")
    message.data = array.array("B", file.getvalue())
    assert reason_of(known, message) == "size changed"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_distortion_is_taken_out() -> None:
    intake = Intake("")
    intake.calibration(info(d=[-0.3, 0.1, 0.0, 0.0, 0.0]))
    frame = intake.frame(image(1.0), 1.0)
    assert not np.array_equal(frame.image, known_picture())
    assert frame.intrinsics is not None
    assert frame.intrinsics[0, 0] != 50.0


def test_depth_is_rectified_as_its_picture_is() -> None:
    intake = Intake("")
    depth = np.tile(np.where(np.arange(64) < 20, 1.0, 3.0).astype(np.float32), (48, 1))
    assert np.array_equal(intake.depth(depth), depth)
    intake.calibration(info(d=[-0.3, 0.1, 0.0, 0.0, 0.0]))
    step = np.repeat(np.where(depth < 2, 50, 200)[..., None], 3, axis=-1).astype(np.uint8)
    picture = intake.frame(rgb_to_image(step, NS, "camera"), 1.0).image[..., 0]
    rectified = intake.depth(depth)
    assert set(np.unique(rectified)) <= {0.0, 1.0, 3.0}  # 0: not measured; no values in between
    assert not np.array_equal(rectified, depth)
    clear = (picture == 50) | (picture == 200)
    assert np.array_equal(rectified[clear] < 2, picture[clear] == 50)


def test_unusable_calibrations_are_rejected_and_the_previous_one_stays() -> None:
    intake = Intake("")
    intake.calibration(info())
    for bad in (
        info(k=[float("nan"), *K[1:]]),
        info(k=[-50.0, *K[1:]]),
        info(d=[float("nan")] * 5),
        info(width=0),
        info(distortion_model="wobbly", d=[0.1] * 5),
    ):
        with pytest.raises(UserError):
            intake.calibration(bad)
    assert intake.calibrated
    assert intake.frame(image(1.0), 1.0).intrinsics[0, 0] == 50.0
    uncalibrated = Intake("")
    uncalibrated.calibration(info(k=[0.0] * 9))  # "not calibrated" in ROS
    assert not uncalibrated.calibrated


def test_a_calibration_of_another_size_is_reported() -> None:
    intake = Intake("")
    intake.calibration(info(width=640, height=360))  # of another part of the image
    assert reason_of(intake, image(1.0)) == "camera_info of another size"


def test_a_calibration_of_the_same_picture_in_another_size_is_scaled() -> None:
    intake = Intake("")
    k = [500.0, 0.0, 319.5, 0.0, 500.0, 239.5, 0.0, 0.0, 1.0]
    intake.calibration(info(width=640, height=480, k=k))
    intrinsics = intake.frame(image(1.0), 1.0).intrinsics
    assert intrinsics is not None
    assert np.allclose(intrinsics, [[50, 0, 32], [0, 50, 24], [0, 0, 1]])


def test_changes_within_a_stream_are_rejected_until_restart() -> None:
    intake = Intake("")
    intake.frame(image(1.0), 1.0)
    assert reason_of(intake, image(2.0, size=(32, 48))) == "size changed"
    assert reason_of(intake, image(2.0, frame="other")) == "frame id changed"
    assert reason_of(intake, image(1.0)) == "stamp repeated"
    assert reason_of(intake, image(0.5)) == "stamp went back"
    intake.frame(image(2.0), 1.0)
    with pytest.raises(TimeWentBack):
        intake.frame(image(0.2), 1.0)
    intake.restart()
    assert intake.frame(image(0.2, size=(32, 48), frame="other"), 1.0).camera == "other"


def test_random_calibrations_are_rejected_or_plausible() -> None:
    """Half of them nearly right: OpenCV then ends in an exception, or in a matrix of nonsense."""
    rng = np.random.default_rng(3)
    outcomes: Counter[str] = Counter()
    for index in range(2000):
        message = random_camera_info(rng)
        if index % 2:
            message.k = [float(rng.normal(200, 100)), 0, 160, 0, 200, 120, 0, 0, 1]
            message.d = rng.choice([0.0, 1e-3, 1.0, -1.0, 50.0, 1e300], len(message.d)).tolist()
        intake = Intake("")
        try:
            intake.calibration(message)
        except UserError:
            outcomes["refused"] += 1
        if intake.calibrated:
            outcomes["accepted"] += 1
            picture = rgb_to_image(known_picture(message.height, message.width), NS, "camera")
            intrinsics = intake.frame(picture, 1.0).intrinsics
            assert intrinsics is not None
            assert np.isfinite(intrinsics).all()
            assert (intrinsics[[0, 1], [0, 1]] > 1).all()
    assert min(outcomes["refused"], outcomes["accepted"]) > 20


def test_random_messages_do_no_harm() -> None:
    intake = Intake("")
    intake.frame(image(5.0, frame="camera_optical_frame"), 1.0)
    reasons: Counter[str] = Counter()
    for message in random_images(20_000, "both", seed=1):
        try:
            frame = intake.frame(message, jump_back=1e12)
        except (Rejected, BadImage) as error:
            reasons[error.reason] += 1
        else:
            reasons["accepted"] += 1
            assert frame.image.shape == (48, 64, 3)
    assert sum(reasons.values()) == 20_000
    assert reasons["accepted"] == 0  # none has the size of the first image
    assert {"truncated data", "empty image", "unknown encoding", "undecodable image"} <= set(reasons)
    assert np.array_equal(intake.frame(image(6.0, frame="camera_optical_frame"), 1.0).image, known_picture())


def test_the_mailbox_keeps_the_newest_image_of_each_camera() -> None:
    box = Mailbox()
    assert [box.put_image("a", 1), box.put_image("b", 2), box.put_image("a", 3)] == [False, False, True]
    box.put(print, "small")
    small, image_of = box.take(0.0)
    assert small == [(print, "small")]
    assert image_of == ("b", 2)  # a's newer image went to the end of the queue
    assert box.take(0.0) == ([], ("a", 3))
    assert box.take(0.0) == ([], None)
    box.put_image("a", 4)
    assert box.clear() == 1


def test_a_flood_of_one_kind_takes_no_room_from_another() -> None:
    """A latched transform is sent only once; 2000 other messages must not displace it."""
    box, taken = Mailbox(), list[int]()
    assert not box.put(taken.append, -1, "tf_static")
    lost = sum(box.put(taken.append, number, "tf") for number in range(2 * QUEUE_LENGTH))
    assert not box.put(taken.append, -2, "odometry")
    assert lost == QUEUE_LENGTH
    for handler, message in box.take(0.0)[0]:
        handler(message)
    assert taken == [-1, *range(QUEUE_LENGTH, 2 * QUEUE_LENGTH), -2]
    assert box.take(0.0) == ([], None)

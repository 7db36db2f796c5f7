"""ROS's own Python libraries and our equivalents agree, wherever both are installed.

What is not installed is skipped and named; the equivalents have tests of their own against first principles.
"""

import array
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("rclpy", reason="ROS is not installed here")

from ros_encoders import encode, known_picture
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

from fast3r_ros.mapping.data import Cloud
from fast3r_ros.ros.image_messages import _decode, image_to_rgb
from fast3r_ros.ros.messages import cloud_to_message, message_to_cloud
from fast3r_ros.ros.pose_messages import quaternion_from_matrix, stamped_transform
from fast3r_ros.ros.transforms import OwnLookup, Tf2Lookup, TransformLookup, TransformMissing
from fast3r_ros.ros.upstream import (
    CV_BRIDGE,
    CV_BRIDGE_ENCODINGS,
    POINT_CLOUD2,
    TF2_ROS,
    TF_TRANSFORMATIONS,
    working_cv_bridge,
)

NS = 1_000_000_000


def needs(library: object, name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(library is None, reason=f"{name} is not installed here")


# cv_bridge --------------------------------------------------------------------------------------------------


@needs(CV_BRIDGE, "cv_bridge")
@pytest.mark.parametrize("encoding", sorted(CV_BRIDGE_ENCODINGS))
def test_cv_bridge_converts_alike(encoding: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    for picture in (known_picture(), noise):
        message = encode(picture, encoding)
        difference = np.abs(image_to_rgb(message).astype(int) - _decode(message))
        assert difference.max() <= 1


def test_a_cv_bridge_that_cannot_convert_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was built for another NumPy is imported without complaint and fails at the first image."""
    broken = types.ModuleType("cv_bridge")

    class CvBridge:
        def imgmsg_to_cv2(self, message: object, encoding: str) -> object:
            raise ImportError("numpy.core.multiarray failed to import")

    broken.CvBridge = CvBridge
    monkeypatch.setitem(sys.modules, "cv_bridge", broken)
    assert working_cv_bridge() is None


# sensor_msgs_py ---------------------------------------------------------------------------------------------


def random_cloud(count: int, seed: int) -> Cloud:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(count, 3)).astype(np.float32)
    return Cloud(points, rng.integers(0, 256, (count, 3), np.uint8), rng.random(count, np.float32) * 9 + 1)


def packed_rgb(cloud: Cloud) -> np.ndarray:
    """(N,) float32 whose bits are 0x00RRGGBB."""
    red, green, blue = (cloud.colors[:, index].astype(np.uint32) for index in range(3))
    return (red << 16 | green << 8 | blue).view(np.float32)


@needs(POINT_CLOUD2, "sensor_msgs_py")
def test_sensor_msgs_py_reads_a_million_points_equal() -> None:
    cloud = random_cloud(1_000_000, 5)
    read = POINT_CLOUD2.read_points(cloud_to_message(cloud, 0, "map"))
    for column, name in enumerate("xyz"):
        assert np.array_equal(read[name], cloud.points[:, column])
    assert np.array_equal(read["confidence"], cloud.confidence)
    assert np.array_equal(read["rgb"].view(np.uint32), packed_rgb(cloud).view(np.uint32))


@needs(POINT_CLOUD2, "sensor_msgs_py")
def test_clouds_of_sensor_msgs_py_are_read() -> None:
    cloud = random_cloud(1000, 6)
    names = ("x", "y", "z", "rgb", "confidence")
    fields = [PointField(name=n, offset=4 * i, datatype=7, count=1) for i, n in enumerate(names)]
    columns = np.column_stack([cloud.points, packed_rgb(cloud), cloud.confidence])
    message: PointCloud2 = POINT_CLOUD2.create_cloud(Header(frame_id="map"), fields, columns)
    read = message_to_cloud(message)
    assert np.array_equal(read.points, cloud.points)
    assert np.array_equal(read.colors, cloud.colors)
    assert np.array_equal(read.confidence, cloud.confidence)
    assert array.array("B", message.data) == cloud_to_message(cloud, 0, "map").data


# tf_transformations and tf2_ros -----------------------------------------------------------------------------


def rigid(seed: int) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    matrix[:3, 3] = np.random.default_rng(seed).normal(size=3) * 5
    return matrix


@needs(TF_TRANSFORMATIONS, "tf_transformations")
def test_tf_transformations_gives_the_same_rotations() -> None:
    for seed in range(20):
        theirs = quaternion_from_matrix(rigid(seed)[:3, :3])
        ours = Rotation.from_matrix(rigid(seed)[:3, :3]).as_quat()
        assert abs(abs(float(theirs @ ours)) - 1.0) < 1e-9


FRAMES = ("map", "odom", "base", "camera", "mast")  # each is the child of an earlier one
edges = st.tuples(st.integers(1, 4), st.booleans(), st.lists(st.integers(0, 25), unique=True, max_size=6))
questions = st.tuples(
    st.sampled_from(FRAMES), st.sampled_from((*FRAMES, "nowhere")), st.none() | st.integers(0, 25)
)


def answer(lookup: TransformLookup, target: str, source: str, second: int | None) -> np.ndarray | None:
    try:
        return lookup.lookup(target, source, None if second is None else second * NS + NS // 4)
    except TransformMissing:
        return None


@needs(TF2_ROS, "tf2_ros")
@given(tree=st.lists(edges, min_size=4, max_size=4), asked=st.lists(questions, min_size=1, max_size=8))
@settings(max_examples=300, deadline=None)
def test_tf2_answers_alike(tree: list, asked: list) -> None:
    """Random trees of moving and static frames, transforms in any order, questions in and out of range."""
    theirs, ours = Tf2Lookup(), OwnLookup()
    for index, (up, static, seconds) in enumerate(tree, start=1):
        for second in seconds[:1] if static else seconds:
            parent, child = FRAMES[max(0, index - up)], FRAMES[index]
            transform = stamped_transform(rigid(100 * index + second), parent, child, second * NS)
            theirs.insert(transform, static)
            ours.insert(transform, static)
    for target, source, second in asked:
        if target == source:
            continue
        expected, found = (answer(lookup, target, source, second) for lookup in (theirs, ours))
        assert (found is None) == (expected is None), (target, source, second)
        if found is not None:
            assert np.allclose(found, expected, atol=1e-9)

"""Poses, transforms and their lookup; stand-ins for tf2 and tf_transformations against first principles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("rclpy", reason="ROS is not installed here")

from geometry_msgs.msg import Pose
from scipy.spatial.transform import Rotation

from fast3r_ros.ros import upstream
from fast3r_ros.ros.pose_messages import (
    BadPose,
    matrix_from,
    matrix_from_pose,
    matrix_from_transform,
    ns_from_stamp,
    odometry_message,
    path_message,
    pose_from_matrix,
    stamp_from_ns,
    stamped_transform,
)
from fast3r_ros.ros.transforms import (
    OwnFrames,
    OwnLookup,
    TransformLookup,
    TransformMissing,
    transform_lookup,
)

NS = 1_000_000_000


def rigid(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    matrix[:3, 3] = rng.normal(size=3) * 5
    return matrix


seeds = st.integers(0, 2**31 - 1)


@given(seed=seeds)
@settings(max_examples=100, deadline=None)
def test_poses_come_back(seed: int) -> None:
    matrix = rigid(seed)
    assert np.allclose(matrix_from_pose(pose_from_matrix(matrix)), matrix, atol=1e-12)
    stamped = stamped_transform(matrix, "map", "camera", 12_345_678_901)
    assert np.allclose(matrix_from_transform(stamped.transform), matrix, atol=1e-12)
    assert (stamped.header.frame_id, stamped.child_frame_id) == ("map", "camera")
    assert ns_from_stamp(stamped.header.stamp) == 12_345_678_901


@given(stamp_ns=st.integers(0, 2**31 * NS - 1))
def test_stamps_come_back(stamp_ns: int) -> None:
    assert ns_from_stamp(stamp_from_ns(stamp_ns)) == stamp_ns


@pytest.mark.parametrize("quaternion", [(0, 0, 0, 0), (0, 0, 0, 2), (float("nan"), 0, 0, 1)])
def test_impossible_rotations_are_rejected(quaternion: tuple) -> None:
    with pytest.raises(BadPose):
        matrix_from((0.0, 0.0, 0.0), quaternion)
    assert np.allclose(matrix_from_pose(Pose()), np.eye(4))  # ROS's default pose is the identity


def test_odometry_and_path_carry_frames_stamps_and_covariance() -> None:
    covariance = np.arange(36.0).reshape(6, 6)
    message = odometry_message(rigid(1), covariance, "map", "camera", 5)
    assert (message.header.frame_id, message.child_frame_id) == ("map", "camera")
    assert list(message.pose.covariance) == list(range(36))
    assert message.twist.covariance[0] >= 1e6  # not estimated
    path = path_message([1, 2], [rigid(1), rigid(2)], "map", 2)
    assert [ns_from_stamp(pose.header.stamp) for pose in path.poses] == [1, 2]
    assert np.allclose(matrix_from_pose(path.poses[1].pose), rigid(2))


def test_of_two_transforms_at_one_stamp_the_first_stays_as_in_tf2() -> None:
    lookup = OwnLookup()
    for seed in (1, 2):
        lookup.insert(stamped_transform(rigid(seed), "odom", "base", NS), static=False)
    assert np.allclose(lookup.lookup("odom", "base", NS), rigid(1))


def test_the_newest_transform_is_the_newest_that_the_whole_chain_has_reached() -> None:
    lookup = OwnLookup()
    for second in (10, 11, 12):
        lookup.insert(stamped_transform(rigid(second), "map", "odom", second * NS), static=False)
    lookup.insert(stamped_transform(rigid(1), "odom", "base", 11 * NS), static=False)
    assert np.allclose(lookup.lookup("map", "base", None), rigid(11) @ rigid(1))


def filled(lookup: TransformLookup) -> TransformLookup:
    """odom -> base moves in one second from pose 1 to pose 2; base -> camera and map -> odom are fixed."""
    lookup.insert(stamped_transform(rigid(1), "odom", "base", 10 * NS), static=False)
    lookup.insert(stamped_transform(rigid(2), "odom", "base", 11 * NS), static=False)
    lookup.insert(stamped_transform(rigid(3), "base", "camera", 0), static=True)
    lookup.insert(stamped_transform(rigid(4), "map", "odom", 0), static=True)
    return lookup


LOOKUPS = [OwnLookup] if upstream.TF2_ROS is None else [OwnLookup, transform_lookup]


@pytest.mark.parametrize("make", LOOKUPS)
def test_lookup_composes_interpolates_and_rejects(make: type) -> None:
    lookup = filled(make())
    at_start = lookup.lookup("odom", "camera", 10 * NS)
    assert np.allclose(at_start, rigid(1) @ rigid(3), atol=1e-12)
    back = lookup.lookup("camera", "map", 11 * NS)
    assert np.allclose(back, np.linalg.inv(rigid(4) @ rigid(2) @ rigid(3)), atol=1e-9)
    halfway = lookup.lookup("odom", "base", 10 * NS + NS // 2)
    assert np.allclose(halfway[:3, 3], (rigid(1)[:3, 3] + rigid(2)[:3, 3]) / 2)
    whole = Rotation.from_matrix(rigid(1)[:3, :3].T @ rigid(2)[:3, :3]).magnitude()
    half = Rotation.from_matrix(rigid(1)[:3, :3].T @ halfway[:3, :3]).magnitude()
    assert half == pytest.approx(whole / 2, abs=1e-9)
    assert np.allclose(lookup.lookup("odom", "base", None), rigid(2))
    for target, source, stamp in (
        ("odom", "base", 12 * NS),
        ("odom", "base", 9 * NS),
        ("odom", "nowhere", 10 * NS),
    ):
        with pytest.raises(TransformMissing):
            lookup.lookup(target, source, stamp)


@pytest.mark.parametrize("make", LOOKUPS)
def test_lookup_forgets_the_past_but_not_static_transforms(make: type) -> None:
    lookup = filled(make())
    for second in (30, 31):
        lookup.insert(stamped_transform(rigid(5), "odom", "base", second * NS), static=False)
    with pytest.raises(TransformMissing):
        lookup.lookup("odom", "base", 11 * NS)  # older than ten seconds
    lookup.clear()
    assert np.allclose(lookup.lookup("base", "camera", 99 * NS), rigid(3))
    with pytest.raises(TransformMissing):
        lookup.lookup("odom", "base", None)
    # a recording that starts over, more than ten seconds back
    lookup.insert(stamped_transform(rigid(6), "odom", "base", 1 * NS), static=False)
    assert np.allclose(lookup.lookup("odom", "base", 1 * NS), rigid(6))


@given(order=st.permutations(range(8)))
@settings(max_examples=30, deadline=None)
def test_order_of_arrival_does_not_matter(order: list[int]) -> None:
    lookup = OwnLookup()
    for index in order:
        lookup.insert(stamped_transform(rigid(index), "odom", "base", index * NS), static=False)
    for index in range(8):
        assert np.allclose(lookup.lookup("odom", "base", index * NS), rigid(index))


def test_frames_that_form_a_circle_end_somewhere() -> None:
    lookup = OwnLookup()
    lookup.insert(stamped_transform(rigid(1), "a", "b", 0), static=True)
    lookup.insert(stamped_transform(rigid(2), "b", "a", 0), static=True)
    with pytest.raises(TransformMissing):
        lookup.lookup("a", "c", None)


def test_own_broadcasts_are_distinguished_from_others() -> None:
    frames = OwnFrames()
    own = stamped_transform(rigid(1), "map", "odom", NS)
    frames.sent(own)
    assert frames.is_own(own)
    other = stamped_transform(rigid(1), "world", "odom", NS)
    assert not frames.is_own(other)
    assert frames.other_parent("odom") is None
    frames.heard(other, static=False)
    assert frames.other_parent("odom") == "world"


def test_a_moving_parent_is_forgotten_after_two_seconds_of_silence_a_static_one_never() -> None:
    now = [100.0]
    frames = OwnFrames(lambda: now[0])
    frames.heard(stamped_transform(rigid(1), "base", "camera", 0), static=True)
    frames.heard(stamped_transform(rigid(1), "odom", "base", 50 * NS), static=False)
    assert frames.chain("camera") == ["camera", "base", "odom"]
    now[0] += 1.9
    assert frames.other_parent("base") == "odom"
    now[0] += 0.2
    assert frames.chain("camera") == ["camera", "base"]
    # it remains the parent at the stamps for which it was received
    assert frames.chain("camera", 49 * NS) == ["camera", "base", "odom"]
    assert frames.chain("camera", 51 * NS) == ["camera", "base"]
    assert frames.chain("camera", 39 * NS) == ["camera", "base"]
    frames.heard(stamped_transform(rigid(1), "wheels", "base", 60 * NS), static=False)
    assert frames.chain("camera") == ["camera", "base", "wheels"]


def test_parents_that_tf2_would_not_take_are_ignored_and_circles_end() -> None:
    frames = OwnFrames()
    for parent, child in (("camera", "camera"), ("", "camera"), ("base", "")):
        frames.heard(stamped_transform(rigid(1), parent, child, NS), static=False)
    assert frames.chain("camera") == ["camera"]
    frames.heard(stamped_transform(rigid(1), "a", "b", NS), static=False)
    frames.heard(stamped_transform(rigid(1), "b", "a", NS), static=False)
    assert frames.chain("a") == ["a", "b"]

"""Rotations, rigid transforms, axes and intrinsics: the conventions that everything else relies on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from fast3r_ros.geometry import intrinsics, rigid, rotation
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.model.preprocess import plan_resize


def project(point: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Pixel of a point (3,) in the camera frame."""
    homogeneous = matrix @ point
    return homogeneous[:2] / homogeneous[2]


vectors = st.tuples(*[st.floats(-1.7, 1.7)] * 3).map(np.array)


@settings(deadline=None)
@given(vector=vectors)
def test_rotation_representations_agree(vector: np.ndarray) -> None:
    matrix = rotation.matrix_from_vector(vector)
    quaternion = rotation.quaternion_from_matrix(matrix)
    assert quaternion[3] >= 0
    np.testing.assert_allclose(rotation.matrix_from_quaternion(-2 * quaternion), matrix, atol=1e-12)
    np.testing.assert_allclose(rotation.vector_from_matrix(matrix), vector, atol=1e-7)
    assert rotation.angle_between(np.eye(3), matrix) == pytest.approx(np.linalg.norm(vector), abs=1e-7)


def test_quaternions_are_x_y_z_w_and_batches_keep_their_shape() -> None:
    quarter_turn = rotation.matrix_from_quaternion([0, 0, np.sqrt(0.5), np.sqrt(0.5)])
    np.testing.assert_allclose(quarter_turn @ [1, 0, 0], [0, 1, 0], atol=1e-15)
    assert rotation.quaternion_from_matrix(np.tile(np.eye(3), (2, 5, 1, 1))).shape == (2, 5, 4)


@settings(deadline=None)
@given(vector=vectors, translation=vectors)
def test_rigid_inverse(vector: np.ndarray, translation: np.ndarray) -> None:
    a_from_b = rigid.rigid_matrix(rotation.matrix_from_vector(vector), translation)
    np.testing.assert_allclose(rigid.inverse(a_from_b) @ a_from_b, np.eye(4), atol=1e-12)
    points = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(
        Sim3.from_rigid(a_from_b).apply(points), rigid.transform_points(a_from_b, points)
    )


@settings(deadline=None)
@given(vector=vectors, turn=vectors, translation=vectors, share=st.floats(0, 1))
def test_poses_are_interpolated_like_scipy_does(
    vector: np.ndarray, turn: np.ndarray, translation: np.ndarray, share: float
) -> None:
    before = rigid.rigid_matrix(rotation.matrix_from_vector(vector), translation)
    after = before @ rigid.rigid_matrix(rotation.matrix_from_vector(turn), vector)
    between = rigid.interpolate(before, after, share)
    slerp = Slerp([0, 1], Rotation.from_matrix([before[:3, :3], after[:3, :3]]))
    np.testing.assert_allclose(between[:3, :3], slerp(share).as_matrix(), atol=1e-7)
    expected = (1 - share) * before[:3, 3] + share * after[:3, 3]
    np.testing.assert_allclose(between[:, 3], [*expected, 1], atol=1e-12)


@settings(deadline=None)
@given(vector=vectors, translation=vectors, scale=st.floats(0.1, 10))
def test_similarities_compose_and_invert(vector: np.ndarray, translation: np.ndarray, scale: float) -> None:
    a_from_b = Sim3(scale, rotation.matrix_from_vector(vector), translation)
    b_from_c = Sim3(0.7, rotation.matrix_from_vector(-2 * vector), translation - 1)
    points = np.array([[1.0, 2.0, 3.0], [0.5, -0.2, 4.0]])
    np.testing.assert_allclose(
        (a_from_b @ b_from_c).apply(points), a_from_b.apply(b_from_c.apply(points)), atol=1e-9
    )
    np.testing.assert_allclose(a_from_b.inverse().apply(a_from_b.apply(points)), points, atol=1e-9)


def test_a_camera_looking_north_is_a_body_facing_north() -> None:
    """Forward, left and up of the optical frame are x, y and z of the body frame (REP-103)."""
    forward, left, up = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], dtype=float)
    for optical, body in zip((forward, left, up), np.eye(3), strict=True):
        np.testing.assert_array_equal(rigid.BODY_FROM_OPTICAL[:3, :3] @ optical, body)
    pose = rigid.rigid_matrix(rotation.matrix_from_vector([0.1, 0.2, 0.3]), [1, 2, 3])
    body = rigid.body_pose_from_optical(pose)
    np.testing.assert_allclose(body[:3, :3], np.column_stack((pose[:3, 2], -pose[:3, 0], -pose[:3, 1])))
    np.testing.assert_array_equal(body[:3, 3], pose[:3, 3])


def test_intrinsics_follow_resize_and_crop() -> None:
    """A point seen at a pixel is seen at the moved pixel with the moved intrinsics."""
    matrix = intrinsics.intrinsics_matrix((500.0, 510.0), (322.0, 238.0))
    network_from_image = plan_resize(640, 470, 512).pixel_transform
    moved = intrinsics.transform_intrinsics(network_from_image, matrix)
    point = np.array([0.3, -0.2, 2.0])
    pixel = np.append(project(point, matrix), 1.0)
    np.testing.assert_allclose(project(point, moved), (network_from_image @ pixel)[:2])


def test_pixel_rays_project_to_pixel_centres() -> None:
    matrix = intrinsics.centred_intrinsics(100.0, 6, 8)
    ray = 3.0 * intrinsics.pixel_rays(matrix, 6, 8)[2, 5]
    np.testing.assert_allclose(project(ray, matrix), [5.5, 2.5])


def test_pixel_centres_shift_by_half_a_pixel() -> None:
    official = intrinsics.centred_intrinsics(100.0, 6, 8)
    ours = intrinsics.shift_pixel_centres(official, 0.5)
    point = np.array([0.3, -0.2, 2.0])
    np.testing.assert_allclose(project(point, ours), project(point, official) + 0.5)

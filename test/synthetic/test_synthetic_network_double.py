"""The stand-in network makes exactly the requested errors."""

from dataclasses import replace

import numpy as np
import pytest

from fast3r_ros.geometry.intrinsics import pixel_rays
from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.geometry.rotation import vector_from_matrix
from fast3r_ros.geometry.similarity import fit_similarity
from fast3r_ros.synthetic.oracle_network import REALISTIC, Disturbance, OracleNetwork
from fast3r_ros.synthetic.sequence import RecordedSequence, loop_sequence

EXACT = Disturbance(depth_noise=0.0, outliers=0.0)


@pytest.fixture(scope="module")
def sequence():
    return replace(loop_sequence(frames=600, width=48, height=32), camera="a")


@pytest.fixture(scope="module")
def frames(sequence):
    return [sequence[i] for i in range(0, 24, 3)]


def reconstruct(sequence, frames, disturbance, seed=0):
    network = OracleNetwork(sequence, disturbance, seed)
    return network.reconstruct([network.encode(frame) for frame in frames])


def pose_errors(sequence, frames, disturbance, windows=60):
    """Per window, view: (turn in degrees, shift in median depths, log scale, log stretch)."""
    network = OracleNetwork(sequence, disturbance)
    views = [network.encode(frame) for frame in frames]
    depths = np.stack([view.tokens.depth for view in views])
    typical = np.median(depths[depths > 0])
    result = []
    for _ in range(windows):
        maps = network.reconstruct(views)
        unit, row = None, []
        for view, points in zip(views, maps.points_global, strict=True):
            seen = view.tokens.depth > 0
            true = (pixel_rays(view.tokens.intrinsics, *seen.shape) * view.tokens.depth[..., None])[seen]
            place = fit_similarity(true, points.numpy()[seen].astype(np.float64))
            unit = unit or place.scale
            pose = inverse(views[0].tokens.world_from_camera) @ view.tokens.world_from_camera
            turn = np.rad2deg(vector_from_matrix(pose[:3, :3].T @ place.rotation))
            shift = (pose[:3, :3].T @ (place.translation / unit - pose[:3, 3])) / typical
            way = np.linalg.norm(pose[:3, 3])
            stretch = np.log(np.linalg.norm(place.translation / unit) / way) if way > 0.01 else 0.0
            row.append([*turn, *shift, np.log(place.scale / unit), stretch])
        result.append(row)
    return np.array(result)


def test_without_errors_it_answers_the_truth(sequence, frames):
    assert np.abs(pose_errors(sequence, frames, EXACT, windows=2)).max() < 1e-3


def test_pose_errors_have_no_mean_and_grow_with_the_distance_from_view_0(sequence, frames):
    errors = pose_errors(sequence, frames, replace(EXACT, pose_rotation=1.0, pose_translation=0.02))
    assert np.abs(errors[:, 0]).max() < 1e-3
    for columns, size in ((slice(0, 3), 1.0), (slice(3, 6), 0.02)):
        spread = errors[:, :, columns].std(axis=(0, 2))
        assert 0 < spread[1] < spread[-1] <= 1.2 * size
        last = errors[:, -1, columns]
        assert np.abs(last.mean(axis=0)).max() < 4 * last.std() / np.sqrt(len(last))
    assert np.abs(errors[:, :, 6]).max() < 1e-3


def test_views_have_their_own_scales_and_far_ones_are_moved_together(sequence, frames):
    scales = pose_errors(sequence, frames, replace(EXACT, view_scale=0.02))[:, 1:, 6]
    assert scales.std() == pytest.approx(0.02 * np.sqrt(2), rel=0.25)  # beside view 0's own
    bent = pose_errors(sequence, frames, replace(EXACT, bend=0.02))
    assert bent[:, -1, 7].std() == pytest.approx(0.02, rel=0.4)
    assert np.corrcoef(bent[:, -2, 7], bent[:, -1, 7])[0, 1] > 0.99
    assert np.abs(bent[..., :3]).max() < 1e-3


def test_another_focal_length_is_in_both_heads(sequence, frames):
    good = reconstruct(sequence, frames, EXACT)
    wrong = reconstruct(sequence, frames, replace(EXACT, focal_error=0.05))
    seen = frames[0].depth > 0
    for head in ("points_global", "points_local"):
        one, other = getattr(good, head)[0].numpy()[seen], getattr(wrong, head)[0].numpy()[seen]
        assert other[:, :2] == pytest.approx(one[:, :2] / 1.05, rel=1e-4)
        assert other[:, 2] == pytest.approx(one[:, 2], rel=1e-4)


def test_a_bowl_is_the_same_in_every_view_and_invented_surfaces_are_continuous(sequence, frames):
    good = reconstruct(sequence, frames, EXACT).points_local
    bowl = reconstruct(sequence, frames, replace(EXACT, bowl=0.03)).points_local
    for one, other in zip(good, bowl, strict=True):
        ratio = (other / one)[..., 2].numpy()
        assert ratio[0, 0] == pytest.approx(1.04, abs=0.003)
        assert ratio[16, 24] == pytest.approx(0.98, abs=0.003)
    holes = replace(EXACT, missing=0.2)
    bare, filled = (reconstruct(sequence, frames[:1], replace(holes, invented=on)) for on in (False, True))
    empty = bare.confidence_local[0] == 1
    assert 0.1 < empty.float().mean() < 0.3
    assert (filled.confidence_local[0][empty] > 1).all()
    assert filled.confidence_local[0][empty].median() < 0.5 * filled.confidence_local[0][~empty].median()


def test_views_that_are_not_connected_may_be_as_confident_as_the_others(sequence):
    far = [sequence[0], sequence[300]]
    shy, sure = (
        reconstruct(sequence, far, replace(EXACT, unconnected_confidence=share)).confidence_global
        for share in (0.02, 1.0)
    )
    assert (shy[1].median() - 1) < 0.1 * (shy[0].median() - 1)
    assert (sure[1].median() - 1) > 0.8 * (sure[0].median() - 1)


def test_errors_of_poses_leave_the_others_as_they_are(sequence, frames):
    local = (
        reconstruct(sequence, frames, replace(d, depth_noise=0.02, invented=False)).points_local
        for d in (Disturbance(), REALISTIC)
    )
    for one, other in zip(*local, strict=True):
        assert (one == other).all()


def test_recorded_frames_are_answered_like_rendered_ones(sequence, frames, tmp_path):
    recorded = RecordedSequence(
        np.stack([f.image for f in frames]),
        np.stack([f.depth for f in frames]).astype(np.float16),
        sequence.world_from_camera[0:24:3],
        sequence.intrinsics,
        camera="a",
    )
    path = tmp_path / "recorded.npz"
    np.savez(
        path,
        images=recorded.images,
        depth=recorded.depths,
        poses=recorded.world_from_camera + 1e-5,
        K=recorded.intrinsics,
    )
    again = RecordedSequence.read(path)
    rotations = again.world_from_camera[:, :3, :3]
    assert np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max() < 1e-12
    part = again.part(range(2, 6), camera="a", start_ns=7)
    assert (len(part), part.stamp_ns(0), part.width, part.height) == (4, 7, 48, 32)
    errors = pose_errors(part, list(part), EXACT, windows=1)
    assert np.abs(errors).max() < 2e-3

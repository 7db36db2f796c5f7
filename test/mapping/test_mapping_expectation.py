"""The expected pose of the robot: given by the user, or by odometry where the network fails."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from fast3r_ros.benchmark.synthetic_run import start, the_loop, true_poses
from fast3r_ros.errors import UserError
from fast3r_ros.geometry.rigid import BODY_FROM_OPTICAL, inverse, rigid_matrix
from fast3r_ros.geometry.rotation import matrix_from_vector
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.expectation import InitialPose, odometry_edges, similarity_of_poses, to_the_plane
from fast3r_ros.mapping.inbox import OdometryBuffer
from fast3r_ros.mapping.view_errors import ViewErrors
from fast3r_ros.synthetic.oracle_network import REALISTIC

MOUNT = rigid_matrix(BODY_FROM_OPTICAL[:3, :3], [0.2, 0.0, 1.0])


def mapped(count=100, **parameters):
    """A metric map of the first frames, and `map_from_base` of any frame by its number."""
    sequence, frames = the_loop()
    run = start(sequence, scale__source="depth", **parameters)
    run.mapper.set_extrinsics(sequence.camera, MOUNT)
    run.feed(frames[:count])
    assert run.mapper.status().metres
    map_from_world = run.world_from_map().inverse()

    def map_from_base(index):
        return map_from_world.move_camera(sequence.world_from_camera[index]) @ inverse(MOUNT)

    return run, frames, map_from_base


def off(pose, x, y, degrees):
    """A pose given by a user, slightly wrong."""
    return pose @ rigid_matrix(matrix_from_vector(np.array([0, 0, np.deg2rad(degrees)])), [x, y, 0.0])


def test_a_given_pose_corrects_where_the_robot_is(tmp_path):
    """The map is loaded, and nothing is recognised without help."""
    run, frames, map_from_base = mapped(130)
    run.mapper.save_map(tmp_path / "map")
    run = start(run.sequences, scale__source="depth", loop__enabled=False)
    run.mapper.set_extrinsics(run.sequences[0].camera, MOUNT)
    run.mapper.load_map(tmp_path / "map")
    run.mapper.set_initial_pose(InitialPose(off(map_from_base(60), 0.5, -0.4, 20), 1.5, 1.0))
    run.feed(frames[60:90])
    found = list(run.mapper.map.keyframes.values())[-1]
    index = round((found.stamp_ns - frames[0].stamp_ns) / 1e8)
    assert 60 <= index < 90
    assert run.mapper.status().submaps == 1
    place = (found.map_from_camera @ inverse(MOUNT))[:3, 3]
    assert np.linalg.norm(place - map_from_base(index)[:3, 3]) < 0.1


def test_where_nothing_fits_a_submap_begins_at_the_given_pose():
    run, frames, map_from_base = mapped(loop__enabled=False)
    given = off(map_from_base(400), 0.0, 0.0, 0)
    run.mapper.set_initial_pose(InitialPose(given, 1.0, 1.0))
    run.feed(frames[400:430])
    status = run.mapper.status()
    assert status.submaps == 2
    newest = max(k.submap for k in run.mapper.map.keyframes.values())
    first = next(k for k in run.mapper.map.keyframes.values() if k.submap == newest)
    assert (first.map_from_camera @ inverse(MOUNT))[:3] == pytest.approx(given[:3], abs=1e-6)


def test_a_given_pose_is_used_once_and_needs_metres():
    run, frames, map_from_base = mapped()
    run.mapper.set_initial_pose(InitialPose(map_from_base(90), 1.0, 1.0))
    run.feed(frames[100:160])
    assert run.mapper.status().submaps == 1
    sequence, _ = the_loop()
    unknown = start(sequence).feed(frames[:60])
    with pytest.raises(UserError, match="metres"):
        unknown.mapper.set_initial_pose(InitialPose(np.eye(4), 1.0, 1.0))


def test_keyframes_near_a_pose_have_a_similar_direction():
    run, _, map_from_base = mapped()
    keyframes = list(run.mapper.map.keyframes.values())
    pose = map_from_base(50)
    near = InitialPose(pose, 1.0, np.deg2rad(60)).near(keyframes, MOUNT)
    assert 0 < len(near) < len(keyframes)
    back = InitialPose(off(pose, 0, 0, 180), 1.0, np.deg2rad(30)).near(keyframes, MOUNT)
    assert len(back) == min(16, len(keyframes))  # the nearest ones: none has that direction


def in_the_dark(odometry, seconds=10, after=70):
    """A walk with some seconds of blank images; odometry: frame number -> pose of the base, or None."""
    sequence, frames = the_loop()
    run = start(sequence, scale__source="depth" if odometry is None else "odometry", loop__enabled=False)
    run.mapper.set_extrinsics(sequence.camera, MOUNT)
    if odometry is not None:
        for index in range(150 + 10 * seconds + after):
            base = sequence.world_from_camera[index] @ inverse(MOUNT)
            run.mapper.add_odometry(sequence.stamp_ns(index), odometry(index, base))
    dark = slice(150, 150 + 10 * seconds)
    blank = [replace(frame, image=np.full_like(frame.image, 128)) for frame in frames[dark]]
    run.feed([*frames[:150], *blank, *frames[dark.stop : dark.stop + after]])
    return run


def test_odometry_bridges_what_the_network_cannot():
    run = in_the_dark(lambda _, base: base)
    status = run.mapper.status()
    assert (status.submaps, status.metres) == (1, True)
    assert status.windows_rejected > 0
    scores = run.scores()
    assert scores["rmse_percent"] < 0.5
    assert run.world_from_map().scale == pytest.approx(1.0, abs=0.01)
    keyframes = run.mapper.map.keyframes
    last = max(i for i, k in keyframes.items() if k.stamp_ns < 16_000_000_000)
    assert any({edge.i, edge.j} == {last, last + 1} for edge in run.mapper._builder.loops.edges)


@pytest.mark.parametrize(
    "kind",
    [
        "turning the wrong way",
        pytest.param("another way", marks=pytest.mark.slow),
        pytest.param("none", marks=pytest.mark.slow),
    ],
)
def test_odometry_that_does_not_agree_with_the_map_bridges_nothing(kind):
    def wrong(index, base):
        result = base.copy()
        if kind == "turning the wrong way":
            result[:3, :3] = base[:3, :3].T
        else:
            result[:3, 3] = [0.1 * index, np.sin(index / 5), 0.0]
        return result

    run = in_the_dark(None if kind == "none" else wrong)
    assert run.mapper.status().submaps == 2


def test_a_window_that_contradicts_odometry_is_not_bridged():
    rng = np.random.default_rng(0)
    poses = rigid_matrix(matrix_from_vector(rng.normal(0, 0.2, (6, 3))), rng.normal(size=(6, 3)))
    truth = Sim3(2.5, matrix_from_vector(np.array([0.3, 0.2, 1.0])), np.array([1.0, 2.0, 3.0]))
    expected = np.stack([truth.move_camera(pose) for pose in poses])
    found = similarity_of_poses(poses, expected)
    assert found.scale == pytest.approx(2.5)
    assert found.rotation == pytest.approx(truth.rotation)
    assert found.translation == pytest.approx(truth.translation)
    assert similarity_of_poses(poses, expected[::-1]) is None
    still = expected.copy()
    still[:, :3, 3] = expected[:1, :3, 3]
    assert similarity_of_poses(poses, still) is None


@pytest.mark.parametrize("metres", [True, False])
def test_bases_are_brought_to_the_ground_plane(metres):
    """Tilted by three degrees and 10 cm too high, on average; position and heading stay."""
    tilt = rigid_matrix(matrix_from_vector(np.array([0.03, 0.04, 0.0])), [0.0, 0.0, 0.1])
    level = np.stack([off(np.eye(4), 0.1 * n, 0.2, 10 * n) for n in range(5)])
    cameras = tilt @ level @ MOUNT
    change = to_the_plane(cameras, np.tile(MOUNT, (5, 1, 1)), metres)
    bases = np.stack([change.move_camera(camera) @ inverse(MOUNT) for camera in cameras])
    assert change.scale == 1.0
    assert bases[:, 2, 2] == pytest.approx(1.0, abs=1e-6)
    assert bases[:, :2, 3] == pytest.approx(level[:, :2, 3], abs=0.06 if metres else 0.1)
    if metres:
        assert bases[:, 2, 3] == pytest.approx(0.0, abs=1e-6)


STEPS = 160  # frames


def step_errors(odometry, disturbance, seed=0):
    """Metres between the estimated and the true step of each keyframe from the previous one, second half.

    Metres come from depth images, so that only the registration uses odometry: of the base by frame number.
    """
    sequence, frames = the_loop()
    run = start(sequence, disturbance, seed, scale__source="depth", loop__enabled=False)
    run.mapper.set_extrinsics(sequence.camera, MOUNT)
    for index in range(STEPS if odometry else 0):
        base = sequence.world_from_camera[index] @ inverse(MOUNT)
        run.mapper.add_odometry(sequence.stamp_ns(index), odometry(index, base))
    trajectory = run.feed(frames[:STEPS]).mapper.trajectory()
    truth = true_poses(run.sequences)
    errors = []
    for before, after in pairwise(trajectory[len(trajectory) // 2 :]):
        mapped = inverse(before.map_from_camera) @ after.map_from_camera
        true = inverse(truth[before.camera, before.stamp_ns]) @ truth[after.camera, after.stamp_ns]
        errors.append(np.linalg.norm(mapped[:3, 3] - true[:3, 3]))
    return np.array(errors)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_good_odometry_holds_the_poses_of_a_noisy_network(seed):
    alone = step_errors(None, REALISTIC, seed)
    held = step_errors(lambda _, base: base, REALISTIC, seed)
    assert np.median(held) < 0.4 * np.median(alone)


@pytest.mark.slow
def test_slipping_wheels_hardly_move_what_the_network_knows_well():
    """From frame 100 on every step is half as long, and the heading turns by a degree per frame."""

    def slipping(index, base):
        turn = matrix_from_vector(np.array([0, 0, np.deg2rad(max(0, index - 100))]))
        way = base.copy()
        way[:3, 3] *= 0.5 if index > 100 else 1.0
        return way @ rigid_matrix(turn, np.zeros(3))

    assert step_errors(slipping, None).max() < 1.2 * step_errors(None, None).max() + 0.005


def test_odometry_of_few_keyframes_or_far_off_is_not_trusted():
    sequence, frames = the_loop()
    run = start(sequence, scale__source="depth").feed(frames[:120])
    keyframes = list(run.mapper.map.keyframes.values())
    odometry, wrong = OdometryBuffer(), OdometryBuffer()
    for index in range(120):
        base = sequence.world_from_camera[index] @ inverse(MOUNT)
        odometry.add(sequence.stamp_ns(index), base)
        shorter = base.copy()
        shorter[:3, 3] *= 0.7
        wrong.add(sequence.stamp_ns(index), shorter)
    extrinsics, errors = {sequence.camera: MOUNT}, ViewErrors()
    assert len(odometry_edges(keyframes, 4, odometry, extrinsics, errors)) == 4
    assert odometry_edges(keyframes, 4, wrong, extrinsics, errors) == []
    assert odometry_edges(keyframes[:6], 4, odometry, extrinsics, errors) == []
    assert odometry_edges(keyframes, 4, OdometryBuffer(), extrinsics, errors) == []

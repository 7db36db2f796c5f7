"""Where the robot is expected: a pose that somebody gives, and odometry where the network fails."""

import numpy as np
import pytest

from fast3r_ros.benchmark.synthetic_run import start, the_loop
from fast3r_ros.errors import UserError
from fast3r_ros.geometry.axes import BODY_FROM_OPTICAL
from fast3r_ros.geometry.rigid import inverse, rigid_matrix
from fast3r_ros.geometry.rotation import matrix_from_vector
from fast3r_ros.mapping.expectation import InitialPose

MOUNT = rigid_matrix(BODY_FROM_OPTICAL[:3, :3], [0.2, 0.0, 1.0])


def mapped(count=200, **parameters):
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
    """A pose as a person gives it: a little wrong."""
    return pose @ rigid_matrix(matrix_from_vector(np.array([0, 0, np.deg2rad(degrees)])), [x, y, 0.0])


def test_a_given_pose_corrects_where_the_robot_is(tmp_path):
    """The map is loaded, and nothing is recognised by itself."""
    run, frames, map_from_base = mapped()
    run.mapper.save_map(tmp_path / "map")
    run = start(run.sequences, scale__source="depth", loop__enabled=False)
    run.mapper.set_extrinsics(run.sequences[0].camera, MOUNT)
    run.mapper.load_map(tmp_path / "map")
    run.mapper.set_initial_pose(InitialPose(off(map_from_base(80), 0.5, -0.4, 20), 1.5, 1.0))
    run.feed(frames[80:120])
    found = list(run.mapper.map.keyframes.values())[-1]
    index = round((found.stamp_ns - frames[0].stamp_ns) / 1e8)
    assert 80 <= index < 120
    assert run.mapper.status().submaps == 1
    place = (found.map_from_camera @ inverse(MOUNT))[:3, 3]
    assert np.linalg.norm(place - map_from_base(index)[:3, 3]) < 0.1


def test_where_nothing_fits_a_submap_begins_at_the_given_pose():
    run, frames, map_from_base = mapped(100, loop__enabled=False)
    given = off(map_from_base(400), 0.0, 0.0, 0)
    run.mapper.set_initial_pose(InitialPose(given, 1.0, 1.0))
    run.feed(frames[400:430])
    status = run.mapper.status()
    assert status.submaps == 2
    newest = max(k.submap for k in run.mapper.map.keyframes.values())
    first = next(k for k in run.mapper.map.keyframes.values() if k.submap == newest)
    assert (first.map_from_camera @ inverse(MOUNT))[:3] == pytest.approx(given[:3], abs=1e-6)


def test_a_given_pose_is_used_once_and_needs_metres():
    run, frames, map_from_base = mapped(100)
    run.mapper.set_initial_pose(InitialPose(map_from_base(90), 1.0, 1.0))
    run.feed(frames[100:160])
    assert run.mapper.status().submaps == 1
    sequence, _ = the_loop()
    unknown = start(sequence).feed(frames[:60])
    with pytest.raises(UserError, match="metres"):
        unknown.mapper.set_initial_pose(InitialPose(np.eye(4), 1.0, 1.0))


def test_keyframes_near_a_pose_look_about_where_it_does():
    run, _, map_from_base = mapped(100)
    keyframes = list(run.mapper.map.keyframes.values())
    pose = map_from_base(50)
    near = InitialPose(pose, 1.0, np.deg2rad(60)).near(keyframes, MOUNT)
    assert 0 < len(near) < len(keyframes)
    back = InitialPose(off(pose, 0, 0, 180), 1.0, np.deg2rad(30)).near(keyframes, MOUNT)
    assert len(back) == min(16, len(keyframes))  # the nearest: none looks that way

"""Localisation: frames are placed in the map without changing it."""

from dataclasses import replace

import numpy as np
import pytest

from fast3r_ros.benchmark.synthetic_run import start, the_loop
from fast3r_ros.mapping.expectation import InitialPose
from fast3r_ros.mapping.localization import EMPTY_MAP
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.synthetic.oracle_network import OracleNetwork

LATER_NS = 10**12  # the robot comes back


@pytest.fixture(scope="module")
def run():
    sequence, frames = the_loop()
    return start(sequence, scale__source="depth").feed(frames[:120])


def state(mapper: Mapper):
    cloud = mapper.map.cloud()
    poses = {k.id: k.map_from_camera.tobytes() for k in mapper.map.keyframes.values()}
    return cloud.points.tobytes(), cloud.colors.tobytes(), poses, mapper.map.version


def again(frames):
    """The same views at another time."""
    return [replace(frame, stamp_ns=frame.stamp_ns + LATER_NS) for frame in frames]


class LaterNetwork(OracleNetwork):
    """Returns the first walk's results for the same views at another time."""

    def encode(self, frame):
        early = frame.stamp_ns - LATER_NS
        return super().encode(replace(frame, stamp_ns=early if early >= 0 else frame.stamp_ns))


def feed(mapper: Mapper, frames) -> list:
    results = []
    for frame in frames:
        mapper.add_frame(frame)
        while mapper.window_ready():
            results.append(mapper.process_window())
    return [result for result in results if result is not None]


def test_frames_are_placed_and_the_map_stays(run, tmp_path):
    sequence, frames = the_loop()
    run.mapper.save_map(tmp_path / "map")
    mapper = Mapper(LaterNetwork(sequence), run.mapper.config)
    mapper.load_map(tmp_path / "map")
    mapper.set_localizing(True)
    before = state(mapper)
    results = feed(mapper, again(frames[10:110]))
    placed = [result for result in results if result.accepted]
    assert len(placed) > 0.8 * len(results)
    world_from_map = run.world_from_map()
    errors = []
    for result in placed:
        for view in result.views:
            number = next(i for i in range(120) if sequence.stamp_ns(i) == view.stamp_ns - LATER_NS)
            pose = world_from_map.move_camera(view.map_from_camera)
            errors.append(np.linalg.norm(pose[:3, 3] - sequence.world_from_camera[number][:3, 3]))
    assert len(errors) >= 15
    assert np.median(errors) < 0.05
    ids = [view.keyframe_id for result in placed for view in result.views]
    assert len(set(ids)) == len(ids)
    newest = mapper.newest_pose()
    assert newest is not None
    assert newest.stamp_ns >= placed[-1].views[-1].stamp_ns
    mapper.finish()
    assert state(mapper) == before
    counts = mapper.frame_counts()
    assert counts.waiting == 0
    assert counts.used == len(ids)


def test_mapping_continues_in_the_same_map_afterwards(run, tmp_path):
    sequence, frames = the_loop()
    run.mapper.save_map(tmp_path / "map")
    mapper = Mapper(LaterNetwork(sequence), run.mapper.config)
    mapper.load_map(tmp_path / "map")
    mapper.set_localizing(True)
    feed(mapper, again(frames[80:100]))
    mapper.set_localizing(False)
    before, points = len(mapper.map.keyframes), mapper.map.points
    feed(mapper, again(frames[100:160]))
    mapper.finish()
    assert len(mapper.map.keyframes) > before
    assert mapper.map.points > points
    assert mapper.status().submaps == 1


def test_a_missing_map_and_an_unknown_place_are_reported(run):
    sequence, frames = the_loop()
    empty = Mapper(OracleNetwork(sequence))
    empty.set_localizing(True)
    (result,) = feed(empty, frames[:1])
    assert (result.accepted, result.reason) == (False, EMPTY_MAP)
    assert len(empty.map.keyframes) == 0

    run.mapper.set_localizing(True)
    before = state(run.mapper)
    results = feed(run.mapper, frames[300:330])
    assert results
    assert not any(result.accepted for result in results)
    assert all(result.reason for result in results)
    assert state(run.mapper) == before


def localizer(run, tmp_path):
    """A mapper that only localises in the run's map, and `map_from_base` of a frame by its number."""
    sequence, _ = the_loop()
    run.mapper.save_map(tmp_path / "map")
    mapper = Mapper(LaterNetwork(sequence), run.mapper.config)
    mapper.set_extrinsics(sequence.camera, np.eye(4))
    mapper.load_map(tmp_path / "map")
    mapper.set_localizing(True)
    map_from_world = run.world_from_map().inverse()
    return mapper, lambda index: map_from_world.move_camera(sequence.world_from_camera[index])


def test_a_given_pose_limits_the_search(run, tmp_path):
    mapper, map_from_base = localizer(run, tmp_path)
    _, frames = the_loop()
    mapper.set_initial_pose(InitialPose(map_from_base(60), 0.7, 0.6))
    near = mapper._initial_pose.near(mapper.map.keyframes.values(), np.eye(4))
    assert 0 < len(near) < len(mapper.map.keyframes) / 2
    results = feed(mapper, again(frames[60:64]))
    assert results[0].accepted
    assert set(mapper._localizer._views) <= near


def test_a_wrong_pose_is_given_up_after_some_windows(run, tmp_path):
    mapper, map_from_base = localizer(run, tmp_path)
    _, frames = the_loop()
    # a pose without a view of the shown scene
    mapper.set_initial_pose(InitialPose(map_from_base(5), 0.3, 0.3))
    results = feed(mapper, again(frames[100:120]))
    assert not results[0].accepted
    assert results[-1].accepted

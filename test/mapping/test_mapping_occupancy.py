"""The grid: obstacles are never free, cells crossed by rays are; heights are above the floor."""

from dataclasses import replace

import numpy as np
import pytest

from fast3r_ros.benchmark.synthetic_run import start, the_loop
from fast3r_ros.geometry.rigid import BODY_FROM_OPTICAL, inverse, rigid_matrix
from fast3r_ros.geometry.rotation import matrix_from_vector
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping.data import Keyframe, KeyframePoints
from fast3r_ros.mapping.occupancy import (
    FREE,
    OCCUPIED,
    UNKNOWN,
    FloorUnknown,
    GridConfig,
    GridMaker,
    find_floor,
)
from fast3r_ros.synthetic.rooms import is_free

ON_MAST = rigid_matrix(BODY_FROM_OPTICAL[:3, :3], [0.0, 0.0, 1.2])


def keyframe(seen, map_from_base=None, number=0, mount=ON_MAST):
    """A keyframe that sees points (N, 3) in `map` from a camera 1.2 m above the base at the origin."""
    base = np.eye(4) if map_from_base is None else map_from_base
    place = base @ ON_MAST
    local = (seen - place[:3, 3]) @ place[:3, :3]
    count = len(seen)
    points = KeyframePoints(
        local.astype(np.float32), np.ones(count, np.float32), np.zeros((count, 3), np.uint8), np.arange(count)
    )
    return Keyframe(
        id=number,
        stamp_ns=number,
        camera="a",
        submap=0,
        map_from_local=Sim3.from_rigid(place),
        covariance=np.eye(6),
        estimates=1,
        intrinsics=np.eye(3),
        network_from_image=np.eye(3),
        descriptor=np.zeros(4, np.float32),
        image=None,
        points=points,
        depth=3.0,
        metric_scale=np.nan,
        base_from_camera=mount,
    )


def sheet(x, y, z, step=0.02):
    """Points of a surface that is flat along one of three ranges (low, high)."""
    axes = [np.arange(low, high + 1e-9, step) for low, high in (x, y, z)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def wall(x=3.0):
    return sheet((x, x), (-1, 1), (0, 2))


def floor(z=0.0, first=1.5):
    return sheet((first, 3), (-1, 1), (z, z))


def grid(*surfaces, mount=ON_MAST, **config):
    seen = np.concatenate(surfaces)
    return GridMaker().make(
        seen.astype(np.float32), {0: keyframe(seen, mount=mount)}, GridConfig(resolution=0.1, **config)
    )


def at(occupancy, x, y=0.05):
    column, row = np.floor((np.array([x, y]) - occupancy.origin) / occupancy.resolution + 1e-6).astype(int)
    return int(occupancy.cells[row, column])


def test_rays_to_a_wall_make_what_is_before_it_free_without_a_floor():
    seen = grid(wall())
    assert at(seen, 3.05) == OCCUPIED
    assert {at(seen, x) for x in np.arange(0.55, 2.8, 0.1)} == {FREE}
    assert seen.floor == 0.0  # where the base stands


@pytest.mark.parametrize("height", [0.15, 0.3, 0.75, 1.1])
def test_cells_below_the_rays_of_the_camera_are_never_free(height):
    box = sheet((2.0, 2.4), (-0.5, 0.5), (height, height))
    seen = grid(floor(), wall(), box)
    assert {at(seen, x) for x in (2.05, 2.15, 2.25, 2.35)} == {OCCUPIED}
    assert at(seen, 1.75) == FREE


def test_two_stray_points_do_not_block_a_passage_and_a_few_rays_do_not_free_them():
    stray = np.array([[2.05, 0.05, 0.5]])
    assert at(grid(floor(), wall(), stray, stray + 0.01), 2.05) == FREE
    few = np.array([[3.0, 0.05, 0.2]] * 4)
    assert at(grid(few, stray, stray + 0.01), 2.05) == UNKNOWN


def test_rays_above_the_upper_height_free_nothing():
    lamp = sheet((3, 3), (-1, 1), (1.6, 2.4))
    seen = grid(lamp, wall(1.5), max_height=1.3)
    assert at(seen, 1.25) == FREE
    assert at(seen, 1.55) == OCCUPIED
    assert seen.cells.shape[1] == 16  # nothing behind the wall, where the rays to the lamp are higher


@pytest.mark.parametrize("mount", [ON_MAST, None])
@pytest.mark.parametrize("drop", [0.0, -0.5])
def test_heights_count_from_the_floor_wherever_the_maps_zero_is(mount, drop):
    box = sheet((2.0, 2.4), (-0.5, 0.5), (drop + 0.2, drop + 0.2))
    seen = grid(floor(drop), wall(), box, mount=mount)
    assert seen.floor == pytest.approx(drop, abs=0.02)
    assert at(seen, 2.15) == OCCUPIED
    assert at(seen, 2.75) == FREE


def test_a_floor_that_is_a_little_tilted_is_no_obstacle():
    tilt = matrix_from_vector(np.array([0.0, np.deg2rad(6), 0.0]))
    everything = np.concatenate([floor(first=0.5), wall()]) @ tilt.T
    seen = GridMaker().make(
        everything.astype(np.float32), {0: keyframe(everything, mount=None)}, GridConfig(resolution=0.1)
    )
    assert {at(seen, x) for x in np.arange(0.75, 2.7, 0.1)} == {FREE}


def test_a_table_is_not_taken_for_the_floor():
    table = sheet((1.5, 3), (-1, 1), (0.7, 0.7))
    assert find_floor(table.astype(np.float32), [keyframe(table)]).z == 0.0
    both = np.concatenate([sheet((1.5, 2.4), (-1, 1), (0.7, 0.7)), floor(first=2.4), wall()])
    assert find_floor(both.astype(np.float32), [keyframe(both, mount=None)]).z == pytest.approx(0, abs=0.02)


def test_without_a_floor_and_a_base_the_floor_is_unknown():
    with pytest.raises(FloorUnknown, match="no floor is visible"):
        grid(wall(), mount=None)
    tilt = matrix_from_vector(np.array([0.0, np.deg2rad(25), 0.0]))
    everything = np.concatenate([floor(first=0.5), wall()]) @ tilt.T
    with pytest.raises(FloorUnknown, match="tilted by 25 degrees"):
        find_floor(everything.astype(np.float32), [keyframe(everything, mount=None)])
    with pytest.raises(FloorUnknown, match="empty"):
        GridMaker().make(np.zeros((0, 3), np.float32), {}, GridConfig())


def test_a_grid_that_is_too_large_is_rejected():
    far = np.concatenate([wall(), [[1e6, 1e6, 0.5]]])
    with pytest.raises(ValueError, match=r"grid\.resolution"):
        GridMaker().make(far.astype(np.float32), {0: keyframe(wall())}, GridConfig())


def test_a_grid_follows_a_keyframe_that_moves_and_forgets_one_that_is_gone():
    maker, config = GridMaker(), GridConfig(resolution=0.1)
    points = wall().astype(np.float32)
    first = keyframe(wall())
    before = maker.make(points, {0: first}, config).cells
    aside = rigid_matrix(np.eye(3), [0.0, 1.0, 0.0])
    moved = replace(first, map_from_local=Sim3.from_rigid(aside @ first.map_from_camera))
    assert not np.array_equal(maker.make(points, {0: moved}, config).cells, before)
    assert np.array_equal(maker.make(points, {0: first}, config).cells, before)
    with pytest.raises(FloorUnknown):
        maker.make(points, {}, config)


@pytest.mark.parametrize("on_robot", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_mapped_flat_is_free_where_it_is_and_nowhere_that_holds_points(on_robot):
    """A camera 1.2 m above the base; without the base the floor is found."""
    sequence, frames = the_loop()
    run = start(sequence, scale__source="odometry", loop__enabled=False)
    for index, frame in enumerate(frames[:200]):
        run.mapper.add_odometry(frame.stamp_ns, sequence.world_from_camera[index] @ inverse(ON_MAST))
        run.feed([replace(frame, base_from_camera=ON_MAST if on_robot else None)], finish=False)
    points, keyframes = run.mapper.map.cloud().points, run.mapper.map.keyframes
    occupancy = GridMaker().make(points, keyframes, GridConfig())
    cells = occupancy.cells
    low = (points[:, 2] > occupancy.floor + 0.2) & (points[:, 2] < occupancy.floor + 1.2)
    column, row = np.floor((points[low, :2] - occupancy.origin) / occupancy.resolution + 1e-4).astype(int).T
    held = np.zeros(cells.shape, int)
    np.add.at(held, (row, column), 1)
    assert not ((cells == FREE) & (held >= 3)).any()
    row, column = np.nonzero(cells == FREE)
    places = occupancy.origin + (np.stack([column, row], 1) + 0.5) * occupancy.resolution
    true = run.world_from_map().apply(np.c_[places, np.zeros(len(places))])[:, :2]
    assert len(true) > 10000  # 25 square metres
    assert is_free(sequence.scene, true, -0.1).mean() > 0.97  # but for door frames

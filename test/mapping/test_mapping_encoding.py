"""Ignored pixels: people, the robot's own arm."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fast3r_ros.benchmark.synthetic_run import start, the_loop
from fast3r_ros.mapping.data import EncodedView, Frame
from fast3r_ros.mapping.tracking import encode_all

ARM = (slice(24, None), slice(None, 40))  # lower left of 64 x 48 pixels: 31 % of each image
ARM_DEPTH = 0.4  # metres; the walls are farther


def with_an_arm(masked: bool) -> list[Frame]:
    """The walk of a robot whose arm hangs into each image; the network reconstructs the arm."""
    frames = []
    for frame in the_loop()[1][:120]:
        depth = frame.depth.copy()
        depth[ARM] = ARM_DEPTH
        ignored = np.zeros(depth.shape, bool)
        ignored[ARM] = True
        frames.append(replace(frame, depth=depth, ignored=ignored if masked else None))
    return frames


def share_near_a_camera(run) -> float:
    """The share of the map's points in the space of the arm."""
    points = run.world_from_map().apply(run.mapper.map.cloud().points.astype(np.float64))
    near = np.zeros(len(points), bool)
    for pose in run.positions()[1]:
        near |= np.linalg.norm(points - pose, axis=1) < 1.2 * ARM_DEPTH
    return float(near.mean())


@pytest.mark.slow
def test_ignored_pixels_give_no_points_and_the_trajectory_is_unchanged():
    sequence, _ = the_loop()
    runs = {masked: start(sequence).feed(with_an_arm(masked)) for masked in (False, True)}
    assert share_near_a_camera(runs[False]) > 0.02
    assert share_near_a_camera(runs[True]) < 0.0005
    assert runs[True].scores()["rejected"] == 0
    assert runs[True].scores()["rmse_percent"] < 0.3
    for keyframe in runs[True].mapper.map.keyframes.values():
        rows, columns = np.divmod(keyframe.points.pixels[keyframe.points.confidence > 0], 64)
        assert not ((rows >= 24) & (columns < 40)).any()


def test_a_view_that_is_ignored_as_a_whole_stays_out_of_the_map():
    sequence, _ = the_loop()
    frames = with_an_arm(masked=True)
    covered = replace(frames[60], ignored=np.ones_like(frames[60].ignored))
    run = start(sequence).feed([*frames[:60], covered, *frames[61:]])
    assert run.scores()["rejected"] == 0
    assert covered.stamp_ns not in {keyframe.stamp_ns for keyframe in run.mapper.map.keyframes.values()}


class Resizing:
    """A network that works at another image size."""

    def __init__(self, transform, size):
        self.transform, self.size = np.array(transform, float), size

    def encode(self, frame):
        return EncodedView(
            np.zeros((*self.size, 3), np.uint8), self.transform, None, np.ones(1, np.float32), torch.zeros(1)
        )


@pytest.mark.parametrize(
    ("transform", "size", "wanted"),
    [
        ([[0.5, 0, 0], [0, 0.5, 0], [0, 0, 1]], (3, 4), (slice(1, 2), slice(1, 3))),
        ([[0.5, 0, -1], [0, 0.5, 0], [0, 0, 1]], (3, 2), (slice(1, 2), slice(0, 2))),  # the left cropped
        ([[2.0, 0, 0], [0, 2.0, 0], [0, 0, 1]], (12, 16), (slice(4, 6), slice(6, 10))),
    ],
)
def test_a_pixel_of_the_network_is_ignored_where_any_below_it_is(transform, size, wanted):
    ignored = np.zeros((6, 8), bool)
    ignored[2, 3:5] = True  # columns 3 and 4 of 8, row 2 of 6
    frame = Frame(0, "camera", np.zeros((6, 8, 3), np.uint8), ignored=ignored)
    (view,) = encode_all(Resizing(transform, size), [frame])
    expected = np.zeros(size, bool)
    expected[wanted] = True
    assert np.array_equal(view.ignored, expected)

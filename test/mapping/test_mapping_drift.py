"""The map keeps its scale and shape despite the typical errors of trained networks.

Synthetic everywhere; on recorded frames where they are.
"""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from fast3r_ros.benchmark.mapping_promises import recorded_scenarios
from fast3r_ros.benchmark.synthetic_run import recorded_frames, start, the_loop
from fast3r_ros.errors import UserError
from fast3r_ros.geometry.rotation import angle_between
from fast3r_ros.mapping.calibration import FocalLengths
from fast3r_ros.synthetic.oracle_network import REALISTIC, Disturbance
from fast3r_ros.synthetic.sequence import RecordedSequence

pytestmark = pytest.mark.slow

RECORDED = Path(__file__).parents[3] / "shared/data/seven_scenes/redkitchen_200.npz"
EXACT = {"depth_noise": 0.0, "outliers": 0.0}
TRAINED = Disturbance(depth_noise=0.02, pose_rotation=1.0, pose_translation=0.02, view_scale=0.02, bend=0.02)


def recorded():
    if not RECORDED.exists():
        pytest.skip(f"no recorded frames at {RECORDED}")
    return RecordedSequence.read(RECORDED)


@pytest.mark.parametrize("error", [0.05, -0.05])
def test_another_focal_length_than_the_calibrations_leaves_the_scale(error):
    sequence, frames = the_loop()
    run = start(sequence, Disturbance(focal_error=error, **EXACT), loop__enabled=False).feed(frames[:200])
    scores = run.scores()
    assert scores["rejected"] == 0
    assert scores["rmse"] < 0.015
    assert scores["scale_drift_percent"] < 1.5
    told = run.mapper.status().focal_differences[sequence.camera]
    assert told == pytest.approx(error, abs=0.005)


@pytest.mark.parametrize(("degrees", "share", "bound"), [(1.0, 0.02, 0.7), (2.0, 0.04, 2.0)])
def test_errors_of_poses_do_not_shrink_the_map(degrees, share, bound):
    sequence, frames = the_loop()
    drifts = []
    for seed in range(2):
        wrong = Disturbance(pose_rotation=degrees, pose_translation=share, **EXACT)
        run = start(sequence, wrong, seed, loop__enabled=False).feed(frames[:200])
        depths = []
        for keyframe in run.mapper.map.keyframes.values():
            truth = sequence.depth(round((keyframe.stamp_ns - sequence.start_ns) * sequence.rate / 1e9))
            own = keyframe.points
            used = own.confidence > 0
            there = truth.ravel()[own.pixels[used]]
            ratio = own.points[used, 2][there > 0] * keyframe.map_from_local.scale / there[there > 0]
            depths.append(np.log(np.median(ratio)))
        drifts.append(100 * (np.median(depths[-6:]) - np.median(depths[:6])))
    assert abs(np.mean(drifts)) < bound


def test_recorded_frames_out_and_back_are_better_with_loops_than_without():
    sequence = recorded()
    order = [*range(0, 200, 1), *range(199, -1, -1)]
    there_and_back = RecordedSequence(
        sequence.images[order],
        sequence.depths[order],
        sequence.world_from_camera[order],
        sequence.intrinsics,
    )
    without, with_loops = (
        start(there_and_back, TRAINED, 0, loop__enabled=loops).feed(there_and_back).scores()
        for loops in (False, True)
    )
    assert with_loops["loops"] >= 3
    assert with_loops["rmse"] < without["rmse"]
    assert with_loops["rmse"] < 0.04


def test_a_calibration_that_cannot_be_true_is_reported():
    camera = ("front", 168, 224)
    known = FocalLengths({camera: (205.0,) * 3}, {camera: 400.0})
    assert "front" in known.doubts()
    assert "camera_info" in known.doubts()
    assert FocalLengths({camera: (205.0,) * 3}, {camera: 210.0}).doubts() == ""
    assert FocalLengths({camera: (205.0,)}, {camera: 400.0}).doubts() == ""  # one window is not enough


def test_recorded_frames_are_read_from_a_folder_and_measured(tmp_path):
    sequence, frames = the_loop()
    folder = tmp_path / "room" / "seq-01"
    folder.mkdir(parents=True)
    for i, frame in enumerate(frames[:40:4]):
        depth = np.round(1000 * sequence.depth(4 * i)).astype(np.uint16)
        cv2.imwrite(str(folder / f"frame-{i:06d}.color.png"), frame.image[..., ::-1])
        cv2.imwrite(str(folder / f"frame-{i:06d}.depth.png"), depth)
        np.savetxt(folder / f"frame-{i:06d}.pose.txt", sequence.world_from_camera[4 * i])
    read = recorded_frames(tmp_path, width=32)
    assert read.images.shape == (10, 24, 32, 3)
    assert np.isin(np.round(1000 * read.depth(3)), np.round(1000 * sequence.depth(12))).all()
    assert np.allclose(read.world_from_camera, sequence.world_from_camera[:40:4], atol=1e-6)
    with pytest.raises(UserError, match="too few to measure"):
        recorded_scenarios(read.part([0, 1]))["recorded_out"]()


def test_recorded_frames_with_the_errors_of_trained_networks():
    scores = recorded_scenarios(recorded())["recorded_trained_out"]()
    assert scores["keyframes"] > 40
    assert scores["rejected"] == 0
    assert scores["rmse"] < 0.026


def test_a_corridor_of_similar_places_is_recognised_on_the_way_back():
    """Descriptors without information about the place: loops are proposed by the camera's position."""
    sequence, _ = the_loop()
    order = [*range(0, 140), *range(139, -1, -1)]
    out_and_back = replace(sequence, world_from_camera=sequence.world_from_camera[order])
    run, rng = start(out_and_back, REALISTIC), np.random.default_rng(0)

    def anything(world_from_camera):
        descriptor = rng.normal(size=512).astype(np.float32)
        return descriptor / np.linalg.norm(descriptor)

    run.network._descriptor = anything
    scores = run.feed(out_and_back).scores()
    assert scores["loops"] >= 1
    assert scores["rmse_percent"] < 0.5
    places = {i: round((k.stamp_ns - 10**9) / 1e8) for i, k in run.mapper.map.keyframes.items()}
    loops = [edge for edge in run.mapper._builder.loops.edges if edge.robust]
    assert loops
    for edge in loops:
        one, other = (out_and_back.world_from_camera[places[i]] for i in (edge.i, edge.j))
        assert angle_between(edge.i_from_j.rotation, one[:3, :3].T @ other[:3, :3]) < np.deg2rad(6)

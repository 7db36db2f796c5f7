"""One pass over a whole source: as exact as a plain pass, without all images and maps in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_results import DISTURBED

from fast3r_ros.benchmark.measure import PeakMemory
from fast3r_ros.cli.reconstruct import mapper_config
from fast3r_ros.geometry.rigid import body_pose_from_optical
from fast3r_ros.io.pipeline import Progress, begin_results, map_at_once, with_odometry, write_results
from fast3r_ros.io.recorder import Recorder
from fast3r_ros.io.results import read_results
from fast3r_ros.io.sources.synthetic_walk import SyntheticSource
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import EncodedView, Frame, Reconstruction, WindowResult
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.mapping.network import Fast3RNetwork, PreparedFrame
from fast3r_ros.mapping.one_pass import OnePass, streamed
from fast3r_ros.model import Fast3R
from fast3r_ros.model.preprocess import normalize
from fast3r_ros.synthetic.oracle_network import OracleNetwork
from fast3r_ros.synthetic.sequence import SyntheticSequence, demo_sequence

QUICK = ("points NaN", "confidence infinite", "a row too few")  # one of every kind of fault
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in DISTURBED]
MAPS = ("points_global", "confidence_global", "points_local", "confidence_local")


class TruthInChunks:
    """The stand-in network with the interface for one pass."""

    def __init__(self, sequence: SyntheticSequence, intrinsics: bool = True) -> None:
        self._network, self._intrinsics = OracleNetwork(sequence), intrinsics
        self._frames: dict[int, Frame] = {}
        self.decoded: list[int] = []  # views in the order of requests for their local points

    def prepare(self, frame: Frame) -> PreparedFrame:
        pixels = torch.from_numpy(frame.image)
        self._frames[id(pixels)] = frame
        return PreparedFrame(pixels, np.eye(3), frame.intrinsics)

    def encode_prepared(self, frames: Sequence[PreparedFrame]) -> list[EncodedView]:
        views = [self._network.encode(self._frames[id(frame.pixels)]) for frame in frames]
        return views if self._intrinsics else [replace(view, intrinsics=None) for view in views]

    def fuse(self, views: Sequence[EncodedView]) -> Reconstruction:
        return self._network.reconstruct(views)

    def pointmaps(self, features: Reconstruction, views: Sequence[int]) -> Reconstruction:
        return Reconstruction(*([getattr(features, name)[i] for i in views] for name in MAPS))

    def local_pointmaps(self, features: Reconstruction, views: Sequence[int]) -> Reconstruction:
        self.decoded += views
        return replace(self.pointmaps(features, views), points_global=(), confidence_global=())


class Arguments:
    """The options of `fast3r reconstruct --mode all`."""

    mode, scale, min_confidence, voxel_size, set = "all", "none", None, None, ()


@pytest.fixture(scope="module")
def walk() -> tuple[SyntheticSequence, list[Frame]]:
    sequence = demo_sequence(6.0, width=112, height=80)
    return sequence, [sequence[i] for i in range(0, len(sequence), 5)]


def config(views: int) -> MapperConfig:
    return mapper_config(Arguments(), views)


def finished(one_pass: OnePass, frames: Sequence[Frame]) -> OnePass:
    for frame in frames:
        assert one_pass.add_frame(frame) == ""
    for _ in one_pass.process():
        pass
    return one_pass


def camera_poses(mapper: OnePass | Mapper) -> np.ndarray:
    return np.stack([pose.map_from_camera for pose in mapper.trajectory()])


def test_the_map_is_that_of_the_plain_path(walk: tuple[SyntheticSequence, list[Frame]]) -> None:
    sequence, frames = walk
    plain = Mapper(OracleNetwork(sequence), config(len(frames)))
    for frame in frames:
        plain.add_frame(frame)
    plain.finish()
    one_pass = finished(OnePass(TruthInChunks(sequence), config(len(frames)), chunk=5), frames)
    poses, expected = camera_poses(one_pass), camera_poses(plain)
    np.testing.assert_allclose(poses[:, :3, :3], expected[:, :3, :3], atol=1e-5)
    # the unit is a median of medians here, and a median of all pixels there
    factor = np.linalg.norm(poses[-1, :3, 3]) / np.linalg.norm(expected[-1, :3, 3])
    assert factor == pytest.approx(1, abs=0.02)
    np.testing.assert_allclose(poses[:, :3, 3], factor * expected[:, :3, 3], atol=1e-5)
    for keyframe, other in zip(one_pass.map.keyframes.values(), plain.map.keyframes.values(), strict=True):
        assert keyframe.points is not None
        assert other.points is not None
        # depths are averaged with the neighbours present, which arrive a few at a time here
        mine, expected_points = keyframe.points.points, factor * other.points.points
        assert (np.isfinite(mine) == np.isfinite(expected_points)).mean() > 0.9
        both = np.isfinite(mine).all(axis=1) & np.isfinite(expected_points).all(axis=1)
        difference = np.linalg.norm((mine - expected_points)[both], axis=1)
        difference /= np.linalg.norm(expected_points[both], axis=1)
        assert np.median(difference) < 0.01
        assert np.quantile(difference, 0.95) < 0.04


def test_the_number_of_views_at_a_time_changes_nothing(walk: tuple[SyntheticSequence, list[Frame]]) -> None:
    sequence, frames = walk
    results = [
        camera_poses(finished(OnePass(TruthInChunks(sequence), config(len(frames)), chunk), frames))
        for chunk in (1, 100)
    ]
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], atol=1e-5)


class Disturbed(TruthInChunks):
    """Returns nonsense for some views: when they are placed, or only when they are decoded again."""

    def __init__(self, sequence: SyntheticSequence, name: str, views: set[int], again: bool = False) -> None:
        super().__init__(sequence)
        self._disturb, self._views, self._again = DISTURBED[name], views, again

    def pointmaps(self, features: Reconstruction, views: Sequence[int]) -> Reconstruction:
        maps = super().pointmaps(features, views)
        return self._disturb(maps) if self._views.intersection(views) and not self._again else maps

    def local_pointmaps(self, features: Reconstruction, views: Sequence[int]) -> Reconstruction:
        maps = TruthInChunks.pointmaps(self, features, views)
        if self._views.intersection(views) and self._again:
            maps = self._disturb(maps)
        return replace(maps, points_global=(), confidence_global=())


def results_of(one_pass: OnePass, frames: Sequence[Frame]) -> list[WindowResult]:
    """The results of a pass; the map is valid after it, and every frame is in it or counted."""
    for frame in frames:
        one_pass.add_frame(frame)
    results = list(one_pass.process())
    assert np.isfinite(one_pass.map.cloud().points).all()
    assert all(np.isfinite(pose.map_from_camera).all() for pose in one_pass.trajectory())
    return results


@pytest.mark.parametrize("name", NAMES)
def test_a_pass_of_nonsense_is_rejected_with_its_reason(
    walk: tuple[SyntheticSequence, list[Frame]], name: str
) -> None:
    sequence, frames = walk
    one_pass = OnePass(Disturbed(sequence, name, set(range(100))), config(len(frames)), chunk=5)
    (result,) = results_of(one_pass, frames)
    assert not result.accepted
    assert result.reason
    assert one_pass.status().last_error == result.reason
    assert len(one_pass.map.keyframes) == one_pass.status().windows == 0


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("name", ["points NaN", "points huge", "confidence infinite", "a row too few"])
def test_views_of_nonsense_stay_out_and_the_others_are_mapped(
    walk: tuple[SyntheticSequence, list[Frame]], name: str, again: bool
) -> None:
    sequence, frames = walk
    one_pass = OnePass(Disturbed(sequence, name, {3}, again), config(len(frames)), chunk=1)
    results = results_of(one_pass, frames)
    assert all(result.accepted for result in results)
    status = one_pass.status()
    assert status.keyframes == len(frames) - 1
    assert status.dropped == {"not_connected": 1}
    assert "network" in status.last_error


def test_a_pass_that_is_nonsense_when_it_is_decoded_again_is_rejected(
    walk: tuple[SyntheticSequence, list[Frame]],
) -> None:
    sequence, frames = walk
    one_pass = OnePass(Disturbed(sequence, "points NaN", set(range(100)), True), config(len(frames)))
    (result,) = results_of(one_pass, frames)
    assert "not finite" in result.reason
    assert (one_pass.status().windows, one_pass.status().windows_rejected) == (0, 1)


def test_views_that_could_not_be_placed_are_not_decoded_again(
    walk: tuple[SyntheticSequence, list[Frame]],
) -> None:
    sequence, frames = walk
    network = TruthInChunks(sequence)
    fused = network.fuse

    def with_nonsense(views: Sequence[EncodedView]) -> Reconstruction:
        maps = fused(views)
        maps.points_local[3].normal_()
        return maps

    network.fuse = with_nonsense  # type: ignore[method-assign]
    one_pass = finished(OnePass(network, config(len(frames)), chunk=5), frames)
    assert len(one_pass.trajectory()) == len(network.decoded) == len(frames) - 1
    assert 3 not in network.decoded
    assert one_pass.status().dropped == {"not_connected": 1}


def test_streamed_pointmaps_are_those_of_the_network(network: Fast3R) -> None:
    rng = np.random.default_rng(0)
    frames = [Frame(i, "a", rng.integers(0, 256, (48, 64, 3), np.uint8)) for i in range(5)]
    many = Fast3RNetwork(network)
    views = many.encode_prepared([many.prepare(frame) for frame in frames])
    features = many.fuse(views)
    with torch.inference_mode():
        expected = network([normalize(frame.image)[None] for frame in frames])
    seen = []
    for numbers, maps in streamed(many.pointmaps, features, [3, 0, 4, 1, 2], chunk=2):
        for place, number in enumerate(numbers):
            local = expected[number].local_points
            assert local is not None
            whole = (expected[number].global_points, local)
            for name, pointmap in zip(("global", "local"), whole, strict=True):
                points, confidence = getattr(maps, f"points_{name}"), getattr(maps, f"confidence_{name}")
                torch.testing.assert_close(points[place], pointmap.points[0], rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(confidence[place], pointmap.confidence[0], rtol=1e-5, atol=1e-5)
            seen.append(number)
    assert seen == [3, 0, 4, 1, 2]


def test_unknown_intrinsics_are_found(walk: tuple[SyntheticSequence, list[Frame]]) -> None:
    sequence, frames = walk
    one_pass = finished(
        OnePass(TruthInChunks(sequence, intrinsics=False), config(len(frames)), chunk=5), frames
    )
    for keyframe in one_pass.map.keyframes.values():
        assert keyframe.intrinsics[0, 0] == pytest.approx(sequence.intrinsics[0, 0], rel=0.03)


def test_files_are_written_from_the_stream(
    walk: tuple[SyntheticSequence, list[Frame]], tmp_path: Path
) -> None:
    source = SyntheticSource(walk[0])
    indices = range(0, len(source), 5)
    one_pass = OnePass(TruthInChunks(walk[0]), config(len(indices)), chunk=5)
    begin_results(tmp_path)
    recorder, progress, told = Recorder(tmp_path), Progress(), []
    map_at_once(source.frames(indices), one_pass, recorder, progress, told.append)
    report = write_results(tmp_path, source, one_pass, recorder, progress, {})
    assert (report["windows"], report["keyframes"], report["frames"]) == (1, 12, 12)
    assert report["trajectory_error"]["share_of_path"] < 0.02
    assert [0 if result is None else len(result.views) for result in told] == [0] * 12 + [5, 5, 2]
    results = read_results(tmp_path)
    assert len(results.cloud.points) == report["map_points"] > 1000
    assert len(results.cameras) == len(results.read_images()) == 12


def way(poses: np.ndarray) -> float:
    """Length of the path through poses (N, 4, 4)."""
    return float(np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).sum())


@pytest.mark.parametrize(
    "scale",
    [
        pytest.param("fixed", marks=pytest.mark.slow),
        pytest.param("camera_height", marks=pytest.mark.slow),
        "odometry",
    ],
)
def test_a_scale_brings_the_map_to_metres(tmp_path: Path, scale: str) -> None:
    """With every scale source, the trajectory in the files has the true length."""
    sequence = demo_sequence(12.0, width=64, height=48)
    source, indices = SyntheticSource(sequence), range(0, len(sequence), 5)
    true_poses = sequence.world_from_camera[indices]
    arguments = Arguments()
    arguments.scale = scale
    if scale == "camera_height":
        arguments.scale += f"={true_poses[:, 2, 3].mean()}"  # the floor is at 0
    if scale == "fixed":
        frames = [sequence[index] for index in indices]
        in_units = finished(OnePass(TruthInChunks(sequence), config(len(frames)), chunk=5), frames)
        arguments.scale += f"={way(true_poses) / way(camera_poses(in_units))}"
    one_pass = OnePass(TruthInChunks(sequence), mapper_config(arguments, len(indices)), chunk=5)
    begin_results(tmp_path)
    recorder, progress = Recorder(tmp_path), Progress()
    bases = body_pose_from_optical(sequence.world_from_camera)
    odometry = [(sequence.stamp_ns(index), pose) for index, pose in enumerate(bases)]
    fed = with_odometry(source.frames(indices), odometry if scale == "odometry" else [], one_pass)
    map_at_once(fed, one_pass, recorder, progress, lambda _: None)
    report = write_results(tmp_path, source, one_pass, recorder, progress, {})
    assert report["unit"] == "m"
    poses = np.stack([camera.map_from_camera for camera in read_results(tmp_path).cameras])
    assert len(poses) == len(indices)
    assert way(poses) == pytest.approx(way(true_poses), rel=0.06)


def test_frames_that_cannot_be_used_are_left_out(network: Fast3R) -> None:
    one_pass = OnePass(Fast3RNetwork(network), config(4))
    rng = np.random.default_rng(0)
    assert one_pass.add_frame(Frame(0, "a", rng.integers(0, 256, (48, 64, 3), np.uint8))) == ""
    assert one_pass.add_frame(Frame(0, "a", rng.integers(0, 256, (48, 64, 3), np.uint8))) == "duplicate"
    assert one_pass.add_frame(Frame(1, "a", rng.integers(0, 256, (480, 2, 3), np.uint8))) == "unusable"
    (result,) = one_pass.process()
    assert not result.accepted
    assert result.reason == "fewer than two usable views"
    assert one_pass.status().windows_rejected == 1
    assert one_pass.status().dropped == {"duplicate": 1, "unusable": 1}


def large_frames(count: int) -> Iterator[Frame]:
    rng = np.random.default_rng(0)
    for i in range(count):
        yield Frame(i, "a", rng.integers(0, 256, (384, 512, 3), np.uint8))


@pytest.mark.slow
def test_memory_grows_neither_with_pictures_nor_with_pointmaps(network: Fast3R) -> None:
    few, many = 8, 72
    everything = replace(
        config(many),
        registration=replace(config(many).registration, min_view_share=0.0, min_view_confidence=0.0),
        map=replace(config(many).map, points_per_keyframe=100),
    )
    peaks = []
    for views in (few, few, many):  # the first fills pools that stay
        one_pass = OnePass(Fast3RNetwork(network, image_size=128), everything, chunk=4)
        with PeakMemory(torch.device("cpu")) as peak:
            for frame in large_frames(views):
                one_pass.add_frame(frame)
            placed = sum(len(result.views) for result in one_pass.process())
        if peak.bytes is None:
            pytest.skip("this system does not report a process's peak memory")
        assert placed == views
        peaks.append(peak.bytes)
    per_view = (peaks[2] - peaks[1]) / (many - few)
    # tokens, what the fusion makes of them and the small picture are a third to a half of the pointmaps, that
    # would come on top; so would the picture as it came
    pointmaps, picture = 2 * 4 * 4 * 96 * 128, 3 * 384 * 512
    assert per_view < pointmaps < picture

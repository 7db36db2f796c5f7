"""A mapper run with the stand-in network, compared with the synthetic ground truth."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fast3r_ros.datasets import open_dataset
from fast3r_ros.datasets.posed import sample_depth
from fast3r_ros.errors import UserError
from fast3r_ros.geometry.rigid import body_pose_from_optical, inverse
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.geometry.similarity import fit_similarity
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import EncodedView, Frame, Reconstruction, WindowNetwork, WindowResult
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.synthetic.oracle_network import Disturbance, KnownSequence, OracleNetwork
from fast3r_ros.synthetic.sequence import RecordedSequence, SyntheticSequence, loop_sequence

Float64 = NDArray[np.float64]
SECOND_NS = 1_000_000_000
SMALL = (64, 48)  # pixels; enough for accurate poses with the stand-in network


class MeteredNetwork(WindowNetwork):
    """A network that measures its own processor time, to separate it from the rest."""

    def __init__(self, network: OracleNetwork) -> None:
        self._network = network
        self.seconds = 0.0

    def encode(self, frame: Frame) -> EncodedView:
        """See `WindowNetwork`."""
        start_time = time.thread_time()
        encoded = self._network.encode(frame)
        self.seconds += time.thread_time() - start_time
        return encoded

    def reconstruct(self, views: Sequence[EncodedView]) -> Reconstruction:
        """See `WindowNetwork`."""
        start_time = time.thread_time()
        reconstruction = self._network.reconstruct(views)
        self.seconds += time.thread_time() - start_time
        return reconstruction


@dataclass
class Run:
    """A mapper that has processed frames of sequences, and its windows' results.

    seconds: processor time of each window outside of the network, on the calling thread; unlike wall time it
    does not depend on other work on the machine.
    """

    mapper: Mapper
    network: OracleNetwork
    meter: MeteredNetwork
    sequences: Sequence[KnownSequence]
    results: list[WindowResult]
    seconds: list[float]

    def feed(self, frames: Iterable[Frame], finish: bool = True) -> Run:
        """Offer frames one by one and process windows as they become ready."""
        for frame in frames:
            self.mapper.add_frame(frame)
            if self.mapper.window_ready():
                start_time = time.thread_time() - self.meter.seconds
                result = self.mapper.process_window()
                if result is not None:
                    self.results.append(result)
                    self.seconds.append(time.thread_time() - self.meter.seconds - start_time)
        last = self.mapper.finish() if finish else None
        self.results += [] if last is None else [last]
        return self

    def positions(self, submap: int | None = None) -> tuple[Float64, Float64]:
        """Estimated and true camera positions of a submap's keyframes, both (N, 3), in time order."""
        truth = true_poses(self.sequences)
        poses = self.mapper.trajectory(submap=submap)
        estimated = np.array([pose.map_from_camera[:3, 3] for pose in poses])
        return estimated, np.array([truth[pose.camera, pose.stamp_ns][:3, 3] for pose in poses])

    def world_from_map(self) -> Sim3:
        """The similarity that best fits the trajectory to the ground truth."""
        return fit_similarity(*self.positions())

    def scores(self) -> dict[str, float]:
        """Trajectory RMSE after one similarity, in metres and percent of the path, and the scale's drift.

        Raises UserError when there are fewer than three keyframes.
        """
        estimated, true = self.positions()
        if len(true) < 3:
            raise UserError(f"{len(true)} keyframes are too few to measure; give frames of a longer path")
        error = np.linalg.norm(fit_similarity(estimated, true).apply(estimated) - true, axis=1)
        rmse = float(np.sqrt((error**2).mean()))
        path = float(np.linalg.norm(np.diff(true, axis=0), axis=1).sum())
        part = max(4, len(true) // 8)
        first, last = (
            fit_similarity(estimated[ends], true[ends]).scale for ends in (slice(part), slice(-part, None))
        )
        return {
            "rmse": rmse,
            "rmse_percent": 100 * rmse / path,
            "scale_drift_percent": 100 * abs(float(np.log(last / first))),
            "path": path,
            "keyframes": len(true),
            "windows": len(self.results),
            "rejected": sum(not result.accepted for result in self.results),
            "loops": self.mapper.status().loops_closed,
        }


def start(
    sequences: KnownSequence | Sequence[KnownSequence],
    disturbance: Disturbance | None = None,
    seed: int = 0,
    **parameters: Any,
) -> Run:
    """A new mapper with a stand-in network; parameters by dotted name, with `__` for the dot."""
    several = list(sequences) if isinstance(sequences, Sequence) else [sequences]
    network = OracleNetwork(several, disturbance, seed)
    flat = {name.replace("__", "."): value for name, value in parameters.items()}
    meter = MeteredNetwork(network)
    mapper = Mapper(meter, MapperConfig.from_flat({"loop.background": False, **flat}))
    return Run(mapper, network, meter, several, [], [])


def laps(run: Run, sequence: SyntheticSequence, frames: Sequence[Frame], step: int) -> Iterator[Frame]:
    """Every `step`-th frame of a sequence again and again, without end; a lap begins every 100 s."""
    for lap in count():
        again = replace(
            sequence,
            world_from_camera=sequence.world_from_camera[::step],
            start_ns=sequence.stamp_ns(0) + 100 * lap * SECOND_NS,
            rate=sequence.rate / step,
        )
        run.network.add(again)
        yield from (replace(frame, stamp_ns=again.stamp_ns(i)) for i, frame in enumerate(frames[::step]))


def true_poses(sequences: Sequence[KnownSequence]) -> dict[tuple[str, int], Float64]:
    """`world_from_camera` by camera and stamp."""
    return {(s.camera, s.stamp_ns(i)): s.world_from_camera[i] for s in sequences for i in range(len(s))}


def fingerprint(mapper: Mapper) -> tuple[bytes, ...]:
    """The complete content of the map, as bytes."""
    cloud = mapper.map.cloud()
    poses = b"".join(
        pose.map_from_camera.tobytes() + pose.covariance.tobytes() for pose in mapper.trajectory()
    )
    points = b"".join(
        k.points.points.tobytes() for k in mapper.map.keyframes.values() if k.points is not None
    )
    parts = (cloud.points, cloud.colors, cloud.confidence)
    return (poses, points, str(mapper.map.version).encode(), *(part.tobytes() for part in parts))


def odometry_of(
    sequence: SyntheticSequence, noise: float, slipping: float, seed: int, frames: int
) -> list[tuple[int, Float64]]:
    """Base poses (the body frame at the camera) with noisy increments, in their own odometry frame."""
    rng = np.random.default_rng(seed)
    base = body_pose_from_optical(sequence.world_from_camera[:frames])
    pose = np.eye(4)
    pose[:3, :3] = base[0, :3, :3]  # odometry is aligned with gravity
    poses = [(sequence.stamp_ns(0), pose)]
    # wheels slip in stretches of 5 s
    slips = rng.permutation(np.arange((frames + 49) // 50) < round(slipping * ((frames + 49) // 50)))
    for i in range(1, len(base)):
        step = inverse(base[i - 1]) @ base[i]
        step[:3, 3] *= 1 + rng.normal(0, noise) + (rng.uniform(0.2, 1.0) if slips[i // 50] else 0.0)
        pose = pose @ step
        poses.append((sequence.stamp_ns(i), pose))
    return poses


def recorded_frames(folder: Path, width: int = 160) -> RecordedSequence:
    """The first recording of a folder of scenes in the layout of 7-Scenes, every image `width` pixels wide.

    Raises UserError when there is none or a file of it cannot be read.
    """
    images, depths, poses = [], [], []
    for frame in open_dataset("7scenes", folder)[0].frames:
        image = frame.read_image()
        scale = width / image.shape[1]
        shape = (round(image.shape[0] * scale), width)
        smaller = np.diag([scale, shape[0] / image.shape[0], 1.0])
        if frame.read_depth is None:
            raise UserError(f"{folder} holds no depth images; the stand-in network needs them")
        images.append(cv2.resize(image, shape[::-1], interpolation=cv2.INTER_AREA))
        depths.append(sample_depth(frame.read_depth(), image.shape, smaller, shape))
        poses.append(frame.world_from_camera)
    return RecordedSequence(np.stack(images), np.stack(depths), np.stack(poses), smaller @ frame.intrinsics)


def the_loop(
    frames: int = 600, size: tuple[int, int] = SMALL, seed: int = 0
) -> tuple[SyntheticSequence, list[Frame]]:
    """A walk of about 60 m through ten rooms back to its start, rendered once."""
    return _rendered_loop(frames, size, seed)


@lru_cache(maxsize=4)
def _rendered_loop(frames: int, size: tuple[int, int], seed: int) -> tuple[SyntheticSequence, list[Frame]]:
    sequence = loop_sequence(frames=frames, width=size[0], height=size[1], seed=seed)
    return sequence, list(sequence)

"""Windows of nonsense are rejected with a reason and leave the map unchanged; every frame is counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from bad_results import DISTURBED

from fast3r_ros.benchmark.synthetic_run import Run, start, the_loop
from fast3r_ros.mapping import mapper as mapper_module
from fast3r_ros.mapping.data import EncodedView, Frame
from fast3r_ros.mapping.inbox import FrameIntake
from fast3r_ros.mapping.map_builder import MapBuilder
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.synthetic.oracle_network import OracleNetwork

QUICK = ("points NaN", "confidence infinite", "a row too few")  # one of every kind of fault
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in DISTURBED]


class Disturbing(OracleNetwork):
    """The ground truth with the disturbance `name`."""

    name = ""

    def encode(self, frame: Frame) -> EncodedView:
        view = super().encode(frame)
        if self.name == "descriptor":
            view.descriptor[:] = np.nan
        return view

    def reconstruct(self, views: Any) -> Any:
        result = super().reconstruct(views)
        return DISTURBED.get(self.name, lambda same: same)(result)


def disturbing_run() -> tuple[Run, Disturbing, list[Frame]]:
    sequence, frames = the_loop()
    run = start(sequence)
    network = Disturbing([sequence])
    run.mapper._network = network
    return run, network, frames


def all_counted(mapper: Mapper) -> bool:
    """Whether nothing is pending after the end of input, and every frame is used or dropped."""
    counts = mapper.frame_counts()
    return counts.waiting == 0 and counts.received > 0


@pytest.mark.parametrize("name", NAMES)
def test_nonsense_is_rejected_with_its_reason_and_the_map_stays(name: str) -> None:
    run, network, frames = disturbing_run()
    run.feed(frames[:30], finish=False)
    mapper, known = run.mapper, len(run.results)
    version, points, keyframes = mapper.map.version, mapper.map.cloud().points, len(mapper.map.keyframes)
    assert keyframes > 0
    network.name = name
    run.feed(frames[30:60], finish=False)
    assert len(run.results) > known
    for result in run.results[known:]:
        assert not result.accepted
        assert result.reason
        assert result.stamp_ns > 0
    assert (mapper.map.version, len(mapper.map.keyframes)) == (version, keyframes)
    assert np.array_equal(mapper.map.cloud().points, points)
    network.name = ""
    run.feed(frames[60:100])
    assert run.results[-1].accepted
    assert np.isfinite(mapper.map.cloud().points).all()
    assert all(np.isfinite(pose.map_from_camera).all() for pose in mapper.trajectory())
    assert all_counted(mapper)


@pytest.mark.parametrize("name", NAMES)
def test_nonsense_does_not_start_a_map(name: str) -> None:
    run, network, frames = disturbing_run()
    network.name = name
    run.feed(frames[:25], finish=False)
    assert run.results
    assert not any(result.accepted for result in run.results)
    assert len(run.mapper.map.keyframes) == 0
    network.name = ""
    run.feed(frames[25:60])
    assert run.results[-1].accepted
    assert all_counted(run.mapper)


def test_tokens_that_are_not_finite_make_an_image_unusable() -> None:
    run, network, frames = disturbing_run()
    network.name = "descriptor"
    run.feed(frames[:40], finish=False)
    assert run.mapper.status().dropped["unusable"] > 3
    assert "finite" in run.mapper.status().last_error
    network.name = ""
    run.feed(frames[40:80])
    assert run.results[-1].accepted
    assert all_counted(run.mapper)


STAGES: dict[str, tuple[Any, str]] = {
    "encoding": (OracleNetwork, "encode"),
    "network": (OracleNetwork, "reconstruct"),
    "registration": (mapper_module, "track"),
    "fusion": (MapBuilder, "add"),
    "loop": (MapBuilder, "close_loop"),
    "result": (Mapper, "_result"),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "error",
    [
        ValueError,
        *(
            pytest.param(error, marks=pytest.mark.slow)
            for error in (MemoryError, torch.cuda.OutOfMemoryError)
        ),
    ],
)
def test_every_frame_has_a_fate_when_a_stage_raises(
    stage: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _, frames = disturbing_run()
    run.feed(frames[:25], finish=False)
    mapper, before = run.mapper, run.mapper.frame_counts()
    with monkeypatch.context() as broken:

        def fail(*arguments: Any, **more: Any) -> None:
            raise error(f"{stage} failed")

        broken.setattr(*STAGES[stage], fail)
        for frame in frames[25:45]:
            mapper.add_frame(frame)
        waiting = mapper._intake.waiting
        with pytest.raises(error):
            mapper.process_window()
    counts = mapper.frame_counts()
    settled = counts.dropped.get("window_failed", 0) + counts.used - before.used
    assert settled + len(mapper._new.pending) >= waiting > 0
    assert counts.waiting == len(mapper._new.pending)
    run.feed(frames[45:75])
    assert run.results[-1].accepted
    assert all_counted(mapper)


def test_counts_begin_again_at_a_reset_and_totals_go_on() -> None:
    run, _, frames = disturbing_run()
    for frame in frames[:7]:
        run.mapper.add_frame(frame)
    total = run.mapper.frame_counts()
    run.mapper.reset()
    status = run.mapper.status()
    assert (status.received, status.dropped) == (0, {})
    after = run.mapper.frame_counts()
    assert after.received == total.received == 7
    assert after.waiting == 0
    assert after.since(after).received == 0


def test_frames_pending_at_a_reset_of_the_counts_are_counted_after_it() -> None:
    sequence, frames = the_loop()
    run = start(sequence)
    intake = FrameIntake(run.mapper.config.keyframes, 8)
    for frame in frames[:8:4]:
        intake.offer(frame)
    start_counts = intake.totals()
    intake.take()
    intake.use(1)
    intake.lose("lost", 0)
    since = intake.totals().since(start_counts)
    waited = start_counts.waiting
    assert waited > 0
    assert (since.received, since.used, since.dropped.get("lost", 0)) == (waited, 1, waited - 1)
    assert since.waiting == 0

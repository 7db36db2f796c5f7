"""Retrieved keyframes of other places, and frames of other places, are not confused with known ones.

The network is confidently wrong about them, and errs about the others as trained networks do.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from fast3r_ros.benchmark.mapping_promises import localization
from fast3r_ros.benchmark.synthetic_run import start, the_loop
from fast3r_ros.synthetic.oracle_network import REALISTIC

pytestmark = pytest.mark.slow

CONFIDENTLY_WRONG = replace(REALISTIC, unconnected_confidence=1.0)


class Walk:
    """The ground truth of a sequence's keyframes."""

    def __init__(self, sequence):
        self.sequence = sequence
        self.depth = cache(sequence.depth)
        self.shared = cache(self._shared)

    def index(self, stamp_ns):
        return round((stamp_ns - self.sequence.start_ns) * self.sequence.rate / 1e9)

    def _shared(self, stamp_ns, other_ns):
        """Share of one camera's view that is visible in another one."""
        (pose, depth), (other, there) = (
            (self.sequence.world_from_camera[i], self.depth(i)) for i in map(self.index, (stamp_ns, other_ns))
        )
        rows, columns = np.mgrid[2 : depth.shape[0] : 4, 2 : depth.shape[1] : 4].reshape(2, -1)
        rays = np.linalg.solve(self.sequence.intrinsics, [columns + 0.5, rows + 0.5, np.ones(len(rows))])
        world = pose[:3, :3] @ (rays * depth[rows, columns]) + pose[:3, 3:]
        x, y, z = self.sequence.intrinsics @ (other[:3, :3].T @ (world - other[:3, 3:]))
        with np.errstate(divide="ignore", invalid="ignore"):
            column, row = np.floor(x / z), np.floor(y / z)
        inside = (z > 0) & (column >= 0) & (column < there.shape[1]) & (row >= 0) & (row < there.shape[0])
        found = there[row[inside].astype(int), column[inside].astype(int)]
        return float((np.abs(found - z[inside]) < 0.1 * found).sum()) / len(rows)


@pytest.mark.parametrize("count", [1, 3])
def test_wrong_keyframes_that_were_retrieved_are_never_loops(monkeypatch, count):
    """Every window gets known keyframes that share nothing with it; three of one place agree."""
    sequence, frames = the_loop()
    walk, run = Walk(sequence), start(sequence, CONFIDENTLY_WRONG)
    run.feed(frames[:120], finish=False)
    forced = []

    def wrong(new):
        if not new:
            return []
        live = [run.mapper.map.keyframes[i].stamp_ns for i in run.mapper._builder.window.ids]
        window = [*live, *(view.stamp_ns for view in new)]
        known = [k for k in run.mapper.map.held() if k.stamp_ns not in live]
        apart = [
            k.id
            for k in known
            if max(max(walk.shared(k.stamp_ns, w), walk.shared(w, k.stamp_ns)) for w in window) < 0.01
        ]
        if len(apart) < count:
            return []
        first = len(forced) % (len(apart) - count + 1)
        forced.append(apart[first : first + count])
        return run.mapper._views_of(forced[-1])

    monkeypatch.setattr(run.mapper, "_retrieve", wrong)
    run.feed(frames[120:520], finish=False)
    assert sum(map(len, forced)) >= 20
    assert run.mapper.loops() == []
    assert not any(result.loop_closed for result in run.results)
    scores = run.scores()
    assert scores["rejected"] == 0
    assert scores["rmse_percent"] < 1.0


def test_places_that_were_never_seen_are_not_recognised():
    sequence, frames = the_loop()
    run = start(sequence, CONFIDENTLY_WRONG).feed(frames[:200])
    elsewhere = frames[300:500:10]
    assert len(elsewhere) == 20
    assert [frame.stamp_ns for frame in elsewhere if run.mapper.localize(frame) is not None] == []


@pytest.mark.parametrize("seed", [0, 1])
def test_places_that_were_seen_are_recognised(seed):
    """Two metres of depth, as in recorded rooms; the scene here is three metres away."""
    result = localization(places=24, seed=seed, disturbance=CONFIDENTLY_WRONG)
    assert result["found"] == 24
    assert result["worst_position"] < 0.15

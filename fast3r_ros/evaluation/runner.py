"""Runs settings over the scenes of a dataset and averages their scores."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from fast3r_ros.datasets.posed import PosedSequence
from fast3r_ros.errors import UserError
from fast3r_ros.evaluation import offline
from fast3r_ros.evaluation.offline import Views, read_views, spread_frames
from fast3r_ros.evaluation.peers import peer_name, peer_poses

Row = dict[str, Any]
OFFLINE_TABLES = ("pose", "reconstruction", "depth", "trajectory")
COMPARED = ("pose", "reconstruction", "depth")  # tables that need only a pair of views
SAME_FRAMES = ", same frames"  # suffix of tables that score the same frames in every row
NO_INDICES = "none"  # for a network without image indices
SETTING = ("views", "head", "indices")  # columns that distinguish rows of the offline tables
# table -> a baseline's name in the column head, and its score, without a network
BASELINES = {
    "pose": ("none: no motion", offline.score_no_motion),
    "depth": ("none: constant depth", offline.score_constant_depth),
}


@dataclass(frozen=True)
class Setting:
    """One configuration of the network.  views: per forward pass.  head, indices: see `offline`."""

    views: int
    head: str
    indices: str


def settings(views: Iterable[int], heads: Iterable[str], indices: Iterable[str]) -> list[Setting]:
    """Every combination, ordered by views: the grid of the paper's ablations."""
    return [Setting(*values) for values in itertools.product(sorted(views), heads, indices)]


def run_offline(
    sequences: Sequence[PosedSequence],
    predict_with: Callable[[str], offline.Predict],
    grid: Sequence[Setting],
    tables: Sequence[str],
    long_side: int,
    *,
    max_gap: int | None = None,
    max_points: int = 20_000,
    same_frames: bool = False,
    on_scene: Callable[[], None] = lambda: None,
    problems: list[str] | None = None,
    peer: str | None = None,
    baselines: bool = True,
) -> dict[str, list[Row]]:
    """Rows of every table, one per scene and setting, and those of `BASELINES` if wanted.

    predict_with: the network for an index strategy.  grid: ordered as by `settings`.  long_side: pixels at
    the network.  max_gap: largest distance between chosen frames.  max_points: see `offline.score_points`.
    same_frames: also make tables named with `SAME_FRAMES`, which score only the frames common to all numbers
    of views in the grid, so that their rows differ only in the network's input.  problems: gets a line for
    each failed scene or table, and the others continue; without it the first failure is raised, UserError
    when a sequence cannot be read or has too few frames.  peer: one of `peers.PEERS`, whose poses of the same
    frames get rows of their own.
    """
    names = [*tables, *(table + SAME_FRAMES for table in tables if table in COMPARED and same_frames)]
    rows: dict[str, list[Row]] = {name: [] for name in names}
    for sequence in sequences:
        with noted(problems, sequence.name):
            chosen = {setting.views: spread_frames(sequence, setting.views, max_gap) for setting in grid}
            common = _common_frames(sequence.name, chosen) if same_frames else set()
            for views, group in itertools.groupby(grid, attrgetter("views")):
                truth = read_views([sequence.frames[number] for number in chosen[views]], long_side)
                parts = {"": list(range(views))}
                if same_frames:
                    parts[SAME_FRAMES] = [i for i, number in enumerate(chosen[views]) if number in common]
                answers = list(_place_all(truth, predict_with, list(group)))
                if peer is not None:
                    with noted(problems, f"{sequence.name}, {peer}"):
                        for table, row in _score_peer(peer, sequence, chosen[views], truth, tables):
                            rows[table].append({"scene": sequence.name, "views": views, **row})
                for suffix, part in parts.items():
                    some = [(setting, placed.part(part)) for setting, placed in answers]
                    for table in (table for table in tables if table + suffix in rows):
                        with noted(problems, f"{sequence.name}, table {table}{suffix}"):
                            for row in _score_all(some, truth.part(part), table, max_points, baselines):
                                rows[table + suffix].append({"scene": sequence.name, "views": views, **row})
        on_scene()
    return rows


@contextmanager
def noted(problems: list[str] | None, where: str) -> Iterator[None]:
    """Records a failure inside as a line of `problems`, so that other results are not lost."""
    try:
        yield
    except Exception as error:
        if problems is None:
            raise
        text = str(error) if isinstance(error, UserError) else repr(error)
        problems.append(text if text.startswith(where) else f"{where}: {text}")


def _score_peer(
    peer: str, sequence: PosedSequence, chosen: Sequence[int], truth: Views, tables: Sequence[str]
) -> Iterator[tuple[str, Row]]:
    """Table and row of a peer, for the tables that need only poses."""
    poses = peer_poses(peer, [sequence.frames[number] for number in chosen])
    nothing = np.zeros(0, np.float32)
    placed = offline.PlacedViews(nothing, nothing, nothing, poses)
    for table in ("pose", "trajectory"):
        if table in tables:
            scores = _score(table, placed, truth, 0)
            if scores is not None:
                yield table, {"head": peer_name(peer), "indices": "", **scores}


def _place_all(
    truth: Views, predict_with: Callable[[str], offline.Predict], group: Sequence[Setting]
) -> Iterator[tuple[Setting, offline.PlacedViews]]:
    """Every setting's result for these views; settings that differ only in the head share a forward pass."""
    for indices in dict.fromkeys(setting.indices for setting in group):
        prediction = predict_with(indices)(truth.images)
        for setting in group:
            if setting.indices == indices:
                yield setting, offline.place(prediction, setting.head)


def _score_all(
    answers: Sequence[tuple[Setting, offline.PlacedViews]],
    truth: Views,
    table: str,
    max_points: int,
    baselines: bool,
) -> Iterator[Row]:
    """Rows of the baseline and of every result."""
    if baselines and table in BASELINES:
        name, baseline = BASELINES[table]
        scores = baseline(truth)
        if scores is not None:
            yield {"head": name, "indices": "", **scores}
    for setting, placed in answers:
        scores = _score(table, placed, truth, max_points)
        if scores is not None:
            yield {"head": setting.head, "indices": setting.indices, **scores}


def _common_frames(name: str, chosen: Mapping[int, Sequence[int]]) -> set[int]:
    """The frames chosen for every number of views.  Raises UserError when there are fewer than two."""
    common = set.intersection(*(set(numbers) for numbers in chosen.values()))
    if len(common) < 2:
        counts = ", ".join(map(str, chosen))
        raise UserError(f"{name}: passes of {counts} views have only {len(common)} frame in common")
    return common


def side_by_side(results: Mapping[str, Mapping[str, list[Row]]]) -> dict[str, dict[str, list[Row]]]:
    """Tables with the means and the scenes of one model or several: model -> table -> rows of the scenes.

    Rows of several models have a column `model`; it is empty for baselines and other programs.
    """
    several = len(results) > 1
    found: dict[str, list[Row]] = {}
    for model, rows_of in results.items():
        for table, rows in rows_of.items():
            named = [{"model": model if _of_network(row) else "", **row} for row in rows] if several else rows
            found.setdefault(table, []).extend(named)
    columns = ("model",) if several else ()
    return {
        table: {
            "mean": average(rows, (*columns, *(("method",) if table == "mapper" else SETTING))),
            "scenes": rows,
        }
        for table, rows in found.items()
    }


def _of_network(row: Row) -> bool:
    return row.get("method") == "mapper" or bool(row.get("indices"))


def average(rows: Sequence[Row], by: Sequence[str]) -> list[Row]:
    """Means over the scenes of rows that agree in the columns `by`, in order of first appearance.

    Scenes with a score that is not finite count in `failed` and are excluded from that score's mean.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    return [dict(zip(by, key, strict=True)) | _mean(group, by) for key, group in groups.items()]


def _mean(rows: Sequence[Row], by: Sequence[str]) -> Row:
    names = dict.fromkeys(name for row in rows for name in row if name != "scene" and name not in by)
    values = {name: np.array([row.get(name, np.nan) for row in rows], dtype=np.float64) for name in names}
    broken = np.any([np.isinf(column) for column in values.values()], axis=0)
    means = {
        name: float(column[np.isfinite(column)].mean()) if np.isfinite(column).any() else float("nan")
        for name, column in values.items()
    }
    return {"scenes": len(rows), "failed": int(broken.sum()), **means}


def _score(
    table: str, placed: offline.PlacedViews, truth: Views, max_points: int
) -> Mapping[str, float] | None:
    """None for a table that needs missing depth or more views."""
    views = len(truth.images)
    if table == "pose":
        return offline.score_poses(placed, truth) if views > 1 else None
    if table == "trajectory":
        return offline.score_trajectory(placed, truth) if views > 2 else None
    if truth.depth is None or not truth.valid.any():
        return None
    if table == "depth":
        return offline.score_depth(placed, truth)
    if table == "reconstruction":
        return offline.score_points(placed, truth, max_points)
    raise UserError(f"no table is called {table!r}; known are {', '.join(OFFLINE_TABLES)}")

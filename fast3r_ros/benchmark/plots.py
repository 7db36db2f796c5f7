"""A benchmark's document as figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

SIZE = (8.0, 4.5)
FEWEST_BARS = 3  # fewer bars would be drawn wider


def figures(document: Mapping[str, Any]) -> dict[str, Figure]:
    """Name -> figure; empty for a benchmark without curves."""
    draw = _FIGURES.get(document["benchmark"])
    return {} if draw is None else draw(document)


def _network(document: Mapping[str, Any]) -> dict[str, Figure]:
    """Stages by number of views, one figure per size and dtype, with the roofline as a line."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for result in document["results"]:
        size = "x".join(str(side) for side in result["size_wh"])
        groups.setdefault((size, result["dtype"]), []).append(result)
    drawn = {}
    for (size, dtype), results in groups.items():
        figure, axes = _start(f"{document['model']}, {size}, {dtype}: {_where(document)}")
        stacks = [{name: stage["median_s"] for name, stage in result["stages"].items()} for result in results]
        _stack(axes, [str(result["views"]) for result in results], stacks)
        floors = [sum(stage.get("floor_s", 0.0) for stage in result["stages"].values()) for result in results]
        axes.plot(range(len(results)), floors, "k_", markersize=30, label="roofline of encode, fuse, heads")
        axes.set_xlabel("views")
        figure.legend(loc="outside right upper", fontsize="small")
        drawn[f"network_{size}_{dtype}"] = figure
    return drawn


def _window(document: Mapping[str, Any]) -> dict[str, Figure]:
    """Stages by slide."""
    results = document["results"]
    title = f"{document['model']}, window of {results[0]['views']} views: {_where(document)}"
    figure, axes = _start(title)
    stacks = [
        {name: stage["median_s"] for name, stage in result["stages"].items() if name != "total"}
        for result in results
    ]
    _stack(axes, [str(result["slide"]) for result in results], stacks)
    axes.set_xlabel("new frames per window")
    figure.legend(loc="outside right upper", fontsize="small")
    return {"window": figure}


def _scale(document: Mapping[str, Any]) -> dict[str, Figure]:
    """Time and memory over the number of views."""
    results = [result for result in document["results"] if not result.get("failed")]
    if not results:
        return {}
    figure, axes = _start(f"{document['model']}, one pass: {_where(document)}")
    views = [result["views"] for result in results]
    axes.loglog(views, [result["total_s"] for result in results], "o-", label="seconds")
    known = [result for result in results if result["peak_bytes"]]
    memory = [result["peak_bytes"] / 2**30 for result in known]
    axes.loglog([result["views"] for result in known], memory, "s--", label="peak GiB above the weights")
    axes.set_xticks(views, [str(count) for count in views])
    axes.set_xticks([], minor=True)
    axes.set_ylabel("s, GiB")
    axes.set_xlabel("views")
    axes.legend()
    return {"scale": figure}


_FIGURES = {"network": _network, "window": _window, "scale": _scale}


def _start(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize="medium")
    axes.set_ylabel("seconds")
    axes.grid(axis="y", alpha=0.3)
    return figure, axes


def _stack(axes: Axes, labels: Sequence[str], stacks: Sequence[Mapping[str, float]]) -> None:
    """One bar per label, made of its parts."""
    base = np.zeros(len(stacks))
    for name in dict.fromkeys(name for stack in stacks for name in stack):
        heights = np.array([stack.get(name, 0.0) for stack in stacks])
        axes.bar(range(len(stacks)), heights, bottom=base, width=0.6, label=name)
        base += heights
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlim(-0.6, max(len(labels), FEWEST_BARS) - 0.4)


def _where(document: Mapping[str, Any]) -> str:
    machine = document["machine"]
    return str(machine.get("gpu") or f"{machine['processor']}, {machine['threads']} threads")

"""Our side of the comparison with the official release; its side needs a checkout of the release."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmark" / "against_release.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("against_release", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_our_worker_runs_every_pass_and_the_slid_window_is_the_full_one(
    script: ModuleType, tmp_path: Path
) -> None:
    options = argparse.Namespace(
        release=None,
        release_attention="pytorch_naive",
        network="base",
        device="cpu",
        dtype="float32",
        threads=1,
        views=3,
        size=(32, 48),
        slide=1,
        many=5,
    )
    worker = script.Worker(options, "ours", tmp_path / "ours.npz")
    answers = [worker.run(task) for task in ("full", "slide", "many")]
    worker.stop()
    for answer in answers:
        assert answer["seconds"] > 0
        assert answer["peak_bytes"] > 0
    with np.load(tmp_path / "ours.npz") as results:
        assert results["global_2"].shape == (1, 32, 48, 3)
    assert script._slide_difference(tmp_path / "ours.npz") < 1e-4


def test_targets_hold_or_not_or_were_not_measured(script: ModuleType) -> None:
    measured = {"full_to_release": 0.5, "peak_to_release": 0.6, "slide_to_our_full": 0.4}
    found = script.targets({**measured, "many_to_release": None})
    assert {name: each["holds"] for name, each in found.items()} == {
        "full_to_release": True,
        "peak_to_release": False,
        "slide_to_our_full": True,
        "many_to_release": None,
    }


def test_a_pass_that_only_we_can_hold_counts_as_reached(script: ModuleType) -> None:
    time, failed = {"seconds": 6.0}, {"failed": "out of memory"}
    assert script._many_ratio({"ours": time, "release": {"seconds": 12.0}}) == pytest.approx(0.5)
    assert script._many_ratio({"ours": time, "release": failed}) == 0.0
    assert script._many_ratio({"ours": failed, "release": time}) == float("inf")
    assert script._many_ratio({"ours": failed, "release": failed}) is None
    assert script._many_ratio({}) is None

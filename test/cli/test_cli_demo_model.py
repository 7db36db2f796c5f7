"""The model that ships with the package, on the built-in walk, in both modes."""

from __future__ import annotations

import json

import pytest

from fast3r_ros.cli import main
from fast3r_ros.model.checkpoint import DEMO_DIRECTORY

needs_weights = pytest.mark.skipif(
    not (DEMO_DIRECTORY / "config.json").is_file(), reason="the demo model is not in this tree"
)
# docs/demo_model.md has the measured accuracy; this only tells a broken model from a working one
MUCH_BETTER_THAN_NOTHING = 0.8


@needs_weights
@pytest.mark.parametrize("mode", ["window", "all"])
def test_demo_model_finds_the_way_through_the_room(tmp_path, mode):
    arguments = ["reconstruct", "synthetic", "--output", str(tmp_path), "--mode", mode]
    if mode == "all":
        arguments += ["--max-views", "12"]
    assert main(arguments) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    error = report["trajectory_error"]
    assert error["rmse"] < MUCH_BETTER_THAN_NOTHING * error["standing_still"]
    assert report["map_points"] > 5000

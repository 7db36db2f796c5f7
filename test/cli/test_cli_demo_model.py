"""The model that ships with the package, on the built-in walk: the accuracy of its card, in both modes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fast3r_ros.cli import main
from fast3r_ros.demo_model import DEMO_DIRECTORY

CARD = Path(__file__).resolve().parents[2] / "docs" / "models.md"
needs_weights = pytest.mark.skipif(
    not (DEMO_DIRECTORY / "config.json").is_file(), reason="the demo model is not in this tree"
)
TOLERANCE = 1.15  # other processors round differently


@needs_weights
@pytest.mark.parametrize(
    "options", [pytest.param("--mode window", marks=pytest.mark.slow), "--mode all --max-views 12"]
)
def test_demo_model_reaches_the_accuracy_of_its_card(tmp_path, options):
    row = re.search(
        rf"^\| `{options}` \| ([\d.]+) m \| ([\d.]+) m \|$", CARD.read_text(encoding="utf-8"), re.M
    )
    assert row, f"{CARD} has no row for {options}"
    assert main(["reconstruct", "synthetic", "--output", str(tmp_path), *options.split()]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    error, still = report["trajectory_error"]["rmse"], report["trajectory_error"]["standing_still"]
    assert error < TOLERANCE * float(row[1]), f"measure again for {CARD}"
    assert error < 0.5 * still, "a working model is much better than the static baseline"
    assert report["map_points"] > 5000

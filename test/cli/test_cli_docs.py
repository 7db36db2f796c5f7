"""The documentation: it builds without a warning, its links lead somewhere, and its pictures can be made."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from PIL import Image
from shown_commands import ROOT

from fast3r_ros.model.checkpoint import DEMO_DIRECTORY


def test_documentation_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -r requirements/test.txt")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "index.html").is_file()


def test_script_makes_the_pictures(tmp_path, child_environment):
    """Without a browser, which is slow; test/viewer has one."""
    if not (DEMO_DIRECTORY / "config.json").is_file():
        pytest.skip("the demo model is not in this tree: it has not been trained yet")
    script = [sys.executable, ROOT / "docs" / "pictures" / "regenerate.py", "--source", "synthetic:2"]
    environment = {**child_environment, "PATH": str(tmp_path)}
    done = subprocess.run(
        [*script, "--scenes", "1", "--output", tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "viewer.png is left as it is" in done.stdout, done.stderr
    for name in ("demo.png", "more_views.png"):
        with Image.open(tmp_path / name) as picture, Image.open(ROOT / "docs" / "pictures" / name) as shown:
            assert picture.width == shown.width


def test_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)", text) if "://" not in target]
    assert targets
    for target in targets:
        assert (ROOT / target).is_file(), target
